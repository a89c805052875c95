"""What the frozen model is asked, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.guidance import Predictor, guided
from sliders.backbones.reading import check_told_apart, is_rounding, short
from sliders.batch import TensorBatch, digest, join, take, widened
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.teacher.answers import AnswerCache


@dataclass(frozen=True)
class Question:
    """One prompt to move and what to move it along, as rows of the teacher's prompts; without these, one to keep."""

    target: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]

    def terms(self) -> list[tuple[int, float, float]]:
        """Each prompt with its share in the base prediction and in the direction."""
        positives = [(p, 0.0, 1 / len(self.positives)) for p in self.positives]
        negatives = [(n, 0.0, -1 / len(self.negatives)) for n in self.negatives]
        return [(self.target, 1.0, 0.0), *positives, *negatives]


class Teacher:
    """The same weights with the slider off, asked about one concept.

    All prompts are encoded once, each by itself.  A question is a target prompt with the positives and negatives that
    give its direction; the concept's contexts make one question each, and so does every prompt to preserve.

    Args:
        backbone: the model.
        concept: in the words for it.
        adapter: the slider that is trained on it.
        answers: a cache of what the model has said while other sliders were trained on it.

    Raises:
        SliderError: the model reads the positives and the negatives of a question alike.
    """

    def __init__(
        self,
        backbone: AbstractBackbone,
        concept: Concept,
        adapter: Adapter | None = None,
        answers: AnswerCache | None = None,
    ) -> None:
        self.backbone, self.adapter, self.answers = backbone, adapter, answers
        self.prompts: list[str] = []
        moved = [
            Question(self._row(t), tuple(map(self._row, p)), tuple(map(self._row, n)))
            for t, p, n in concept.in_contexts()
        ]
        assert not isinstance(concept.preserve, Path | str)  # files have been read
        kept = [Question(self._row(prompt), (), ()) for prompt in concept.preserve or ()]
        self.questions = (*moved, *kept)
        self.moved = torch.arange(len(moved))
        self.kept = torch.arange(len(moved), len(self.questions))
        self._empty = self._row("")
        with torch.no_grad():
            encoded = [self.recall(f"encode {p}", (), lambda p=p: backbone.encode([p])) for p in self.prompts]
        check_told_apart(concept, dict(zip(self.prompts, encoded, strict=True)))
        self.conditioning = join(encoded)
        self.evaluations = 0
        self._moves: Tensor | None = None  # whether any direction yet was more than rounding
        self._computed = torch.float32  # the coarsest precision on the way to an answer

    def contradictions(self) -> list[str]:
        """Prompts to preserve that the model reads as it reads a target, which is to be moved."""
        targets = {digest(self._seen(self.questions[q].target)) for q in self.moved.tolist()}
        kept = [self.questions[q].target for q in self.kept.tolist()]
        return [self.prompts[row] for row in kept if digest(self._seen(row)) in targets]

    def _seen(self, row: int) -> TensorBatch:
        return take(self.conditioning, torch.tensor([row]))

    def recall(
        self, what: str, batches: tuple[TensorBatch, ...], make: Callable[[], TensorBatch], lasting: bool = True
    ) -> TensorBatch:
        """What the model without the slider says, from the cache where there is one; see `AnswerCache.recall`.

        With ``lasting`` false it is what no other slider will ask, and is not kept.
        """
        return make() if self.answers is None or not lasting else self.answers.recall(what, batches, make)

    def _row(self, prompt: str) -> int:
        if prompt not in self.prompts:
            self.prompts.append(prompt)
        return self.prompts.index(prompt)

    def targets(self, questions: Tensor) -> TensorBatch:
        """The target prompts' conditioning for these questions ``[n]``, a row each.

        Where the slider itself changes the conditioning (it is on a text encoder), the prompts are encoded anew, with
        gradients and at the dial that is set; otherwise this is a look-up.
        """
        index = [self.questions[q].target for q in questions.tolist()]
        if self.adapter is not None and self.adapter.touches(self.backbone.conditioning_modules):
            return self.backbone.encode([self.prompts[i] for i in index])
        return take(self.conditioning, torch.tensor(index))

    def follow(self, questions: Tensor, guidance: float) -> Predictor:
        """A predictor for trajectories: the target prompts with classifier-free guidance, whatever is attached.

        Args:
            questions: numbers of the rows' questions, int64 ``[n]``.
            guidance: 1 is the plain prediction.
        """
        if guidance == 1:
            prompt = self.targets(questions)
            return lambda state: self.backbone.predict(state, prompt)
        empty = take(self.conditioning, torch.full((len(questions),), self._empty))
        return guided(self.backbone, self.targets(questions), empty, guidance)

    @torch.no_grad()
    def answer(
        self, state: TensorBatch, questions: Tensor, chunk: int = 64, with_base: bool = True, lasting: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The base prediction and the direction at each state, ``[n, ...]`` both, in float32 at least.

        Every prompt that is needed is asked at every state, and nothing else is computed: 1 + positives + negatives
        rows for a question with a direction, 1 for a prompt to preserve.  The targets of all states are asked together,
        then their first positives, and so on, so that concepts with a prompt in common ask the same.

        Args:
            state: ``[n]`` rows.
            questions: of each row, int64 ``[n]``.
            chunk: rows of a call.
            with_base: ask the target prompts; otherwise the first tensor is 0.
            lasting: other sliders may ask the same at the same states: the answers go through the cache.
        """
        terms = [self.questions[q].terms() for q in questions.tolist()]
        columns = [[(row, *term) for row, term in enumerate(column) if term] for column in zip_longest(*terms)]
        columns = columns if with_base else columns[1:]
        calls = [column[k : k + chunk] for column in columns for k in range(0, len(column), chunk)]
        said = torch.cat([self._ask(state, call, lasting) for call in calls])
        answers = widened(said)
        rows, _, *shares = map(torch.tensor, zip(*(part for call in calls for part in call), strict=True))
        share = torch.stack(shares, 1).view(-1, 2, *[1] * (answers.dim() - 1)).to(answers)
        sums = answers.new_zeros(len(questions), 2, *answers.shape[1:])
        sums.index_add_(0, rows.to(answers.device), answers[:, None] * share)
        base, direction = sums.unbind(1)
        if with_base:
            self._note(base, direction, said.dtype)
        return base, direction

    def _note(self, base: Tensor, direction: Tensor, dtype: torch.dtype) -> None:
        """Remember whether any direction is more than rounding in ``dtype``; waits for no device."""
        size, change = (values.flatten(1).norm(dim=1) for values in (base, direction))
        self._computed = max(dtype, self.backbone.dtype, key=lambda one: torch.finfo(one).eps)
        moves = (~is_rounding(change, size, self._computed)).any()
        self._moves = moves if self._moves is None else self._moves | moves

    def check_directions(self) -> None:
        """Of all that was answered so far.

        Raises:
            SliderError: no direction was more than rounding.
        """
        if self._moves is not None and not self._moves:
            asked = self.questions[0]
            sides = " and ".join(
                ", ".join(short(self.prompts[k]) for k in s) for s in (asked.positives, asked.negatives)
            )
            raise SliderError(
                f"there is no direction: {type(self.backbone).__name__} predicts the same for {sides}, up to rounding "
                f"in {self._computed}; choose other prompts, or a higher precision"
            )

    def _ask(self, state: TensorBatch, call: Sequence[tuple[int, int, float, float]], lasting: bool) -> Tensor:
        """One call of the model, about a prompt (second) at a state's row (first) each."""
        rows, prompts = (torch.tensor(column) for column in list(zip(*call, strict=True))[:2])
        asked = take(state, rows), take(self.conditioning, prompts)

        def predict() -> TensorBatch:
            self.evaluations += len(rows)
            return {"said": self.backbone.predict(*asked)}

        return self.recall("predict", asked, predict, lasting)["said"]
