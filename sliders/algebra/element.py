"""What an edit does to one layer: an element of the affine monoid ``[W b] -> L [W b] R + D``.

``W`` is a layer's unfolded weight ``[out, in]`` and ``b`` its bias, one column more.  Every closed-form edit of a
linear layer in use is such an element; `docs/derivations/` has the proofs.  ``L``, ``R`` and ``D`` stay factored.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


@dataclass(frozen=True, eq=False)
class Element:
    """``[W b] -> (I + left) [W b] (I + right) + shift``.

    Args:
        shape: of the layer's weight, ``(out, in)`` or ``(out, channels, height, width)``.
        left: ``(out, out)``, what ``L`` adds to the identity.
        right: ``(w, w)``, what ``R`` adds to the identity; ``w`` is the unfolded ``in``, or ``in + 1`` where the
            bias takes part by more than ``b -> L b``.
        shift: ``(out, w)``.

    Raises:
        SliderError: shapes that do not fit each other.
    """

    shape: tuple[int, ...]
    left: LowRank
    right: LowRank
    shift: LowRank

    def __post_init__(self) -> None:
        out, width, w = self.shape[0], math.prod(self.shape[1:]), self.right.shape[0]
        fits = self.left.shape == (out, out) and self.right.shape == (w, w) and self.shift.shape == (out, w)
        if not fits or w not in (width, width + 1):
            raise SliderError(
                f"L {self.left.shape}, R {self.right.shape} and the shift {self.shift.shape} do not act on a weight "
                f"of shape {self.shape}; unfolded it is ({out}, {width}), with its bias ({out}, {width + 1})"
            )

    @staticmethod
    def of(
        shape: Sequence[int],
        left: LowRank | None = None,
        right: LowRank | None = None,
        shift: LowRank | None = None,
    ) -> "Element":
        """An element from what there is of it; a missing factor changes nothing."""
        known = next((part for part in (left, right, shift) if part is not None), None)
        like = None if known is None else known.B
        wide = [part.shape[1] for part in (right, shift) if part is not None and len(part.shape) == 2]
        width = max([math.prod(shape[1:]), *wide])
        none = [LowRank.zero(s, like) for s in ((shape[0], shape[0]), (width, width), (shape[0], width))]
        parts = [
            part.unfolded() if part is not None else zero for part, zero in zip((left, right, shift), none, strict=True)
        ]
        return Element(tuple(shape), parts[0], _padded(parts[1], width, width), _padded(parts[2], shape[0], width))

    @property
    def dtype(self) -> torch.dtype:
        """The widest precision of its factors."""
        dtypes = (part.B.dtype for part in (self.left, self.right, self.shift))
        return functools.reduce(torch.promote_types, dtypes)

    @property
    def has_bias(self) -> bool:
        """Whether the bias takes part by more than ``b -> L b``."""
        return self.right.shape[0] > math.prod(self.shape[1:])

    def with_bias(self) -> "Element":
        """The same element with the column of the bias written out."""
        width = math.prod(self.shape[1:]) + 1
        return Element(
            self.shape, self.left, _padded(self.right, width, width), _padded(self.shift, self.shape[0], width)
        )

    def apply(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer after the edit, as new tensors, rounded once.

        Args:
            weight: of `shape`.
            bias: ``[out]``, or None for a layer without one; then there is one afterwards if the edit makes it.

        Raises:
            SliderError: the weight has another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise SliderError(f"it edits a weight of shape {self.shape}, but the weight is {tuple(weight.shape)}")
        wide = torch.promote_types(torch.promote_types(weight.dtype, self.dtype), torch.float32)
        element = self.with_bias() if bias is not None else self
        layer = weight.flatten(1).to(wide)
        if element.has_bias:
            column = weight.new_zeros(len(weight)) if bias is None else bias
            layer = torch.cat([layer, column.to(layer)[:, None]], 1)
        left, right, shift = (p.to(layer.device, wide) for p in (element.left, element.right, element.shift))
        layer = layer + (layer @ right.B) @ right.A
        layer = layer + left.B @ (left.A @ layer)
        layer = layer + shift.B @ shift.A
        width = math.prod(self.shape[1:])
        edited = layer[:, :width].reshape(self.shape).to(weight.dtype)
        return edited, layer[:, width].to(weight.dtype if bias is None else bias.dtype) if element.has_bias else None

    def displacement(self, weight: Tensor, bias: Tensor | None) -> LowRank:
        """What it adds to this layer, ``L [W b] R + D - [W b]``, without forming it; its rank is that of the factors.

        Args:
            weight: of `shape`.
            bias: ``[out]``, or None for a layer without one.

        Returns:
            ``(out, in)``, or with the bias as one more column where it is changed.

        Raises:
            SliderError: the weight has another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise SliderError(f"it edits a weight of shape {self.shape}, but the weight is {tuple(weight.shape)}")
        element = self.with_bias() if bias is not None and self.left.rank else self
        wide = torch.promote_types(torch.promote_types(weight.dtype, self.dtype), torch.float32)
        left, right, shift = (p.to(weight.device, wide) for p in (element.left, element.right, element.shift))
        layer = weight.flatten(1).to(wide)
        if element.has_bias:
            column = weight.new_zeros(len(weight)) if bias is None else bias
            layer = torch.cat([layer, column.to(layer)[:, None]], 1)
        read = layer @ right.B
        up = torch.cat([read + left.B @ (left.A @ read), left.B, shift.B], 1)
        return LowRank(up, torch.cat([right.A, left.A @ layer, shift.A]), tuple(layer.shape))

    def __matmul__(self, first: "Element") -> "Element":
        """This element after ``first``: ``(L2 L1, R1 R2, L2 D1 R2 + D2)``; ranks add up."""
        if self.shape != first.shape:
            raise SliderError(f"edits of weights of shapes {first.shape} and {self.shape} do not compose")
        one, two = _alike(first, self)
        moved = _between(two.left, one.shift, two.right)
        return Element(self.shape, _times(two.left, one.left), _times(one.right, two.right), moved + two.shift)

    def __add__(self, other: "Element") -> "Element":
        """The element whose displacement ``f(W) - W`` is the sum of both displacements.

        Raises:
            SliderError: one has a left and the other a right factor; such a sum is not in the monoid.
        """
        if self.shape != other.shape:
            raise SliderError(f"edits of weights of shapes {self.shape} and {other.shape} do not add up")
        sides = {side for e in (self, other) for side in e.sides()}
        if len(sides) > 1:
            raise SliderError(
                "the sum of edits that act from the left and from the right of a weight is not of the form "
                "L W R + D; compose them with @, which does not ask for that"
            )
        one, two = _alike(self, other)
        return Element(self.shape, one.left + two.left, one.right + two.right, one.shift + two.shift)

    def __mul__(self, scale: float) -> "Element":
        """The element whose displacement ``f(W) - W`` is this one's times a number.

        Raises:
            SliderError: there is both a left and a right factor; then only 0 and 1 times it are in the monoid.
        """
        if scale == 1:
            return self
        if len(self.sides()) > 1 and scale != 0:
            raise SliderError(
                f"{scale:g} times an edit that acts from both sides is not of the form L W R + D; "
                "scale its one-sided parts and compose them with @"
            )
        return Element(self.shape, self.left * scale, self.right * scale, self.shift * scale)

    __rmul__ = __mul__

    def sides(self) -> tuple[str, ...]:
        """Which of "left" and "right" are there, to rounding."""
        return tuple(name for name, part in (("left", self.left), ("right", self.right)) if part.trim().rank)

    def inverse(self) -> "Element":
        """``(L^-1, R^-1, -L^-1 D R^-1)``, by Woodbury.

        Raises:
            SliderError: ``L`` or ``R`` is singular to rounding; the message says which, and by how much.
        """
        for name, part in (("L", self.left), ("R", self.right)):
            if reason := singular(part):
                raise SliderError(f"its factor {name} {reason}")
        one = self.to(self.dtype)
        left, right = _unit_inverse(one.left), _unit_inverse(one.right)
        return Element(self.shape, left, right, -_between(left, one.shift, right))

    def trim(self) -> "Element":
        """The same element by as few columns as its factors need; composing adds columns up."""
        return Element(self.shape, self.left.trim(), self.right.trim(), self.shift.trim())

    def to(self, *args: object, **kwargs: object) -> "Element":
        """All factors moved or cast as `torch.Tensor.to` does."""
        left, right, shift = (part.to(*args, **kwargs) for part in (self.left, self.right, self.shift))
        return Element(self.shape, left, right, shift)


