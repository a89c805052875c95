"""Edits of named weights.

Every edit in this package is an element of the affine monoid ``W -> L W R + D``; what a trained slider is at one
position of its dial is the simplest of them, a translation ``W -> W + D``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


class Edit(ABC):
    """A change of some of a model's weights, by the names of the modules that hold them."""

    @property
    @abstractmethod
    def modules(self) -> tuple[str, ...]:
        """The modules that it changes."""

    @abstractmethod
    def apply(self, module: str, weight: Tensor) -> Tensor:
        """The weight of ``module`` after the edit, as a new tensor."""


class Translation(Edit, Mapping[str, LowRank]):
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

    def apply(self, module: str, weight: Tensor) -> Tensor:
        if module not in self._updates:
            return weight.clone()
        update = self._updates[module]
        if tuple(weight.shape) != tuple(update.shape):
            raise SliderError(f"the edit changes {module!r} by {update.shape}, but the weight is {tuple(weight.shape)}")
        wide = torch.promote_types(torch.promote_types(weight.dtype, update.B.dtype), torch.float32)
        return (weight.to(wide) + update.to(weight.device, wide).dense()).to(weight.dtype)  # rounded once

    def __add__(self, other: "Translation") -> "Translation":
        merged = dict(self._updates)
        for module, update in other.items():
            try:
                merged[module] = merged[module] + update if module in merged else update
            except SliderError as error:
                raise SliderError(f"{module!r}: {error}") from None
        return Translation(merged)

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
