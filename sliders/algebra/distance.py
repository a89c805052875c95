"""How far apart two edits are, as maps of weights rather than at one weight.

The distance is the root of the mean of ``|f(W) - g(W)|^2`` over weights ``W`` with independent entries of variance
``1 / width`` (about what layers are initialised with).  Of two translations it is the Frobenius norm of what their
updates differ by, and it is computed from the factors alone.
"""

from collections.abc import Mapping

import torch

from sliders.algebra.edit import Edit, Factored, Identity
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


def size(edit: Edit) -> float:
    """How far an edit moves a weight: its `distance` from the identity."""
    return distance(edit, Identity())


def distance(f: Edit, g: Edit) -> float:
    """How far two edits are apart as maps, over all modules.

    Raises:
        SliderError: one is not in the monoid, and so is not known from factors.
    """
    return sum(part**2 for part in distances(f, g).values()) ** 0.5


def distances(f: Edit, g: Edit) -> dict[str, float]:
    """The same for each module."""
    one, two = elements_of(f), elements_of(g)
    return {module: _element_distance(one.get(module), two.get(module)) for module in dict.fromkeys([*one, *two])}


def elements_of(edit: Edit) -> Mapping[str, Element]:
    """What an edit in the monoid does to each of its modules.

    Raises:
        SliderError: it is not in the monoid.
    """
    if not isinstance(edit, Factored):
        raise SliderError(
            f"a {type(edit).__name__} is not in the monoid W -> L W R + D, so its factors say nothing of its laws; "
            "measure it at weights with order_gap"
        )
    return edit.elements()


def _element_distance(one: Element | None, two: Element | None) -> float:
    """``|L1 (x) R1 - L2 (x) R2|^2 / width + |D1 - D2|^2``, the root, without cancelling against the identity."""
    known = one or two
    assert known is not None
    one, two = one or Element.of(known.shape), two or Element.of(known.shape)
    if one.has_bias or two.has_bias:
        one, two = one.with_bias(), two.with_bias()
    one, two = one.to(torch.float64), two.to(torch.float64)
    left, right = one.left - two.left, one.right - two.right
    # the difference is  left (x) R1 + L2 (x) right, with L2 = I + two.left and R1 = I + one.right
    linear = float(left.norm()) ** 2 * _unit_norm2(one.right) + _unit_norm2(two.left) * float(right.norm()) ** 2
    mixed = float(left.trace() + left.inner(two.left)) * float(right.trace() + right.inner(one.right))
    return (max(linear + 2 * mixed, 0.0) / right.shape[0] + float((one.shift - two.shift).norm()) ** 2) ** 0.5


def _unit_norm2(part: LowRank) -> float:
    return part.shape[0] + 2 * float(part.trace()) + float(part.norm()) ** 2
