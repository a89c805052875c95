"""The laws at the level of behaviour: what dials do to predictions at states that the base visits.

Every law says that two things are one; measured is how far they are apart, relative to what the dials change at all:

    interaction   |f(a+b) - f(a) - f(b) + f(0)| / (|d(a)| |d(b)|)^1/2      d(x) = f(x) - f(0)
    oddness       |d(s) + d(-s)| / |d(s)|
    additivity    |d(2s) - 2 d(s)| / |2 d(s)|
    curvature     |d(s+h) - 2 d(s) + d(s-h)| / h^2, largest over s, relative to the slope at 0
    order gap     |f(a, then b fitted on it) - f(b, then a fitted on it)| / their mean change
    oracle gap    |d(a+b) - d*(a+b)| / |d*(a+b)|                           d* is the formula itself, without sliders

Norms run over states and entries, weighted as the states are.  The null of each is how far the same dials at the same
positions are from *twins*, the same sliders trained with another seed: a law that fails by no more than that fails by
less than chance already moves it.  Intervals and tests are over scenes (`sliders.evaluation.statistics`), so that they
say what holds for other scenes of the same kind, and for these sliders.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.concept import Concept
from sliders.evaluation.base_states import BaseStates, Behaviour
from sliders.evaluation.statistics import Estimate, between_groups, bootstrap, sign_flip
from sliders.runtime.attach import attach

STEP = 0.5
REACH = 2.0
STRAIGHT = 0.2
"""A dial is straight as far as it is within this share of the line through 0."""


@dataclass(frozen=True)
class SceneResiduals:
    """Squared sizes of each scene, float64 ``[scenes]``: of what a law leaves over, and of what it is relative to."""

    left: Tensor
    whole: Tensor

    def over(self, index: Tensor) -> Tensor:
        """The relative gap over resampled scenes ``[draws, n]``."""
        return (self.left[index].sum(1) / self.whole[index].sum(1).clamp_min(1e-300)).sqrt()

    def each(self) -> Tensor:
        """Every scene's own size of what is left over, in units of the mean whole."""
        return (self.left / self.whole.mean().clamp_min(1e-300)).sqrt()


@dataclass(frozen=True)
class MeasuredLaw:
    """By how much a law fails.

    Args:
        law: which.
        of: the dials in question.
        gap: 0 where it holds.
        null: how far twins are apart, in the same units, where there are any.
        p: of a gap above its null by chance of the scenes.
        p_runs: of a gap above its null by chance of which run is which, where runs were permuted.
    """

    law: str
    of: tuple[str, ...]
    gap: Estimate
    null: Estimate | None = None
    p: float | None = None
    p_runs: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def against_null(law: str, of: Sequence[str], gap: SceneResiduals, null: SceneResiduals | None = None) -> MeasuredLaw:
    """A gap with its interval over scenes, and against its null where there is one."""
    scenes = len(gap.left)
    estimate = bootstrap(gap.over, scenes)
    if null is None:
        return MeasuredLaw(law, tuple(of), estimate)
    return MeasuredLaw(law, tuple(of), estimate, bootstrap(null.over, scenes), sign_flip(gap.each() - null.each()))


Twins = Mapping[str, str]
"""For a slider's name that of its twin, attached beside it."""


def twin_gap(told: Behaviour, positions: Mapping[str, float], twins: Twins, whole: Tensor) -> SceneResiduals | None:
    """How far dials at these positions are from their twins there; None if one of them has no twin."""
    if any(name not in twins for name in positions):
        return None
    other = {twins[name]: position for name, position in positions.items()}
    return SceneResiduals(told.states.squared(told.change(positions) - told.change(other)), whole)


def interaction(told: Behaviour, a: str, b: str, twins: Twins, position: float = 1.0) -> MeasuredLaw:
    """How far two dials together are from the sum of what each does alone."""
    both, one, two = ({a: position, b: position}, {a: position}, {b: position})
    squared = told.states.squared
    whole = (squared(told.change(one)) * squared(told.change(two))).sqrt()
    gap = SceneResiduals(squared(told.change(both) - told.change(one) - told.change(two)), whole)
    return against_null("interaction", (a, b), gap, twin_gap(told, both, twins, whole))


def interactions(told: Behaviour, names: Sequence[str], twins: Twins, position: float = 1.0) -> list[MeasuredLaw]:
    """Of all pairs."""
    return [interaction(told, a, b, twins, position) for a, b in itertools.combinations(names, 2)]


def matrix(measured: Sequence[MeasuredLaw], names: Sequence[str]) -> Tensor:
    """Gaps of pairs as a symmetric table ``[n, n]``, 0 on the diagonal."""
    table = torch.zeros(len(names), len(names), dtype=torch.float64)
    for one in measured:
        i, j = (list(names).index(name) for name in one.of)
        table[i, j] = table[j, i] = one.gap.value
    return table


