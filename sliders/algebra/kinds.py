"""Which element of the monoid an update is, from weights alone: recovered and not declared.

Each hypothesis is fitted by least squares to a layer, or to all layers at once that would have to share it, and is
judged by the numbers that it saves.  To describe an update of which a fit leaves the share ``e`` takes
``log(1 / e)`` nats for each of its free numbers, so that a hypothesis with ``q`` numbers fewer than the plain update
saves ``q log(chance / e)``, where ``chance`` is what the same fit leaves of a random update.  What can be told apart,
and what cannot, is in `docs/derivations/explain.md`.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sliders.algebra.change import Change

_SURE = 10.0
"""Nats by which one description must be better than another to be told from it."""
Side = Literal["left", "right"]
_EXACT = 0.1
"""A hypothesis must leave less than this share of what it would leave of a random update."""


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis on some layers.

    Args:
        kind: what it says the update is.
        modules: that share it.
        rank: of the shared factor.
        numbers: free numbers of the description.
        saved: how many fewer that is than for each layer's update on its own.
        residual: what it leaves, relative to the update.
        chance: what it would leave of a random update.
        noise: what the noise of the weights leaves of anything, relative to the update.
    """

    kind: str
    modules: tuple[str, ...]
    rank: int
    numbers: int
    saved: int
    residual: float
    chance: float
    noise: float

    @property
    def gain(self) -> float:
        """Nats that the description saves; 0 for what does not hold."""
        left = max(self.residual, self.noise) / self.chance if self.chance else 1.0
        return -self.saved * math.log(left) if self.saved > 0 and left < _EXACT else 0.0


def fits(changes: Sequence[Change]) -> list[Hypothesis]:
    """All hypotheses on each layer and on all sets of layers that may share one; bases must be known."""
    found: list[Hypothesis] = []
    for side in ("right", "left"):
        for together in _candidates(changes, side):
            found += _fit(together, side)
    return found


