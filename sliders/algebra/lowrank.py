"""Low-rank matrices that stay factored."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.errors import SliderError


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update ``B @ A`` of a weight, kept as its factors.

    Args:
        B: ``[out, r]``.
        A: ``[r, in]``; for a convolution ``in`` is channels x kernel height x kernel width, unfolded.
        shape: the weight's own shape, ``(out, in)`` or ``(out, channels, height, width)``.

    The factors are a choice of gauge: ``B G`` and ``G^-1 A`` give the same update for any invertible ``G``, and no
    public operation depends on which was chosen.  Two updates are ``==`` only if they are one object.
    """

    B: Tensor
    A: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        rank = self.B.shape[-1]
        if self.B.shape != (self.shape[0], rank) or self.A.shape != (rank, math.prod(self.shape[1:])):
            raise SliderError(
                f"factors B {tuple(self.B.shape)} and A {tuple(self.A.shape)} do not make an update of a weight "
                f"of shape {self.shape}"
            )

    @property
    def rank(self) -> int:
        """Columns of ``B``; the true rank may be smaller."""
        return self.B.shape[1]

    def dense(self) -> Tensor:
        """The update as one tensor of the weight's shape."""
        return (self.B @ self.A).view(self.shape)

    def __add__(self, other: "LowRank") -> "LowRank":
        """The exact sum, by stacking factors: ranks add up."""
        self._check_like(other)
        return LowRank(torch.cat([self.B, other.B], 1), torch.cat([self.A, other.A], 0), self.shape)

    def _check_like(self, other: "LowRank") -> None:
        if self.shape != other.shape:
            raise SliderError(f"updates of weights of shapes {self.shape} and {other.shape} do not mix")

    def __mul__(self, scale: float) -> "LowRank":
        """The update times a number; it touches one factor only, since touching both would square it."""
        return LowRank(self.B * scale, self.A, self.shape)

    __rmul__ = __mul__

    def __neg__(self) -> "LowRank":
        return self * -1.0

    def __sub__(self, other: "LowRank") -> "LowRank":
        return self + -other

    def inner(self, other: "LowRank") -> Tensor:
        """The Frobenius inner product, from ``r x r`` matrices alone."""
        self._check_like(other)
        return ((self.B.T @ other.B) * (self.A @ other.A.T)).sum()

    def norm(self) -> Tensor:
        """The Frobenius norm."""
        return self.inner(self).clamp_min(0).sqrt()

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """``U [out, r], S [r], Vh [r, in]`` of the update, by QR of the factors."""
        q_b, r_b = torch.linalg.qr(self.B)
        q_a, r_a = torch.linalg.qr(self.A.T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        return q_b @ u, s, vh @ q_a.T

    def compress(self, rank: int) -> "LowRank":
        """The nearest update of at most this rank (Eckart-Young)."""
        if rank < 0:
            raise SliderError(f"cannot compress to rank {rank}; give 0 or more")
        u, s, vh = self.svd()
        root = s[:rank].sqrt()
        return LowRank(u[:, :rank] * root, root[:, None] * vh[:rank], self.shape)

    def to(self, *args: object, **kwargs: object) -> "LowRank":
        """Both factors moved or cast as `torch.Tensor.to` does."""
        return LowRank(self.B.to(*args, **kwargs), self.A.to(*args, **kwargs), self.shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
