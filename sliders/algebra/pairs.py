"""How much sliders have in common, and how much they are predicted to interfere, from their factors alone.

For each pair of updates, module by module and then over all modules:

    cosine        <D_i, D_j> / |D_i| |D_j|                         signed: do they add up or cancel?
    columns, rows mean squared cosine of the principal angles      do they write to, and read from, one subspace?
    writing       |D_i^T D_j|  / (|D_i^T D_i| |D_j^T D_j|)^1/2     the same, directions weighted by what goes there
    reading       |D_i S D_j^T| / (|D_i S D_i^T| |D_j S D_j^T|)^1/2
    interference  (writing x reading)^1/2                          the prediction

``S`` is the covariance of the layer's inputs where it is given, and otherwise the identity.  All but the cosine lie in
[0, 1]; interference is 0 exactly where in each layer two sliders read orthogonal inputs or write orthogonal outputs.
Over modules each is the mean weighted by ``|D_i| |D_j|``, relative to the norms of both sliders, so that modules which
only one of them changes count as no overlap.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.errors import SliderError

Layer = tuple[str, Sequence[LowRank | None]]
_AT_ONCE = 64 * 2**20
"""Bytes of factors that are multiplied at once."""


@dataclass(frozen=True)
class Pairs:
    """All-pairs quantities of n sliders as the file's docstring defines them, each ``[n, n]``, in float64."""

    names: tuple[str, ...]
    norms: Tensor
    """``[n]``, with the covariance as its metric where one is given."""
    cosine: Tensor
    columns: Tensor
    rows: Tensor
    writing: Tensor
    reading: Tensor
    interference: Tensor


def pairwise(sliders: Sequence[Slider], covariances: Mapping[str, Tensor] | None = None) -> Pairs:
    """All pairs of sliders that are in memory.

    Args:
        sliders: at least one.
        covariances: second moments of the inputs of layers by module, ``[in, in]``, or ``[in]`` for the diagonal
            alone; a module that is missing has the identity.

    Raises:
        SliderError: sliders change one module by unlike shapes, or a covariance does not fit.
    """
    modules = dict.fromkeys(module for slider in sliders for module in slider.update)
    layers = ((module, [slider.update.get(module) for slider in sliders]) for module in modules)
    return pairwise_layers([slider.name for slider in sliders], layers, covariances)


def pairwise_layers(
    names: Sequence[str], layers: Iterable[Layer], covariances: Mapping[str, Tensor] | None = None
) -> Pairs:
    """All pairs of sliders that come one layer at a time, for sets that memory does not hold.

    Args:
        names: of the n sliders.
        layers: each module's name with the n updates of it, None where a slider does not change it.
        covariances: as for `pairwise`.
    """
    n = len(names)
    sums = {name: torch.zeros(n, n, dtype=torch.float64) for name in ("inner", *_QUANTITIES)}
    for batch in _batches(layers, n):
        for name, part in _over_batch(batch, covariances or {}).items():
            sums[name] += part.cpu()
    norms = sums["inner"].diagonal().clamp_min(0).sqrt()
    whole = torch.outer(norms, norms)
    means = {name: part / whole.clamp_min(torch.finfo(whole.dtype).tiny) for name, part in sums.items()}
    return Pairs(tuple(names), norms, means.pop("inner"), **means)


_QUANTITIES = ("columns", "rows", "writing", "reading", "interference")


def _batches(layers: Iterable[Layer], n: int) -> Iterator[list[tuple[str, list[LowRank]]]]:
    """Layers of one shape together, each with all n updates; those that are missing are 0."""
    waiting: dict[tuple[int, ...], list[tuple[str, list[LowRank]]]] = {}
    for module, updates in layers:
        known = next((update for update in updates if update is not None), None)
        if known is None:
            continue
        zero = LowRank.zero(known.shape, known.B)
        full = [zero if update is None else update for update in updates]
        if unlike := next((update.shape for update in full if update.shape != known.shape), None):
            raise SliderError(f"{module!r}: updates of weights of shapes {known.shape} and {unlike} do not mix")
        group = waiting.setdefault(known.shape, [])
        group.append((module, full))
        factors = sum(update.rank for update in full) * (known.B.shape[0] + known.A.shape[1]) * known.B.element_size()
        if len(group) * factors >= _AT_ONCE:
            yield waiting.pop(known.shape)
    yield from waiting.values()