def choose(found: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The fits that together save most, each layer in one of them; greedy, the largest gain first."""
    best: dict[frozenset[str], Hypothesis] = {}
    for fit in sorted(found, key=lambda fit: -fit.gain):
        best.setdefault(frozenset(fit.modules), fit)
    alone = {fit.modules[0]: fit.gain for fit in best.values() if len(fit.modules) == 1}
    chosen: list[Hypothesis] = []
    taken: set[str] = set()
    for fit in sorted(best.values(), key=lambda fit: sum(alone.get(m, 0.0) for m in fit.modules) - fit.gain):
        apart = sum(alone.get(module, 0.0) for module in fit.modules) if len(fit.modules) > 1 else 0.0
        if fit.gain > apart and not taken & set(fit.modules):
            chosen.append(fit)
            taken |= set(fit.modules)
    return chosen


def rivals(chosen: Hypothesis, found: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Other hypotheses on the same layers that hold and save as much: the weights do not tell them apart."""
    same = (fit for fit in found if set(fit.modules) == set(chosen.modules) and fit.kind != chosen.kind)
    return [fit for fit in same if fit.gain > max(chosen.gain - _SURE, 0)]


def _candidates(changes: Sequence[Change], side: Side) -> Iterator[list[Change]]:
    """Each layer alone; all of one width that could share a factor; and those of one parent."""
    yield from ([change] for change in changes)
    sets: dict[object, list[Change]] = defaultdict(list)
    for change in changes:
        width = change.width if side == "right" else change.shape[0]
        sets[width, change.bias_alone].append(change)
        if side == "right":  # the queries, keys and values of one block read the same
            sets[width, change.bias_alone, change.module.rpartition(".")[0]].append(change)
    distinct = {tuple(change.module for change in one): one for one in sets.values() if len(one) > 1}
    for one in distinct.values():
        if _shared(one, side).shape[1] <= 2 * max(change.update.rank for change in one):
            yield one


def _shared(changes: Sequence[Change], side: Side) -> Tensor:
    """An orthonormal basis ``[w, rank]`` of what all layers read (right) or write (left) together.

    On the right ``w`` has one more entry where a bias changes, and is that entry alone where nothing else does.
    """
    parts = []
    for change in changes:
        u, s, vh = change.update.svd()
        parts.append(_wide(s[:, None] * vh, change) if side == "right" else (u * s).T)
    w = max(part.shape[1] for part in parts)
    _, values, vh = torch.linalg.svd(torch.cat([F.pad(p, (0, w - p.shape[1])) for p in parts]), full_matrices=False)
    noise = sum(change.spectrum.threshold**2 for change in changes) ** 0.5
    return vh[: int((values > max(noise, 1e-6 * float(values[0]))).sum())].T


def _wide(rows: Tensor, change: Change) -> Tensor:
    """Without the weight's columns where the bias alone changes."""
    return rows[:, change.width :] if change.bias_alone else rows


def _stack(changes: Sequence[Change], side: Side, basis: Tensor, with_bias: bool = True) -> tuple[Tensor, Tensor, int]:
    """``W [rows, n]`` and ``D V [rows, rank]`` of all layers, one below the other, and how many rows they were.

    For a right factor ``D = W X``; for a left one both are transposed.  Only products of columns matter for least
    squares, so that many rows are kept as the triangle of a QR decomposition.
    """
    kept = basis.new_zeros(0, 0)
    rows = 0
    for change in changes:
        assert change.weight is not None
        weight = change.weight.double()
        if side == "right":
            down = _wide(change.update.A, change)
            update = change.update.B @ (down @ basis[: down.shape[1]])
        else:
            weight, update = weight.T, change.of_weight.A.T @ (change.update.B.T @ basis)
            if with_bias and _has_bias(change):
                bias = torch.zeros(change.shape[0]) if change.bias is None else change.bias
                weight = torch.cat([weight, bias[None].double()])
                update = torch.cat([update, (change.of_bias @ basis)[None]])
        rows += len(weight)
        both = torch.cat([weight, update], 1)
        kept = torch.cat([kept, both]) if len(kept) else both
        if len(changes) > 1 and len(kept) > 2 * kept.shape[1]:
            kept = torch.linalg.qr(kept, mode="r").R
    n = kept.shape[1] - basis.shape[1]
    return kept[:, :n], kept[:, n:], rows


def _has_bias(change: Change) -> bool:
    return change.bias is not None or change.moves_bias


def _fit(changes: Sequence[Change], side: Side) -> Iterator[Hypothesis]:
    bias_alone = changes[0].bias_alone
    basis = _shared(changes, side)
    rank, n = basis.shape[1], changes[0].width if side == "right" else changes[0].shape[0]
    if not 0 < rank < n or (bias_alone and side == "left"):
        return
    modules = tuple(change.module for change in changes)
    plain = sum(c.shape[0] if c.bias_alone else c.update.rank * (sum(c.update.shape) - c.update.rank) for c in changes)
    total = sum(float(change.update.norm()) ** 2 for change in changes) ** 0.5
    noise = max(change.spectrum.noise for change in changes)

    def fit(kind: str, numbers: int, left: float, chance: float = 1.0) -> Hypothesis:
        return Hypothesis(kind, modules, rank, numbers, plain - numbers, left / total, chance, noise)

    weight, update, rows = _stack(changes, side, basis)
    inverted = torch.linalg.lstsq(weight, update).solution if rows >= n else None
    if rows > n and inverted is not None:
        left = float((update - weight @ inverted).norm())
        kind = "input shift" if bias_alone else f"{side} factor"
        yield fit(kind, rank * (n + len(basis) - rank), left, math.sqrt((rows - n) / rows))
    if bias_alone:
        return
    for kind, numbers, left in _projections(weight, update, basis, inverted):
        yield fit(f"{side} {kind}", numbers + (len(basis) - n) * rank, left)
    biased = [change for change in changes if _has_bias(change)]
    if side == "left" and biased:  # y -> y - P (y - mean) moves the bias by anything in the span of P
        weight, update, rows = _stack(changes, side, basis, with_bias=False)
        inverted = torch.linalg.lstsq(weight, update).solution if rows >= n else None
        outside = sum(float((c.of_bias - basis @ (basis.T @ c.of_bias)).norm()) ** 2 for c in biased)
        for kind, numbers, left in _projections(weight, update, basis, inverted):
            yield fit(f"left {kind} about a mean", numbers + rank * len(biased), math.hypot(left, outside**0.5))


def _projections(
    weight: Tensor, update: Tensor, basis: Tensor, inverted: Tensor | None
) -> Iterator[tuple[str, int, float]]:
    """Kinds of projections ``P`` of ``D = -W P``: the name, the free numbers of ``P``, and what is left of ``D``.

    Args:
        weight: ``W [rows, n]``.
        update: ``D V [rows, rank]``.
        basis: ``V [w, rank]``; entries beyond ``n`` are the bias's, and the part of ``D`` there is free.
        inverted: ``W^+ D V``, the columns of an oblique ``P``, where ``W`` can be inverted.
    """
    n, rank = weight.shape[1], basis.shape[1]
    q, r = torch.linalg.qr(basis[:n])
    moved, beside = weight @ q, update @ basis[n:].T
    outside = beside - moved @ torch.linalg.lstsq(moved, beside).solution
    left = math.hypot(float((update @ r.T + moved).norm()), float(outside.norm()))
    yield "orthogonal projection", rank * (n - rank), left
    if inverted is not None:
        projected = weight @ (inverted @ torch.linalg.pinv(basis[:n].T @ inverted))
        yield "projection", 2 * rank * (n - rank), float((update + projected).norm())
