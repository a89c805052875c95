"""Many updates into one: exactly, in fewer columns, or out of each other's way.

What is exact says nothing more; everything else returns a `Composition`, with the error that it made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Dial, Hinge, Slider, common_base
from sliders.errors import SliderError


@dataclass(frozen=True)
class Composition:
    """An update and what it cost to get it.

    Args:
        update: the result.
        error: ``|update - wanted| / |wanted|`` over all modules, where ``wanted`` is what the operation stands for.
        errors: the same for each module.
        survived: for each update that went in, which share of it is in the result along its own direction,
            ``<update, x> / <x, x>``: 1 is all of it, and more than 1 where the others add to it.
    """

    update: Translation
    error: float
    errors: Mapping[str, float]
    survived: tuple[float, ...]


def combine(parts: Sequence[tuple[Dial, float]]) -> Translation:
    """The exact sum of sliders, or hinges of them, at their positions, by stacking factors; ranks add up.

    Raises:
        SliderError: a dial gives no translation, or two change a module of one name by unlike shapes.
    """
    found: dict[str, list[LowRank]] = {}
    for dial, position in parts:
        edit = dial.at(position)
        if not isinstance(edit, Translation):
            raise SliderError(
                f"a {type(dial).__name__} gives an edit that is no translation, and only those stack; "
                "compose its edits with @"
            )
        for module, update in edit.items():
            found.setdefault(module, []).append(update)
    total: dict[str, LowRank] = {}
    for module, updates in found.items():
        try:
            total[module] = LowRank.stack(updates)
        except SliderError as error:
            raise SliderError(f"{module!r}: {error}") from None
    return Translation(total)


def compose(*dials: Slider | Hinge, at: float | Sequence[float] = 1.0, name: str | None = None) -> Slider:
    """One slider that is several at their positions, exactly (`combine`); its ranks are the sums of theirs.

    Args:
        dials: sliders, or hinges of them.
        at: where each stands; one number for all.
        name: of the result; theirs joined by ``+`` unless given.

    Raises:
        SliderError: there are none, or as many positions as there are dials are not given; see `combine`, too.
    """
    positions = [float(at)] * len(dials) if isinstance(at, int | float) else list(at)
    if not dials or len(positions) != len(dials):
        raise SliderError(f"compose: there are {len(dials)} dials and {len(positions)} positions; give one each")
    called = name or "+".join(dial.name for dial in dials)
    return Slider(called, combine(list(zip(dials, positions, strict=True))), common_base(*dials))


def inner(a: Translation, b: Translation) -> float:
    """The Frobenius inner product over all modules."""
    return sum(float(a[module].inner(b[module])) for module in a.keys() & b.keys())


def survival(update: Translation, inputs: Sequence[Translation]) -> tuple[float, ...]:
    """`Composition.survived` of these inputs; 0 for an input that is 0 itself."""
    return tuple(inner(update, x) / square if (square := inner(x, x)) else 0.0 for x in inputs)


def relative_errors(lost: Mapping[str, float], whole: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The error over all modules and each module's, from the norms of what was lost and of what was wanted."""
    each = {module: part / whole[module] if whole[module] else 0.0 for module, part in lost.items()}
    total = sum(part**2 for part in whole.values())
    return (sum(part**2 for part in lost.values()) / total) ** 0.5 if total else 0.0, each


