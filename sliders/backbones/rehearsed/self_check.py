"""Whether the loop of states and predictions is the pipeline's own call, on two steps of a stand-in."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sliders.backbones.rehearsed.call import Rehearsal, flat
from sliders.errors import SliderError

TOLERANCE = 1e-4


def sensitive(denoiser: nn.Module, arguments: dict[str, Any], doubled: bool = False) -> Any:
    """A stand-in whose answer depends on every number of every argument, and on the order of the rows.

    Args:
        denoiser: whose arguments they are.
        arguments: by name, the state first.
        doubled: answer with twice as many channels, as a denoiser with a learnt variance does.
    """
    (_, state), *others = flat(arguments).items()
    signal = sum((_signal(name, value) for name, value in others), 0.0)
    if isinstance(state, list):
        return [_answer(row, signal + 0.01 * k) for k, row in enumerate(state)]
    said = torch.stack([_answer(row, signal + 0.01 * k) for k, row in enumerate(state)])
    return torch.cat([said, said], 1) if doubled else said


def _answer(state: Tensor, signal: float) -> Tensor:
    return 0.5 * state + 0.2 * torch.sin(state + signal)


def _signal(name: str, value: Any) -> float:
    """A number of about 1 that changes with any entry of an argument; precise to about 1e-6."""
    if isinstance(value, Tensor):
        values = value.detach().double().flatten().cpu()
        weights = torch.linspace(1.0, 2.0, len(values), dtype=torch.float64)
        return float((torch.sin(values) * weights).sum() / weights.sum()) if len(values) else 0.0
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return sum(_signal(f"{name}/{k}", row) for k, row in enumerate(value))
    return int(hashlib.sha256(f"{name}={value}".encode()).hexdigest()[:6], 16) / 16**6


def check_loop(
    called: Rehearsal, states: Sequence[Tensor], said: Sequence[Tensor], finished: Tensor, model: str
) -> None:
    """Compare what the pipeline's call stepped through with what the loop here did.

    Args:
        called: of the call, whose scheduler stepped.
        states: the latents that the loop asked about, a batch a step.
        said: what it gave the scheduler.
        finished: where it ended.
        model: what messages call the pipeline.

    Raises:
        SliderError: they differ; it says from where on.
    """
    if len(called.samples) != len(states):
        raise SliderError(
            f"{model} cannot be run here: its call makes {len(called.samples)} steps where {len(states)} were expected"
        )
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for k, (asked, state) in enumerate(zip(called.asked, states, strict=True)):
        first = next(iter(asked.arguments.values()))
        theirs = torch.stack(first) if isinstance(first, list) else first
        pairs += [(f"the state of step {k}", theirs.reshape(state.shape), state)]
        pairs += [(f"the prediction of step {k}", called.said[k], said[k])]
    pairs.append(("the finished state", called.stepped[-1], finished))
    limit = max(TOLERANCE, *(8 * torch.finfo(one.dtype).eps for _, *both in pairs for one in both))
    for what, theirs, ours in pairs:
        if theirs.shape != ours.shape:
            wrong = f"{tuple(theirs.shape)} in its call and {tuple(ours.shape)} here"
        elif (error := _apart(theirs, ours)) > limit:
            wrong = f"off by {error:.2g}"
        else:
            continue
        raise SliderError(
            f"{model} cannot be run here: {what} is {wrong}. Its call does something between its steps, or draws "
            "chance of its own, that a trajectory of states does not show; try another scheduler"
        )


def check_rows(together: Tensor, alone: Tensor, model: str) -> None:
    """Compare what a denoiser says of rows together, at times of their own, with what it says of each alone.

    Raises:
        SliderError: they differ.
    """
    if (error := _apart(alone, together)) > max(1e-3, 64 * torch.finfo(alone.dtype).eps):
        raise SliderError(
            f"{model} cannot be trained on here: what it predicts of a row is off by {error:.2g} when other rows, at "
            "other times, stand beside it"
        )


def _apart(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, of the largest entry."""
    theirs, ours = theirs.float().cpu(), ours.float().cpu()
    return float((theirs - ours).abs().max() / theirs.abs().max().clamp_min(1e-6))
