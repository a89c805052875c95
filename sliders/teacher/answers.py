"""What a frozen model has said already, for sliders that are trained on it one after the other."""

from collections import OrderedDict
from collections.abc import Callable

from sliders.batch import TensorBatch, digest


class AnswerCache:
    """Answers of one base model, kept by the content of what was asked.

    A whole call is kept or made anew, never a part of it, so that what is recalled is bit by bit what the same call
    gives without a cache.

    Args:
        room: bytes that are kept; what was not asked for the longest time goes first.
    """

    def __init__(self, room: int = 2**30) -> None:
        self.room = room
        self._answers: OrderedDict[tuple[str, str], TensorBatch] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return sum(value.nbytes for answer in self._answers.values() for value in answer.values())

    def recall(self, what: str, batches: tuple[TensorBatch, ...], make: Callable[[], TensorBatch]) -> TensorBatch:
        """The answer to a call, made if it is not known.

        Args:
            what: all of the call that is not a tensor.
            batches: the tensors that it depends on.
            make: asks the model.
        """
        key = (what, digest(*batches))
        answer = self._answers[key] = self._answers.pop(key, None) or make()
        while self.size > self.room:
            self._answers.popitem(last=False)
        return answer