def _over_batch(batch: list[tuple[str, list[LowRank]]], covariances: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the modules of a batch; ``m`` modules, ``n`` sliders, factors padded to one rank ``r``."""
    r = max(1, max(update.rank for _, updates in batch for update in updates))
    up = torch.stack([torch.cat([_columns(u.B, r) for u in updates], 1) for _, updates in batch])  # [m, out, n r]
    down = torch.stack([torch.cat([_columns(u.A.T, r) for u in updates], 1) for _, updates in batch])  # [m, in, n r]
    gram_up = _blocks(up.mT @ up, r)
    plain = weighted = _blocks(down.mT @ down, r)
    if any(module in covariances for module, _ in batch):
        metric = [_weighted(x, module, covariances.get(module)) for (module, _), x in zip(batch, down, strict=True)]
        weighted = _blocks(down.mT @ torch.stack(metric), r)
    eps = torch.finfo(up.dtype).eps
    write, read = _between(weighted, gram_up), _between(gram_up, weighted)  # D_i^T D_j and D_i S D_j^T up to bases
    write_plain, read_plain = (
        (write, read) if plain is weighted else (_between(plain, gram_up), _between(gram_up, plain))
    )
    inner = (gram_up * weighted).sum((-1, -2))
    norms = inner.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    both = norms[:, :, None] * norms[:, None, :]
    writing, reading = _alike(write), _alike(read)
    parts = {
        "columns": _angles(write_plain, eps),
        "rows": _angles(read_plain, eps),
        "writing": writing,
        "reading": reading,
        "interference": (writing * reading).sqrt(),
    }
    return {"inner": inner.sum(0), **{name: (both * part).sum(0) for name, part in parts.items()}}


def _columns(factor: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(factor, (0, rank - factor.shape[1]))


def _weighted(down: Tensor, module: str, covariance: Tensor | None) -> Tensor:
    if covariance is None:
        return down
    if covariance.shape not in ((len(down),), (len(down), len(down))):
        raise SliderError(
            f"the covariance of {module!r} is {tuple(covariance.shape)}, but the layer reads {len(down)} inputs"
        )
    covariance = covariance.to(down)
    return covariance[:, None] * down if covariance.dim() == 1 else covariance @ down


def _blocks(gram: Tensor, r: int) -> Tensor:
    """``[m, n r, n r]`` as ``[m, n, n, r, r]``, in float64."""
    m, n = len(gram), gram.shape[1] // r
    return gram.double().view(m, n, r, n, r).transpose(2, 3)


def _own(blocks: Tensor) -> Tensor:
    """The blocks ``[m, n, r, r]`` on the diagonal."""
    return blocks.diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)


def _root(square: Tensor, power: float, cut: float) -> Tensor:
    """Symmetric powers ``[..., r, r]`` of positive semidefinite matrices, on what is above ``cut`` of the largest."""
    values, vectors = torch.linalg.eigh(square)
    kept = values > cut * values[..., -1:].clamp_min(0)
    powers = torch.where(kept, values, 1).pow(power) * kept
    return (vectors * powers[..., None, :]) @ vectors.mT


def _around(blocks: Tensor, sides: Tensor) -> Tensor:
    """``sides_i blocks_ij sides_j`` for all pairs."""
    return torch.einsum("miab,mijbc,mjcd->mijad", sides, blocks, sides)


def _between(outer: Tensor, inner: Tensor) -> Tensor:
    """Blocks with the singular values of ``D_i^T D_j`` (or ``D_i D_j^T``), whatever the factors' gauge."""
    return _around(inner, _root(_own(outer), 0.5, 0.0))


def _alike(between: Tensor) -> Tensor:
    """``|D_i^T D_j| / (|D_i^T D_i| |D_j^T D_j|)^1/2``, and 0 where one of them is 0."""
    norms = torch.linalg.matrix_norm(between)
    own = norms.diagonal(dim1=1, dim2=2).sqrt()
    return norms / (own[:, :, None] * own[:, None, :]).clamp_min(torch.finfo(norms.dtype).tiny)


def _angles(between: Tensor, eps: float) -> Tensor:
    """Mean squared cosine of the principal angles of two subspaces, over the smaller true rank.

    Directions below ``(100 eps)^1/2`` of an update's largest singular value are rounding in a Gram matrix.
    """
    own = _own(between)
    values = torch.linalg.eigvalsh(own)
    ranks = (values > 100 * eps * values[..., -1:]).sum(-1)
    ranks = ranks * (values[..., -1] > 0)
    squared = torch.linalg.matrix_norm(_around(between, _root(own, -0.5, 100 * eps))).square()
    return squared / torch.minimum(ranks[:, :, None], ranks[:, None, :]).clamp_min(1)
