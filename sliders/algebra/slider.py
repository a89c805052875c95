"""Dials: from a number to an edit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from sliders.algebra.edit import Affine, Edit, Translation


class Dial(ABC):
    """Anything that gives an edit for every position of a dial."""

    @abstractmethod
    def at(self, position: float) -> Edit:
        """The edit at this position; at 0 it changes nothing."""


@dataclass(frozen=True)
class Slider(Dial):
    """A low-rank update with a dial: the one-parameter group ``s -> (W -> W + s B A)``.

    Args:
        name: what to call it.
        update: the translation at dial 1.
        metadata: what is known of it (concept, base model, training, measured effect), as strings.
    """

    name: str
    update: Translation
    metadata: Mapping[str, str] = field(default_factory=dict)

    def at(self, position: float) -> Translation:
        return self.update * position

    def __neg__(self) -> "Slider":
        """The same slider with its ends swapped; of the metadata only the base stays true."""
        base = {key: value for key, value in self.metadata.items() if key.startswith("sliders.base_")}
        return Slider(self.name, -self.update, base)


@dataclass(frozen=True)
class Hinge(Dial):
    """Two sliders on one dial: the negative side of ``left`` below 0 and the positive side of ``right`` above.

    On either side of 0 it is additive.  Across 0 it is not a one-parameter group, unless both have one update: going
    1 up and 2 down is not going 1 down (`sliders.algebra.laws.is_group` says where it breaks).
    """

    name: str
    left: Slider
    right: Slider

    def at(self, position: float) -> Translation:
        return (self.left if position < 0 else self.right).at(position)


def hinge(left: Slider, right: Slider) -> Hinge:
    """``left`` below 0 and ``right`` above, named after both."""
    return Hinge(f"{left.name}|{right.name}", left, right)


@dataclass(frozen=True)
class Partial(Dial):
    """A share of any edit: ``s -> (W -> W + s (f(W) - W))``, on a straight line from ``W`` to ``f(W)``.

    It is a one-parameter group only where ``f`` is a translation: two halves of an ablation are three quarters of it.

    Args:
        name: what to call it.
        edit: ``f``, at dial 1; it acts on each weight from one side at most.
    """

    name: str
    edit: Affine

    def at(self, position: float) -> Affine:
        return self.edit * position