def _alike(one: Element, two: Element) -> tuple[Element, Element]:
    """Both with the bias where one has it, and in the wider precision."""
    dtype, bias = torch.promote_types(one.dtype, two.dtype), one.has_bias or two.has_bias
    one, two = one.to(dtype), two.to(dtype)
    return (one.with_bias(), two.with_bias()) if bias else (one, two)


def _padded(part: LowRank, rows: int, columns: int) -> LowRank:
    """With rows and columns of zeros below and to the right."""
    up = torch.nn.functional.pad(part.B, (0, 0, 0, rows - part.B.shape[0]))
    return LowRank(up, torch.nn.functional.pad(part.A, (0, columns - part.A.shape[1])), (rows, columns))


def _times(x: LowRank, y: LowRank) -> LowRank:
    """``(I + x)(I + y) - I``, of rank ``x.rank + y.rank``."""
    return LowRank(torch.cat([x.B, y.B + x.B @ (x.A @ y.B)], 1), torch.cat([x.A, y.A]), x.shape)


def _between(left: LowRank, part: LowRank, right: LowRank) -> LowRank:
    """``(I + left) part (I + right)``, of the rank of ``part``."""
    up = part.B + left.B @ (left.A @ part.B)
    return LowRank(up, part.A + (part.A @ right.B) @ right.A, part.shape)