@dataclass(frozen=True)
class DialPath:
    """What one dial does over its range.

    Args:
        name: of the dial.
        dials: positions, ascending, 0 in the middle.
        size: ``|d(s)|`` relative to ``|d(1)|``.
        bend: ``|d(s) - s v| / |s v|``, the distance from the line through 0 with the slope ``v`` there; 0 at 0.
        turn: ``|d(s+h) - 2 d(s) + d(s-h)| / h^2 |v|`` at all positions but the ends.
        straight: the range around 0 in which the bend is at most `STRAIGHT`.
        laws: oddness at 1, additivity from 1 to 2 on either side, curvature.
    """

    name: str
    dials: list[float]
    size: list[float]
    bend: list[float]
    turn: list[float]
    straight: tuple[float, float]
    laws: list[MeasuredLaw]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def path(told: Behaviour, name: str, twins: Twins, step: float = STEP, reach: float = REACH) -> DialPath:
    """Follow one dial over ``[-reach, reach]``."""
    half = round(reach / step)
    dials = [k * step for k in range(-half, half + 1)]
    at = {s: told.change({name: s}) for s in dials}
    squared = told.states.squared
    slope = (at[step] - at[-step]) / (2 * step)
    unit, speed = squared(at[1.0]), squared(slope)
    size = [float((squared(at[s]).sum() / unit.sum().clamp_min(1e-300)).sqrt()) for s in dials]
    lines = {s: SceneResiduals(squared(at[s] - s * slope), s**2 * speed) for s in dials if s}
    everything = torch.arange(told.states.scenes)[None]
    bend = [float(lines[s].over(everything)[0]) if s else 0.0 for s in dials]
    turns = [SceneResiduals(squared(at[s + step] - 2 * at[s] + at[s - step]) / step**4, speed) for s in dials[1:-1]]
    turn = [float(one.over(everything)[0]) for one in turns]
    worst = turns[turn.index(max(turn))]
    odd = SceneResiduals(squared(at[1.0] + at[-1.0]), unit)
    additive = []
    for s in (-1.0, 1.0):
        unequal, twice = SceneResiduals(squared(at[2 * s] - 2 * at[s]), 4 * squared(at[s])), {name: 2 * s}
        null = twin_gap(told, twice, twins, 4 * squared(at[s]))
        additive.append(against_null(f"additivity to {2 * s:+g}", (name,), unequal, null))
    laws = [against_null("oddness", (name,), odd, twin_gap(told, {name: 1.0}, twins, unit)), *additive]
    laws.append(against_null("curvature", (name,), worst))
    low, high = (_reach(bend, half, sign) * step for sign in (-1, 1))
    return DialPath(name, dials, size, bend, turn, (low, high), laws)


def _reach(bend: Sequence[float], middle: int, sign: int) -> int:
    """How many positions from the middle the bend stays small, with its sign."""
    k = 0
    while 0 <= middle + sign * (k + 1) < len(bend) and bend[middle + sign * (k + 1)] <= STRAIGHT:
        k += 1
    return sign * k


def oracle_gap(
    told: Behaviour, amounts: Sequence[tuple[str, Concept, float]], twins: Twins, positions: Mapping[str, float]
) -> MeasuredLaw:
    """How far dials together are from the formula with all their directions added.

    Args:
        told: with these dials.
        amounts: each dial's name, its concept, and its ``s * eta``.
        twins: of the dials.
        positions: where they stand.
    """
    wanted = told.states.oracle([(concept, amount) for _, concept, amount in amounts])
    whole = told.states.squared(wanted)
    gap = SceneResiduals(told.states.squared(told.change(positions) - wanted), whole)
    return against_null("oracle gap", [name for name, *_ in amounts], gap, twin_gap(told, positions, twins, whole))


def behavioural_order_gap(
    states: BaseStates, a: str, b: str, first_a: Sequence[Sequence[Slider]], first_b: Sequence[Sequence[Slider]]
) -> MeasuredLaw:
    """How far apart the two orders of fitting are, against how far apart two seeds of one order are.

    With two seeds or more of both orders the runs' labels are permuted as well.  With few seeds that p cannot be small:
    two of each order allow six ways to label them, and no p below 1/3.

    Args:
        states: where predictions are compared.
        a, b: names.
        first_a: for each seed the slider ``a``, and ``b`` fitted on the base with it.
        first_b: for each seed ``b``, and ``a`` fitted on the base with it.
    """
    changes: list[Tensor] = []
    for pair in (*first_a, *first_b):
        renamed = [Slider(f"{k}", slider.update) for k, slider in enumerate(pair)]
        with attach(states.backbone, renamed, {one.name: 1.0 for one in renamed}):
            changes.append(states.predict() - states.base)
    group = torch.tensor([k < len(first_a) for k in range(len(changes))])
    whole = torch.stack([states.squared(change) for change in changes]).mean(0)
    apart: dict[bool, list[Tensor]] = {True: [], False: []}
    distances = torch.zeros(len(changes), len(changes), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(changes)), 2):
        squared = states.squared(changes[i] - changes[j])
        apart[bool(group[i] != group[j])].append(squared)
        distances[i, j] = distances[j, i] = squared.sum().sqrt()
    gap = SceneResiduals(torch.stack(apart[True]).mean(0), whole)
    null = SceneResiduals(torch.stack(apart[False]).mean(0), whole) if apart[False] else None
    found = against_null("order gap", (a, b), gap, null)
    if min(len(first_a), len(first_b)) < 2:
        return found
    return replace(found, p_runs=between_groups(distances, group)[1])
