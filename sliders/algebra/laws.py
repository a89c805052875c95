"""Which algebraic laws edits and dials obey, from their factors alone.

Each predicate returns a `Law`: whether it holds, by how much it fails, and the reason in words.  Edits
are compared as maps (`sliders.algebra.distance`); `order_gap` and `inverse_residue` measure at given weights instead.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.algebra.distance import distance, distances, elements_of, size
from sliders.algebra.edit import Affine, Edit, Translation
from sliders.algebra.element import singular, unit_extremes
from sliders.algebra.slider import Dial

DIALS = (-1.0, -0.5, 0.5, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Law:
    """The answer to whether a law holds.

    Args:
        holds: whether it does, to within the tolerance.
        value: by how much it fails, relative to the edits in question: 0 is exact (invertibility has its own scale).
        reason: in words, with the module or the dials where it fails most.
        broken: each case that breaks it, where there are several.
    """

    holds: bool
    value: float
    reason: str
    broken: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return self.holds


def _tolerance(*edits: Edit) -> float:
    """The root of the precision of the coarsest factors there are."""
    dtypes = {element.dtype for edit in edits for element in elements_of(edit).values()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0) ** 0.5


def commutes(f: Edit, g: Edit, tolerance: float | None = None) -> Law:
    """Whether ``f @ g`` and ``g @ f`` are one map.

    The value is the distance of the two over the size of the smaller edit.

    Raises:
        SliderError: an edit is not in the monoid, or the two are for unlike weights.
    """
    tolerance = _tolerance(f, g) if tolerance is None else tolerance
    if isinstance(f, Translation) and isinstance(g, Translation):
        _ = f @ g  # refuses unlike weights
        return Law(True, 0.0, "both are translations, and W + D1 + D2 does not depend on the order")
    shared = set(f.modules) & set(g.modules)
    if not shared:
        return Law(True, 0.0, "they change no module in common")
    gaps = distances(f @ g, g @ f)
    smaller = min(size(f), size(g))
    value = sum(gap**2 for gap in gaps.values()) ** 0.5 / smaller if smaller else 0.0
    worst = max(gaps, key=lambda module: gaps[module])
    if value <= tolerance:
        return Law(True, value, f"the two orders give one map on all {len(shared)} modules that they share")
    return Law(False, value, f"the orders differ by {value:.2g} times the smaller edit, most in {worst!r}")


def is_idempotent(edit: Edit, tolerance: float | None = None) -> Law:
    """Whether doing it twice is doing it once; the value is ``|f @ f - f|`` over the size of ``f``."""
    tolerance = _tolerance(edit) if tolerance is None else tolerance
    gaps, whole = distances(edit @ edit, edit), size(edit)
    value = sum(gap**2 for gap in gaps.values()) ** 0.5 / whole if whole else 0.0
    if value <= tolerance:
        return Law(True, value, "it changes nothing" if not whole else "done again, it finds nothing left to change")
    if isinstance(edit, Translation):
        return Law(False, value, "it is a translation, and those add up each time")
    worst = max(gaps, key=lambda module: gaps[module])
    return Law(False, value, f"done again, it goes on: by {value:.2g} of itself, most in {worst!r}")


def is_invertible(edit: Edit) -> Law:
    """Whether ``inverse()`` exists.

    The value is the smallest over the largest singular value of the factors ``L`` and ``R``: 1 for a translation, 0
    for a projection; the inverse magnifies rounding by its reciprocal.
    """
    worst, where = 1.0, ""
    for module, element in elements_of(edit).items():
        for name, part in (("L", element.left), ("R", element.right)):
            smallest, largest = unit_extremes(part)
            ratio = smallest / largest
            if reason := singular(part):
                return Law(False, ratio, f"in {module!r} the factor {name} {reason}")
            if ratio < worst:
                worst, where = ratio, f"{name} of {module!r}"
    if not where:
        return Law(True, worst, "it only adds, and what is added can be taken away")
    return Law(True, worst, f"L and R are invertible everywhere; the nearest to singular is {where}")


def is_associative(
    operation: Callable[[Translation, Translation], Translation],
    a: Translation,
    b: Translation,
    c: Translation,
    tolerance: float | None = None,
) -> Law:
    """Whether a way to merge two updates may be nested either way: the value is the associator's relative size.

    ``@`` and ``+`` associate always; merges that cut or vote (TIES, truncation) do not.
    """
    tolerance = _tolerance(a, b, c) if tolerance is None else tolerance
    one, two = operation(operation(a, b), c), operation(a, operation(b, c))
    whole = max(one.norm(), two.norm())
    value = distance(one, two) / whole if whole else 0.0
    if value <= tolerance:
        return Law(True, value, "(a b) c is a (b c)")
    return Law(False, value, f"(a b) c and a (b c) differ by {value:.2g} of the larger")


def is_group(dial: Dial, dials: Sequence[float] = DIALS, tolerance: float | None = None) -> Law:
    """Whether a dial is a one-parameter group: ``at(s) @ at(t) = at(s + t)`` for all pairs of these positions."""
    return _over_dials(dial, dials, tolerance, lambda s, t: dial.at(s) @ dial.at(t), "going to {s:g} and then {t:g}")


def is_additive(dial: Dial, dials: Sequence[float] = DIALS, tolerance: float | None = None) -> Law:
    """Whether what a dial adds to the weights is additive: ``at(s) + at(t) = at(s + t)``, as sums of displacements.

    Raises:
        SliderError: the dial's edits cannot be added up.
    """

    def added(s: float, t: float) -> Edit:
        return Affine(elements_of(dial.at(s))) + Affine(elements_of(dial.at(t)))

    return _over_dials(dial, dials, tolerance, added, "the sum of what {s:g} and {t:g} add")


def _over_dials(
    dial: Dial, dials: Sequence[float], tolerance: float | None, combined: Callable[[float, float], Edit], words: str
) -> Law:
    positions = dict.fromkeys(dials)
    tolerance = _tolerance(*(dial.at(s) for s in positions)) if tolerance is None else tolerance
    scale = max(size(dial.at(s)) for s in positions)
    gaps = {
        (s, t): distance(combined(s, t), dial.at(s + t)) / scale if scale else 0.0
        for s, t in itertools.combinations_with_replacement(positions, 2)
    }
    (s, t), value = max(gaps.items(), key=lambda item: item[1])
    broken = tuple((f"{a:g}", f"{b:g}") for (a, b), gap in gaps.items() if gap > tolerance)
    if not broken:
        return Law(True, value, f"{words.format(s=s, t=t)} is what {s + t:g} does, and so for all {len(gaps)} pairs")
    across = all(float(a) * float(b) < 0 for a, b in broken)
    where = "; on either side of 0 it holds" if across else ""
    reason = f"{words.format(s=s, t=t)} is not what {s + t:g} does: it misses by {value:.2g} of the largest edit{where}"
    return Law(False, value, reason, broken)


def is_transitive(edits: Mapping[str, Edit], tolerance: float | None = None) -> Law:
    """Whether commuting is transitive over a set: where a commutes with b and b with c, so does a with c.

    The value is the share of such triples that break it, and `Law.broken` names them as ``(a, b, c)``.
    """
    together = {
        frozenset((a, b)): bool(commutes(edits[a], edits[b], tolerance)) for a, b in itertools.combinations(edits, 2)
    }
    chains = [
        (a, b, c)
        for b in edits
        for a, c in itertools.combinations([name for name in edits if name != b], 2)
        if together[frozenset((a, b))] and together[frozenset((b, c))]
    ]
    broken = tuple((a, b, c) for a, b, c in chains if not together[frozenset((a, c))])
    if not broken:
        return Law(True, 0.0, f"in all {len(chains)} triples where a commutes with b and b with c, a commutes with c")
    a, b, c = broken[0]
    reason = f"{a!r} commutes with {b!r} and {b!r} with {c!r}, but {a!r} does not commute with {c!r}"
    return Law(False, len(broken) / len(chains), f"{reason}; {len(broken)} of {len(chains)} triples break it", broken)


Layers = dict[str, tuple[Tensor, Tensor | None]]


def _after(layers: Layers, *edits: Edit) -> Layers:
    """The weights and biases after these edits, one after the other."""
    for edit in edits:
        layers = {module: edit.apply_layer(module, *layer) for module, layer in layers.items()}
    return layers


def _layers(weights: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None) -> Layers:
    return {module: (weight, (biases or {}).get(module)) for module, weight in weights.items()}


def _gap(one: Layers, two: Layers) -> float:
    """The Frobenius norm of the difference; a bias that is not there is 0."""
    total = 0.0
    for module, layer in one.items():
        for a, b in zip(layer, two[module], strict=True):
            known = [tensor.double() for tensor in (a, b) if tensor is not None]
            if known:
                total += float(torch.linalg.vector_norm(known[0] - known[1] if len(known) == 2 else known[0])) ** 2
    return total**0.5


def order_gap(f: Edit, g: Edit, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None = None) -> float:
    """``|f(g(W)) - g(f(W))|`` over the smaller of ``|f(W) - W|`` and ``|g(W) - W|``, for any two edits.

    Args:
        f, g: edits, also outside the monoid.
        weights: ``[out, in, ...]`` of every module that they change, by name.
        biases: ``[out]`` of the modules that have one.
    """
    apart, one, two = 0.0, 0.0, 0.0
    for module, layer in _layers(weights, biases).items():  # one by one: edited copies of a whole model are large
        start = {module: layer}
        apart += _gap(_after(start, g, f), _after(start, f, g)) ** 2
        one, two = one + _gap(_after(start, f), start) ** 2, two + _gap(_after(start, g), start) ** 2
    return (apart / min(one, two)) ** 0.5 if min(one, two) else 0.0


def inverse_residue(
    edit: Edit,
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    tolerance: float = 1e-3,
) -> dict[torch.dtype, Law]:
    """What is left of an edit that was done and taken back in weights of each precision.

    The value is ``|f^-1(f(W)) - W| / |f(W) - W|``: 0 if nothing is, 1 if the way back restores nothing.

    Raises:
        SliderError: the edit has no inverse.
    """
    back = edit.inverse()
    residues: dict[torch.dtype, Law] = {}
    for dtype in dtypes:
        start = {
            module: (weight.to(dtype), None if bias is None else bias.to(dtype))
            for module, (weight, bias) in _layers(weights, biases).items()
        }
        moved = _gap(_after(start, edit), start)
        value = _gap(_after(start, edit, back), start) / moved if moved else 0.0
        name = str(dtype).removeprefix("torch.")
        residues[dtype] = Law(value <= tolerance, value, f"in {name}, {value:.2g} of the edit stays when taken back")
    return residues