def compress(
    update: Translation, *, rank: int | None = None, total_rank: int | None = None, tolerance: float | None = None
) -> Composition:
    """The nearest update of less rank (Eckart-Young in each module).

    Give exactly one of:

    Args:
        update: what to compress.
        rank: at most this rank in every module.
        total_rank: at most this sum of ranks, spent on the largest singular values wherever they are; no other
            update with that sum of ranks is nearer.
        tolerance: the least sum of ranks with at most this relative error.

    Raises:
        SliderError: none or more than one is given, or a negative one.
    """
    given = {"rank": rank, "total_rank": total_rank, "tolerance": tolerance}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1 or min(chosen.values()) < 0:
        raise SliderError(f"give exactly one of rank, total_rank and tolerance, 0 or more; given are {chosen}")
    spectra = {module: part.svd()[1].double() for module, part in update.items()}
    ranks = _spend(spectra, total_rank, tolerance) if rank is None else dict.fromkeys(spectra, rank)
    nearest = Translation({module: part.compress(ranks[module]) for module, part in update.items()})
    lost = {module: float(s[ranks[module] :].norm()) for module, s in spectra.items()}
    error, errors = relative_errors(lost, {module: float(s.norm()) for module, s in spectra.items()})
    return Composition(nearest, error, errors, survival(nearest, [update]))


def _spend(spectra: Mapping[str, Tensor], total_rank: int | None, tolerance: float | None) -> dict[str, int]:
    """How many singular values of each module are among the largest of all."""
    owners = [module for module, s in spectra.items() for _ in s]
    values, order = torch.sort(torch.cat([*spectra.values(), torch.zeros(0, dtype=torch.float64)]), descending=True)
    if tolerance is not None:
        left = values.square().flip(0).cumsum(0).flip(0)  # what is lost if this one and all after it go
        total_rank = int((left > tolerance**2 * left[:1]).sum())
    kept = [owners[i] for i in order[:total_rank].tolist()]
    return {module: kept.count(module) for module in spectra}


def orthogonalise(b: Slider, a: Slider | Sequence[Slider], by: Literal["inner", "columns", "rows"]) -> Composition:
    """Slider ``b``'s update without what it shares with ``a``, module by module.

    Args:
        b: the slider to change.
        a: the slider to keep clear of, or several: then of the span of them all.
        by: what becomes 0.  "inner": the Frobenius product of the two updates, so that neither contains a share of
            the other; the change is least, and the rank grows by that of ``a``.  "columns": ``a^T b``, so that they
            write orthogonal outputs.  "rows": ``a b^T``, so that they read orthogonal inputs: what ``b`` adds is
            then the same whatever share of its inputs ``a`` reads.  These two keep the rank.

    Returns:
        The new update; its error is relative to ``b``, and ``survived`` is what is left of ``b``.
    """
    others = [a] if isinstance(a, Slider) else a
    changed: dict[str, LowRank] = {}
    for module, part in b.update.items():
        shared = [other.update[module] for other in others if module in other.update]
        changed[module] = _clear(part, shared, by) if shared else part
    update = Translation(changed)
    lost = {module: float((part - changed[module]).norm()) for module, part in b.update.items()}
    error, errors = relative_errors(lost, {module: float(part.norm()) for module, part in b.update.items()})
    return Composition(update, error, errors, survival(update, [b.update]))


def _clear(b: LowRank, others: Sequence[LowRank], by: Literal["inner", "columns", "rows"]) -> LowRank:
    if by == "inner":
        gram = torch.tensor([[float(x.inner(y)) for y in others] for x in others], dtype=torch.float64)
        shares = torch.linalg.pinv(gram, hermitian=True) @ torch.tensor(
            [[float(b.inner(x))] for x in others], dtype=torch.float64
        )
        return LowRank.stack([b, *(x * -float(s) for x, s in zip(others, shares, strict=True) if s)])
    if by == "columns":
        basis = _span([x.column_space() for x in others]).to(b.B.dtype)
        return LowRank(b.B - basis @ (basis.T @ b.B), b.A, b.shape)
    basis = _span([x.row_space() for x in others]).to(b.A.dtype)
    return LowRank(b.B, b.A - (b.A @ basis) @ basis.T, b.shape)


def _span(bases: Sequence[Tensor]) -> Tensor:
    """An orthonormal basis of what several orthonormal ones ``[n, k_i]`` span together."""
    if len(bases) == 1:
        return bases[0]
    every = torch.cat(list(bases), 1)
    return LowRank(every, torch.eye(every.shape[1]).to(every), tuple(every.shape)).column_space()
