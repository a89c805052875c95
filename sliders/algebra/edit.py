"""Edits of named weights.

Every closed-form edit is an element of the affine monoid ``[W b] -> L [W b] R + D`` on each of its layers; what a
trained slider is at one position of its dial is the simplest of them, a translation ``W -> W + D``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, final, overload

import torch
from torch import Tensor

from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError

T = TypeVar("T")


class Edit(ABC):
    """A change of some of a model's layers, by the names of the modules."""

    @property
    @abstractmethod
    def modules(self) -> tuple[str, ...]:
        """The modules that it changes."""

    @abstractmethod
    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias of ``module`` after the edit, as new tensors.

        A layer that has no bias (None) is given one where the edit makes one.

        Args:
            module: the layer's name.
            weight: ``[out, in]``, of a convolution ``[out, in, high, wide]``.
            bias: ``[out]``.
        """

    @abstractmethod
    def inverse(self) -> "Edit":
        """The edit that takes this one back.

        Raises:
            SliderError: there is none; the message names the module and what forbids it.
        """

    def apply(self, module: str, weight: Tensor) -> Tensor:
        """The weight ``[out, in, ...]`` of ``module`` after the edit, as a new tensor, for a layer without a bias.

        Raises:
            SliderError: the edit makes a bias; use `apply_layer`.
        """
        edited, bias = self.apply_layer(module, weight, None)
        if bias is not None:
            raise SliderError(f"the edit gives {module!r} a bias as well; use apply_layer, which returns both")
        return edited

    @overload
    def __matmul__(self: "Translation", first: "Translation") -> "Translation": ...
    @overload
    def __matmul__(self: "Affine", first: "Factored") -> "Affine": ...
    @overload
    def __matmul__(self: "Factored", first: "Affine") -> "Affine": ...
    @overload
    def __matmul__(self, first: "Edit") -> "Edit": ...
    def __matmul__(self, first: "Edit") -> "Edit":
        """This edit after ``first``: in the monoid where both are, and otherwise a `Chain`.

        Raises:
            SliderError: the two are for unlike weights.
        """
        if isinstance(self, Identity) or isinstance(first, Identity):
            return first if isinstance(self, Identity) else self
        if isinstance(self, Translation) and isinstance(first, Translation):
            return first + self
        if isinstance(self, Factored) and isinstance(first, Factored):
            return Affine(_merged(first.elements(), self.elements(), lambda one, two: two @ one))
        return Chain([*_steps(first), *_steps(self)])


class Factored(Edit):
    """An edit in the affine monoid, known exactly from its factors."""

    @abstractmethod
    def elements(self) -> Mapping[str, Element]:
        """What it does to each of its modules."""


@final
class Identity(Factored):
    """The edit that changes nothing."""

    @property
    def modules(self) -> tuple[str, ...]:
        return ()

    def elements(self) -> Mapping[str, Element]:
        return {}

    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.clone(), None if bias is None else bias.clone()

    def inverse(self) -> "Identity":
        return self


@final
class Translation(Factored, Mapping[str, LowRank]):
    """``W -> W + B A`` on each named module.  Translations commute, associate and invert exactly."""

    def __init__(self, updates: Mapping[str, LowRank]) -> None:
        self._updates = dict(updates)

    def __getitem__(self, module: str) -> LowRank:
        return self._updates[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(self._updates)

    def elements(self) -> Mapping[str, Element]:
        return {module: Element.of(update.shape, shift=update) for module, update in self.items()}

    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        kept = None if bias is None else bias.clone()
        if module not in self._updates:
            return weight.clone(), kept
        update = self._updates[module]
        if tuple(weight.shape) != tuple(update.shape):
            raise SliderError(f"the edit changes {module!r} by {update.shape}, but the weight is {tuple(weight.shape)}")
        wide = torch.promote_types(torch.promote_types(weight.dtype, update.B.dtype), torch.float32)
        edited = weight.to(wide) + update.to(weight.device, wide).dense()
        return edited.to(weight.dtype), kept  # rounded once

    def inverse(self) -> "Translation":
        return -self

    def __add__(self, other: "Translation") -> "Translation":
        if not isinstance(other, Translation):
            return NotImplemented
        return Translation(_merged(self, other, lambda one, two: one + two))

    def __mul__(self, scale: float) -> "Translation":
        return Translation({module: update * scale for module, update in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "Translation":
        return self * -1.0

    def __sub__(self, other: "Translation") -> "Translation":
        return self + -other

    def norm(self) -> float:
        """The Frobenius norm over all modules."""
        return sum(float(update.norm()) ** 2 for update in self.values()) ** 0.5


@final
class Affine(Factored, Mapping[str, Element]):
    """``[W b] -> L [W b] R + D`` on each named module: closed under ``@``, with an inverse where L and R have one.

    ``f + g`` and ``s * f`` are those of displacements: what they add to ``W`` is ``f(W) - W`` plus ``g(W) - W``, and
    ``s`` times ``f(W) - W``.  They are refused where that is not in the monoid.
    """

    def __init__(self, elements: Mapping[str, Element]) -> None:
        self._elements = dict(elements)

    def __getitem__(self, module: str) -> Element:
        return self._elements[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._elements)

    def __len__(self) -> int:
        return len(self._elements)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(self._elements)

    def elements(self) -> Mapping[str, Element]:
        return self

    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if module not in self._elements:
            return weight.clone(), None if bias is None else bias.clone()
        with _naming(module):
            return self._elements[module].apply(weight, bias)

    def inverse(self) -> "Affine":
        return self._each(lambda element: element.inverse())

    def __add__(self, other: Factored) -> "Affine":
        return Affine(_merged(self, other.elements(), lambda one, two: one + two))

    __radd__ = __add__

    def __mul__(self, scale: float) -> "Affine":
        return self._each(lambda element: element * scale)

    __rmul__ = __mul__

    def trim(self) -> "Affine":
        """The same edit by as few columns as its factors need; composing adds columns up."""
        return self._each(lambda element: element.trim())

    def _each(self, change: Callable[[Element], Element]) -> "Affine":
        changed: dict[str, Element] = {}
        for module, element in self.items():
            with _naming(module):
                changed[module] = change(element)
        return Affine(changed)


@final
class Chain(Edit):
    """Edits one after the other, the first one first: what ``@`` gives where one of them is outside the monoid."""

    def __init__(self, steps: Sequence[Edit]) -> None:
        self.steps = tuple(steps)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(module for step in self.steps for module in step.modules))

    def apply_layer(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = weight.clone(), None if bias is None else bias.clone()
        for step in self.steps:
            weight, bias = step.apply_layer(module, weight, bias)
        return weight, bias

    def inverse(self) -> "Chain":
        return Chain([step.inverse() for step in reversed(self.steps)])


@contextmanager
def _naming(module: str) -> Iterator[None]:
    """Put the module's name before what a layer's element complains of."""
    try:
        yield
    except SliderError as error:
        raise SliderError(f"{module!r}: {error}") from None


def _merged(one: Mapping[str, T], two: Mapping[str, T], both: Callable[[T, T], T]) -> dict[str, T]:
    """All modules of either; where they share one, ``both`` of the two."""
    merged = dict(one)
    for module, part in two.items():
        with _naming(module):
            merged[module] = both(merged[module], part) if module in merged else part
    return merged


def _steps(edit: Edit) -> tuple[Edit, ...]:
    return edit.steps if isinstance(edit, Chain) else (edit,)
