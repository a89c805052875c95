"""What singular values say: how many stand out of noise, how even they are, and which directions are new."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_GRIDS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of an update, and how many of them are more than noise.

    Args:
        values: largest first; those of the whole update ``[min(out, in)]``, or of its factors.
        rounding: the largest that rounding alone can make.
        threshold: what is no larger is noise, as `rank_of` decides it.
        rank: how many are larger.
    """

    values: Tensor
    rounding: float
    threshold: float
    rank: int

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole update."""
        return float(self.values.norm())

    @property
    def noise(self) -> float:
        """How large what is left out of the rank can be, relative to the norm."""
        return max(self.threshold / max(self.norm, _TINY), 1e-6)

    @property
    def kept(self) -> float:
        """The share of the squared norm that the directions above the noise have."""
        return float(self.values[: self.rank].square().sum() / self.values.square().sum().clamp_min(_TINY))

    @property
    def gap(self) -> float:
        """The smallest singular value above the threshold over the largest below; infinite where there is none."""
        below = float(self.values[self.rank]) if self.rank < len(self.values) else 0.0
        return float(self.values[self.rank - 1]) / below if self.rank and below else math.inf


_TINY = torch.finfo(torch.float64).tiny


def rank_of(values: Tensor, shape: tuple[int, int], rounding: float) -> Spectrum:
    """How many singular values stand out of noise.

    Where some are no larger than rounding can be, the rest is the rank: the update is of low rank as exactly as its
    file can say.  Where all are larger, the small ones are taken for noise of unknown size, and what stands out is
    above Gavish and Donoho's threshold ``w(beta) median`` (1305.5870, eq. 4 and 5); random numbers have none there,
    since their largest singular value, the edge of Marchenko and Pastur's law, is below it.

    Args:
        values: all singular values ``[min(shape)]``, largest first.
        shape: of the matrix.
        rounding: the largest singular value that rounding alone can make, see `rounding_norm`.
    """
    exact = int((values > rounding).sum())
    if exact < len(values):
        return Spectrum(values, rounding, rounding, exact)
    beta = min(shape) / max(shape)
    factor = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    threshold = factor * float(values.median()) if len(values) else 0.0
    return Spectrum(values, rounding, threshold, int((values > threshold).sum()))


def rounding_norm(weight: Tensor) -> float:
    """The largest singular value that rounding a weight ``[out, in]`` to the precision it is stored in can make.

    The precision is the coarsest that holds the weight exactly, whatever its dtype says.  Rounding errors are taken
    for independent, of standard deviation ``ulp / sqrt(12)`` each; the norm of such a matrix is at most about its
    largest row norm plus its largest column norm (Bandeira and van Handel 1408.6185, corollary 3.9).
    """
    error = _ulp(weight) / math.sqrt(12)
    rows, columns, largest = error.norm(dim=1).max(), error.norm(dim=0).max(), error.max()
    return float(rows + columns + largest * math.sqrt(2 * math.log(sum(weight.shape))))


def _ulp(weight: Tensor) -> Tensor:
    """The spacing of numbers around each entry, in float64."""
    stored = next((d for d in _GRIDS if torch.equal(weight.to(d).to(weight.dtype), weight)), weight.dtype)
    info = torch.finfo(stored)
    exponent = torch.frexp(weight.double()).exponent - 1
    return (info.eps * torch.exp2(exponent.double())).clamp_min(info.smallest_normal * info.eps)


def entropy(values: Tensor) -> float:
    """Entropy, in nats, of singular values ``[k]`` as shares of their sum."""
    share = values.double() / values.double().sum().clamp_min(_TINY)
    return float(-torch.special.xlogy(share, share).sum())


def left_vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``U [out, min]`` and the singular values of a weight ``[out, in]``, from the Gram matrix of its shorter side."""
    matrix = weight.double()
    if matrix.shape[0] <= matrix.shape[1]:
        squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
        return vectors.flip(1), squares.flip(0).clamp_min(0).sqrt()
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values = squares.flip(0).clamp_min(0).sqrt()
    return matrix @ vectors.flip(1) / values.clamp_min(values[0] * 1e-12 + _TINY), values


def singular_values(weight: Tensor) -> Tensor:
    """Of a weight ``[out, in]``, ``[min]``, largest first, from the Gram matrix of its shorter side."""
    matrix = weight.double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()


def intruders(before: Tensor, after: Tensor, top: int = 10, cosine: float = 0.5) -> int:
    """How many of the first ``top`` left singular vectors are like none that were there before (2410.21228, alg. 1).

    Args:
        before: left singular vectors ``[out, k]`` of the weight before the update, all of them.
        after: those of the weight after it.
        top: how many of the latter are looked at.
        cosine: with no vector of before a larger one, in absolute value, for an intruder.
    """
    return int(((before.T @ after[:, :top]).abs().amax(0) < cosine).sum())
