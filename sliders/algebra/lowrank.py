"""Low-rank matrices that stay factored."""

import math
from collections.abc import Sequence
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

    @staticmethod
    def zero(shape: Sequence[int], like: Tensor | None = None) -> "LowRank":
        """The update that changes nothing, of rank 0, in the precision and on the device of ``like``."""
        like = torch.zeros(0) if like is None else like
        return LowRank(like.new_zeros(shape[0], 0), like.new_zeros(0, math.prod(shape[1:])), tuple(shape))

    @staticmethod
    def stack(updates: Sequence["LowRank"]) -> "LowRank":
        """The exact sum of one or more updates of the same weight, by stacking factors: ranks add up."""
        if not updates:
            raise SliderError("nothing to stack; give at least one update")
        for other in updates[1:]:
            updates[0]._check_like(other)
        return LowRank(torch.cat([u.B for u in updates], 1), torch.cat([u.A for u in updates]), updates[0].shape)

    @staticmethod
    def nearest(dense: Tensor, rank: int) -> "LowRank":
        """The nearest update of at most this rank to a dense one, ``[out, in]`` or a convolution's (Eckart-Young).

        The subspace is found from the Gram matrix of the shorter side, and the update projected onto it.
        """
        if rank < 0:
            raise SliderError(f"cannot compress to rank {rank}; give 0 or more")
        matrix = dense.flatten(1)
        tall = matrix.shape[0] >= matrix.shape[1]
        tops = torch.linalg.eigh(matrix.T @ matrix if tall else matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
        return LowRank(*((matrix @ tops, tops.T) if tall else (tops, tops.T @ matrix)), tuple(dense.shape))

    @property
    def rank(self) -> int:
        """Columns of ``B``; the true rank may be smaller."""
        return self.B.shape[1]

    @property
    def T(self) -> "LowRank":
        """The transpose, ``(in, out)``; of a convolution that of its unfolded matrix."""
        return LowRank(self.A.T, self.B.T, (self.A.shape[1], self.B.shape[0]))

    def dense(self) -> Tensor:
        """The update as one tensor of the weight's shape ``[out, in, ...]``."""
        return (self.B @ self.A).view(self.shape)

    def unfolded(self) -> "LowRank":
        """The same update with the shape ``(out, in)``, also where it is a convolution's."""
        return LowRank(self.B, self.A, (self.B.shape[0], self.A.shape[1]))

    def __add__(self, other: "LowRank") -> "LowRank":
        """The exact sum, by stacking factors: ranks add up."""
        return LowRank.stack([self, other])

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

    def __matmul__(self, other: "LowRank | Tensor") -> "LowRank":
        """The product of the unfolded matrices, of the smaller of the two ranks.

        A kernel's shape is kept: that of ``other`` if it is a convolution's, and this one's if the width stays.
        """
        width = math.prod(other.shape[1:])
        if self.A.shape[1] != other.shape[0] or (isinstance(other, Tensor) and other.dim() != 2):
            raise SliderError(f"cannot multiply an update of shape {self.shape} by {tuple(other.shape)}")
        tail = tuple(other.shape[1:]) if len(other.shape) > 2 or width != self.A.shape[1] else self.shape[1:]
        shape = (self.shape[0], *tail)
        if isinstance(other, Tensor):
            return LowRank(self.B, self.A @ other, shape)
        dtype = torch.promote_types(self.B.dtype, other.B.dtype)
        one, two = self.to(dtype), other.to(dtype)
        middle = one.A @ two.B
        if two.rank < one.rank:
            return LowRank(one.B @ middle, two.A, shape)
        return LowRank(one.B, middle @ two.A, shape)

    def __rmatmul__(self, matrix: Tensor) -> "LowRank":
        """A matrix ``[any, out]`` times the update."""
        if matrix.dim() != 2 or matrix.shape[1] != self.shape[0]:
            raise SliderError(f"cannot multiply {tuple(matrix.shape)} by an update of shape {self.shape}")
        return LowRank(matrix @ self.B, self.A, (matrix.shape[0], *self.shape[1:]))

    def trace(self) -> Tensor:
        """The trace ``[]`` of a square update."""
        if self.B.shape[0] != self.A.shape[1]:
            raise SliderError(f"an update of shape {self.shape} has no trace; it is not square")
        return (self.B * self.A.T).sum()

    def inner(self, other: "LowRank") -> Tensor:
        """The Frobenius inner product ``[]``, from ``r x r`` matrices alone."""
        self._check_like(other)
        dtype = torch.promote_types(self.B.dtype, other.B.dtype)
        one, two = self.to(dtype), other.to(dtype)
        return ((one.B.T @ two.B) * (one.A @ two.A.T)).sum()

    def _cores(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``Q_B, R_B, Q_A, R_A`` with ``B = Q_B R_B`` and ``A^T = Q_A R_A``, in float32 or wider."""
        wide = torch.promote_types(self.B.dtype, torch.float32)
        return *torch.linalg.qr(self.B.to(wide)), *torch.linalg.qr(self.A.T.to(wide))

    def norm(self) -> Tensor:
        """The Frobenius norm ``[]``, exact to rounding also where the factors cancel."""
        _, r_b, _, r_a = self._cores()
        return torch.linalg.matrix_norm(r_b @ r_a.T)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """``U [out, r], S [r], Vh [r, in]`` of the update, by QR of the factors."""
        q_b, r_b, q_a, r_a = self._cores()
        u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        return q_b @ u, s, vh @ q_a.T

    def _support(self) -> tuple[Tensor, Tensor, Tensor]:
        """The SVD without what is rounding, as `torch.linalg.matrix_rank` judges it in the factors' precision."""
        u, s, vh = self.svd()
        eps = torch.finfo(self.B.dtype).eps
        true = int((s > s.max() * eps * max(len(u), vh.shape[1])).sum()) if len(s) else 0
        return u[:, :true], s[:true], vh[:true]

    def column_space(self) -> Tensor:
        """An orthonormal basis ``[out, true rank]`` of what the update writes."""
        return self._support()[0]

    def row_space(self) -> Tensor:
        """An orthonormal basis ``[in, true rank]`` of what the update reads."""
        return self._support()[2].T

    def _from_svd(self, u: Tensor, s: Tensor, vh: Tensor) -> "LowRank":
        root = s.sqrt()
        return LowRank((u * root).to(self.B.dtype), (root[:, None] * vh).to(self.A.dtype), self.shape)

    def compress(self, rank: int) -> "LowRank":
        """The nearest update of at most this rank (Eckart-Young)."""
        if rank < 0:
            raise SliderError(f"cannot compress to rank {rank}; give 0 or more")
        u, s, vh = self.svd()
        return self._from_svd(u[:, :rank], s[:rank], vh[:rank])

    def trim(self) -> "LowRank":
        """The same update by as few columns as it needs, both factors of one size."""
        return self._from_svd(*self._support())

    def to(self, *args: object, **kwargs: object) -> "LowRank":
        """Both factors moved or cast as `torch.Tensor.to` does."""
        return LowRank(self.B.to(*args, **kwargs), self.A.to(*args, **kwargs), self.shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
