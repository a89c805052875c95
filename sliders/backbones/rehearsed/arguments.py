"""What a denoiser is asked with: which of it is state, which conditioning, which is the same for every row.

It is read off a few rehearsals: of two rows and of three, of two steps, and of prompts of different lengths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sliders.backbones.rehearsed.call import Ask, nested
from sliders.batch import TensorBatch
from sliders.errors import SliderError

LENGTH = " length"
"""What a conditioning has beside rows of different lengths: how long each is, under their name with this."""


@dataclass(frozen=True)
class Arguments:
    """How the arguments of a denoiser are laid out.

    Args:
        latents: name of the one that holds the state; it comes first.
        moving: of those that change from step to step, beside it.
        prompted: of those that depend on the prompt.
        rows: the dimension of each argument in which its rows lie, or None where it has none; lists have their rows
            in the list.
    """

    latents: str
    moving: tuple[str, ...]
    prompted: tuple[str, ...]
    rows: Mapping[str, int | None]

    @staticmethod
    def of(two: Sequence[Ask], three: Sequence[Ask], others: Sequence[Ask]) -> "Arguments":
        """Read the layout off what a call asked.

        Args:
            two: of a rehearsal with two rows, a short prompt and the longest, of two steps at least.
            three: with three rows.
            others: the first steps of rehearsals with two rows, other short prompts and the longest.

        Raises:
            SliderError: it is open where the rows of an argument are, or whether it changes.
        """
        first = two[0].arguments
        latents = next(iter(first))
        rows = {name: _row_dimension(name, value, three[0].arguments.get(name)) for name, value in first.items()}
        moving = tuple(
            name
            for name, value in first.items()
            if name != latents and any(not same(value, ask.arguments.get(name)) for ask in two[1:])
        )
        for name in moving:
            if not isinstance(first[name], Tensor) or rows[name] not in (0, None):
                raise SliderError(f"{name!r} changes from step to step and is no tensor with rows in dimension 0")
        prompted = tuple(
            name
            for name, value in first.items()
            if name not in (latents, *moving)
            and (name in _lists(first) or any(not same(value, ask.arguments.get(name)) for ask in others))
        )
        for name in prompted:
            if rows[name] is None:
                raise SliderError(f"{name!r} depends on the prompt and has no rows")
        return Arguments(latents, moving, prompted, rows)

    def of_one_row(self, ask: Ask) -> Ask:
        """What is asked of the first row alone."""
        alone = {name: _first_row(value, self.rows[name]) for name, value in ask.arguments.items()}
        return Ask(ask.expert, alone)

    def conditioning(self, ask: Ask, rows: int) -> TensorBatch:
        """What depends on the prompt, of the first ``rows`` rows of a call."""
        found: TensorBatch = {}
        for name in self.prompted:
            value = ask.arguments[name]
            if isinstance(value, list):  # rows of their own lengths
                longest = max(map(len, value))
                padded = [nn.functional.pad(v, (0, 0) * (v.dim() - 1) + (0, longest - len(v))) for v in value[:rows]]
                found[name] = torch.stack(padded)
                found[name + LENGTH] = torch.tensor([len(v) for v in value[:rows]], device=value[0].device)
            else:
                dimension = self.rows[name] or 0
                found[name] = value.narrow(dimension, 0, rows).movedim(dimension, 0)
        return found

    def state(self, ask: Ask, rows: int) -> TensorBatch:
        """What changes from step to step beside the latents, of a call with one row, for ``rows`` rows."""
        return {name: _expanded(ask.arguments[name], self.rows[name], rows) for name in self.moving}

    def given(self, example: Ask, latents: Tensor, state: TensorBatch, conditioning: TensorBatch) -> dict[str, Any]:
        """All arguments of a forward.

        Args:
            example: what a call with one row and pictures of this size asked.
            latents: ``[n, ...]``, what the scheduler steps on.
            state: the rest of the state.
            conditioning: of the rows.

        Raises:
            SliderError: a conditioning was made for pictures of another size.
        """
        count, made = len(latents), {}
        for name, value in example.arguments.items():
            if name == self.latents:
                made[name] = _like(latents, value)
            elif name in self.moving:
                made[name] = state[name].to(value.dtype)
            elif name not in self.prompted:
                made[name] = _every_row(value, self.rows[name], count)
            elif name + LENGTH in conditioning:
                lengths = conditioning[name + LENGTH].tolist()
                made[name] = [v[:length] for v, length in zip(conditioning[name], lengths, strict=True)]
            else:
                made[name] = conditioning[name].movedim(0, self.rows[name] or 0)
                _check_shape(name, made[name], value, self.rows[name] or 0)
        return nested(made)


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    return bool(one == other)


def _lists(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that are lists of a tensor for each row."""
    return [name for name, v in arguments.items() if isinstance(v, list) and v and isinstance(v[0], Tensor)]


def _row_dimension(name: str, two: Any, three: Any) -> int | None:
    """Where the rows of an argument are: in the one dimension that is 2 of two rows, and 3 of three."""
    if isinstance(two, Tensor) and isinstance(three, Tensor) and two.dim() == three.dim():
        unlike = [k for k, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
        if not unlike:
            return None
        if len(unlike) == 1 and (two.shape[unlike[0]], three.shape[unlike[0]]) == (2, 3):
            return unlike[0]
    elif isinstance(two, list) and isinstance(three, list):
        if (len(two), len(three)) == (2, 3):
            return 0
        if same(two, three):
            return None
    elif same(two, three):
        return None
    raise SliderError(f"it is open where the rows of {name!r} are: {_shape(two)} of two rows, {_shape(three)} of three")


def _first_row(value: Any, rows: int | None) -> Any:
    if rows is None:
        return value
    return value[:1] if isinstance(value, list) else value.narrow(rows, 0, 1)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.60}"


def _expanded(value: Tensor, rows: int | None, count: int) -> Tensor:
    one = value if rows == 0 else value.reshape(1) if value.numel() == 1 else value.reshape(1, *value.shape)
    return one.expand(count, *one.shape[1:])


def _every_row(value: Any, rows: int | None, count: int) -> Any:
    """An argument that is the same for all rows, for so many."""
    if rows is None:
        return value
    if isinstance(value, list):
        return value * count
    return value.expand(*value.shape[:rows], count, *value.shape[rows + 1 :]).contiguous()  # forwards may view it


def _like(latents: Tensor, example: Any) -> Any:
    """Latents as the denoiser takes them: in its precision, and in a list of rows where it wants that."""
    if isinstance(example, list):
        return [row.to(example[0].dtype).reshape(example[0].shape) for row in latents]
    return latents.to(example.dtype).reshape(len(latents), *example.shape[1:])


def _check_shape(name: str, made: Tensor, example: Tensor, rows: int) -> None:
    alone = [side for k, side in enumerate(made.shape) if k != rows]
    wanted = [side for k, side in enumerate(example.shape) if k != rows]
    if alone != wanted:
        raise SliderError(
            f"{name!r} was encoded as {tuple(alone)} a row, and pictures of this size need {tuple(wanted)}; give the "
            "backbone the height and the width, so that prompts are encoded for them"
        )