def unit_singular_values(part: LowRank) -> Tensor:
    """Those singular values ``[k]`` of ``I + part`` that can differ from 1, largest first, in float64.

    ``part`` acts on the span of its columns and rows alone; on an orthonormal basis of it, that is a small matrix.
    """
    up, down = part.B.double(), part.A.double()
    basis = torch.linalg.qr(torch.cat([up, down.T], 1)).Q
    small = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device) + (basis.T @ up) @ (down @ basis)
    return torch.linalg.svdvals(small)


def unit_extremes(part: LowRank) -> tuple[float, float]:
    """The smallest and the largest singular value of ``I + part``."""
    values = unit_singular_values(part).tolist()
    if len(values) < part.shape[0]:
        values.append(1.0)
    return min(values), max(values)


def singular(part: LowRank) -> str | None:
    """Why ``I + part`` has no inverse, in words, or None where it has one, in the precision of its factors."""
    smallest, largest = unit_extremes(part)
    cut = largest * part.shape[0] * torch.finfo(part.B.dtype).eps
    if smallest >= cut:
        return None
    lost = int((unit_singular_values(part) < cut).sum())
    return (
        f"is singular: it sends {lost} of {part.shape[0]} directions to 0 (smallest singular value {smallest:.1e}, "
        f"largest {largest:.1e}), and what was there cannot be had back"
    )


def _unit_inverse(part: LowRank) -> LowRank:
    """``(I + B A)^-1 - I = -B (I + A B)^-1 A`` (Woodbury), solved in float64."""
    balanced = part.to(torch.float64).trim()
    up, down = balanced.B, balanced.A
    small = torch.eye(balanced.rank, dtype=up.dtype, device=up.device) + down @ up
    return LowRank(-up, torch.linalg.solve(small, down), part.shape).to(part.B.dtype)
