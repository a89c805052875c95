"""Merges that are not sums: TIES, DARE and KnOTS.

They vote, drop and align, so they neither associate nor keep every update whole.  TIES and DARE act on single
entries, which no low-rank form has: they are done on one dense module at a time and brought back to a given rank.
Every result says by how much (`Composition.error`) and what of each update it still contains (`survived`).
"""

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sliders.algebra.compose import Composition, relative_errors, survival
from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


def vote(entries: Tensor, keep: float) -> Tensor:
    """TIES (2306.01708, algorithm 1) of ``entries [n, ...]``: trim, elect signs, and average those who agree.

    Each of the n keeps the share ``keep`` of its entries that is largest in magnitude.  An entry's sign is that of
    the sum, and its value the mean of what is left and has that sign.
    """
    flat = entries.flatten(1)
    count = int(keep * flat.shape[1])
    top = flat.abs().topk(count, dim=1).indices
    trimmed = torch.zeros_like(flat).scatter(1, top, flat.gather(1, top))
    agree = trimmed.sign() * trimmed.sum(0).sign() > 0
    return ((trimmed * agree).sum(0) / agree.sum(0).clamp_min(1)).view(entries.shape[1:])


def ties(updates: Sequence[Translation], keep: float, rank: int, scale: float = 1.0) -> Composition:
    """TIES-merging of updates (2306.01708), brought back to a rank.

    Entries are trimmed within each module, not over the whole model at once, so that one dense module is held at a
    time.

    Args:
        updates: at least one.
        keep: which share of each update's entries survives the trimming, above 0 and up to 1.
        rank: of the result in each module; its error is against the dense merge.
        scale: what the merged update is multiplied by (the paper's lambda).
    """
    _check_share("keep", keep)
    return _densely(updates, rank, lambda _, entries: vote(entries, keep) * scale)


def dare(updates: Sequence[Translation], drop: float, rank: int, seed: int) -> Composition:
    """The sum of updates of which each entry was dropped at random (DARE, 2311.03099), brought back to a rank.

    What is kept is divided by ``1 - drop``, so that the mean over seeds is the exact sum (before the rank is cut).

    Args:
        updates: at least one.
        drop: the probability, from 0 to below 1.
        rank: of the result in each module; its error is against the dense merge.
        seed: the same seed drops the same entries, and each module has draws of its own.
    """
    _check_share("1 - drop", 1 - drop)

    def dropped(module: str, entries: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(seed ^ zlib.crc32(module.encode()))
        mask = torch.rand(entries.shape, generator=draws, dtype=torch.float64).to(entries.device) >= drop
        return (entries * mask).sum(0) / (1 - drop)

    return _densely(updates, rank, dropped)


def knots(updates: Sequence[Translation], keep: float, scale: float = 1.0) -> Composition:
    """KnOTS (2410.19735, section 4): align updates by one joint SVD, and TIES-merge them there.

    ``[D_1 ... D_n] = U S [V_1 ... V_n]^T``, and the result is ``U merge(S V_1^T, ..., S V_n^T)``: as in the authors'
    code, what is trimmed and voted on carries its singular value.  All of it is done on the factors, and the rank is
    at most the sum of the ranks, so that nothing is cut: the error is 0.

    Args:
        updates: at least one.
        keep: which share of the entries of each ``S V_i^T`` survives the trimming, above 0 and up to 1.
        scale: what the merged update is multiplied by.
    """
    _check_share("keep", keep)
    merged: dict[str, LowRank] = {}
    for module, parts in _by_module(updates).items():
        basis, coordinates = aligned(parts)
        merged[module] = LowRank(basis, vote(coordinates, keep) * scale, parts[0].shape)
    update = Translation(merged)
    return Composition(update, 0.0, dict.fromkeys(merged, 0.0), survival(update, updates))


def aligned(parts: Sequence[LowRank]) -> tuple[Tensor, Tensor]:
    """Updates of one weight in the basis of their joint SVD: ``U [out, k]`` and ``[n, k, in]`` of the ``S V_i^T``.

    ``U @ coordinates[i]`` is update ``i``.
    """
    stacked = LowRank.stack(parts)
    q, r = torch.linalg.qr(stacked.B)
    heights = [min(part.A.shape) for part in parts]
    rows = [torch.linalg.qr(part.A.T) for part in parts]  # A_i^T = Q_i R_i
    small = torch.cat([r_b @ r_a.T for r_b, (_, r_a) in zip(r.split([p.rank for p in parts], 1), rows, strict=True)], 1)
    u, s, vh = torch.linalg.svd(small, full_matrices=False)
    true = int((s > s.max() * torch.finfo(s.dtype).eps * len(stacked.B)).sum()) if len(s) else 0
    mixed = (s[:true, None] * vh[:true]).split(heights, 1)
    return q @ u[:, :true], torch.stack([part @ q_a.T for part, (q_a, _) in zip(mixed, rows, strict=True)])


def _densely(updates: Sequence[Translation], rank: int, merge: Callable[[str, Tensor], Tensor]) -> Composition:
    """A merge of dense entries ``[n, *shape]``, one module at a time."""
    merged: dict[str, LowRank] = {}
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for module, parts in _by_module(updates).items():
        wanted = merge(module, torch.stack([part.dense() for part in parts]))
        merged[module] = LowRank.nearest(wanted, rank)
        lost[module], whole[module] = float((wanted - merged[module].dense()).norm()), float(wanted.norm())
    update = Translation(merged)
    return Composition(update, *relative_errors(lost, whole), survival(update, updates))


def _by_module(updates: Sequence[Translation]) -> dict[str, list[LowRank]]:
    """All updates of each module; one that does not change it takes part as 0."""
    if not updates:
        raise SliderError("nothing to merge; give at least one update")
    found: dict[str, list[LowRank]] = {}
    for module in dict.fromkeys(module for update in updates for module in update):
        known = next(update[module] for update in updates if module in update)
        parts = [update.get(module, LowRank.zero(known.shape, known.B)) for update in updates]
        try:
            LowRank.stack(parts)
        except SliderError as error:
            raise SliderError(f"{module!r}: {error}") from None
        found[module] = parts
    return found


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise SliderError(f"{name} is {share:g}; it is a share, above 0 and up to 1")
