"""Interference predicted from factors against interaction measured on the model, and what helps against it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sliders.algebra.compose import orthogonalise
from sliders.algebra.pairs import Pairs
from sliders.algebra.slider import Slider
from sliders.evaluation.base_states import BaseStates, Behaviour
from sliders.evaluation.statistics import Estimate, mantel, spearman, upper
from sliders.runtime.attach import attach
from sliders.studies.behavioural_laws import MeasuredLaw, interaction

_WIDEST = 2048
"""Layers that read more inputs have the diagonal of their covariance alone."""
_KEPT = 0.8
"""What must stay of a slider's own effect for a remedy to be suggested."""


@torch.no_grad()
def covariances(states: BaseStates, modules: Sequence[str]) -> dict[str, Tensor]:
    """Second moments of what layers read at these states, by module: ``[in, in]``, or ``[in]`` where it is wide."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    with _watched(states.backbone, modules, sums, counts):
        states.predict()
    return {module: total / counts[module] for module, total in sums.items()}


@contextmanager
def _watched(model: nn.Module, modules: Sequence[str], sums: dict[str, Tensor], counts: dict[str, int]) -> Iterator:
    def watch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read = _inputs(layer, inputs[0].detach().float())
        moment = read.square().sum(0) if read.shape[1] > _WIDEST else read.T @ read
        sums[name] = sums.get(name, torch.zeros_like(moment)) + moment
        counts[name] += len(read)

    with ExitStack() as stack:
        for name in modules:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(partial(watch, name)).remove)
        yield


def _inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """What the unfolded weight is multiplied by, ``[any, in]``."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    around = [p for pair in zip(_two(layer.padding), _two(layer.padding), strict=True) for p in pair][::-1]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = F.unfold(F.pad(x, around, mode), layer.kernel_size, layer.dilation, 0, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def _two(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    return (0, 0) if isinstance(padding, str) else padding


@dataclass(frozen=True)
class Forecast:
    """A prediction from factors beside what was measured, over all pairs.

    Args:
        by: which quantity of `pairs.Pairs` it is.
        predicted: of all pairs, in the order of ``measured``.
        measured: interactions.
        correlation: Spearman's, with an interval over pairs.
        p: of a correlation above 0 by chance of which slider is which (Mantel).
    """

    by: str
    predicted: list[float]
    measured: list[float]
    correlation: Estimate
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def forecasts(pairs: Pairs, measured: Tensor, of: Sequence[str] = ("interference", "writing", "reading", "cosine")) -> (
    list[Forecast]
):  # fmt: skip
    """Compare quantities of pairs (the cosine without its sign) with measured interactions ``[n, n]``."""
    found = []
    for name in of:
        predicted: Tensor = getattr(pairs, name).abs()
        x, y = upper(predicted), upper(measured)
        found.append(Forecast(name, x.tolist(), y.tolist(), spearman(x, y), mantel(predicted, measured)))
    return found


@dataclass(frozen=True)
class Remedy:
    """A changed slider, and what the change did.

    Args:
        what: was done.
        interaction: with the other slider, afterwards.
        kept: of the slider's own change of predictions, its component along what it was: 1 is all.
    """

    what: str
    interaction: MeasuredLaw
    kept: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def remedies(states: BaseStates, a: Slider, b: Slider) -> tuple[MeasuredLaw, list[Remedy]]:
    """The interaction of two sliders, and what becomes of it when ``b`` is cleared of what it shares with ``a``."""
    ways: dict[str, Literal["inner", "columns", "rows"]] = {
        f"{b.name} writes nothing that {a.name} writes": "columns",
        f"{b.name} reads nothing that {a.name} reads": "rows",
        f"{b.name} without its share of {a.name}": "inner",
    }
    changed = {what: Slider(what, orthogonalise(b, a, by).update) for what, by in ways.items()}
    with attach(states.backbone, [a, b, *changed.values()]) as dials:
        told = Behaviour(states, dials)
        before = interaction(told, a.name, b.name, {})
        own = told.change({b.name: 1.0})
        whole = states.squared(own).sum()
        found = []
        for what in changed:
            rest = states.squared(own - told.change({what: 1.0})).sum()
            size = states.squared(told.change({what: 1.0})).sum()
            kept = float((whole + size - rest) / (2 * whole).clamp_min(1e-300))  # <d, d'> / <d, d>
            found.append(Remedy(what, interaction(told, a.name, what, {}), kept))
    return before, found


def advice(before: MeasuredLaw, found: Sequence[Remedy]) -> str:
    """What the measurements of `remedies` suggest, in words."""
    good = [one for one in found if one.kept >= _KEPT and one.interaction.gap.value < before.gap.value]
    start = f"{' and '.join(before.of)} interact by {before.gap.value:.2g}"
    if not good:
        most = max((one.kept for one in found), default=0.0)
        return (
            f"{start}; no way to orthogonalise lowers it and keeps {_KEPT:.0%} of the effect (at most {most:.0%} is "
            "kept). Fit one on the base with the other (--level fitting measures both orders), or leave them be."
        )
    best = min(good, key=lambda one: one.interaction.gap.value)
    after = f"it is {best.interaction.gap.value:.2g}, and {best.kept:.0%} of the effect stays"
    return f"{start}. Where {best.what}, {after}."
