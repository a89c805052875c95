"""Dials: from a number to an edit."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from sliders.algebra.edit import Affine, Edit, Factored, Translation


class Dial(ABC):
    """Anything that gives an edit for every position of a dial."""

    @abstractmethod
    def at(self, position: float) -> Edit:
        """The edit at this position; at 0 it changes nothing."""


@dataclass(frozen=True)
class Piece:
    """An edit of which a dial gives a share.

    Args:
        edit: ``f``; at position ``s`` the dial adds ``clamp(s, low, high) (f(W) - W)`` to the weights.
        low, high: the limits of the share.
    """

    edit: Factored
    low: float = -math.inf
    high: float = math.inf


class Piecewise(Dial):
    """A dial that is straight but for bends at the limits of its pieces, so that all of it can run side by side.

    ``at(s)`` takes ``W`` to ``W`` plus what each piece adds there.
    """

    name: str

    @abstractmethod
    def pieces(self) -> tuple[Piece, ...]:
        """What it is made of."""


@dataclass(frozen=True)
class Slider(Piecewise):
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

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(self.update),)

    def digest(self) -> str:
        """A hash of the layers and their factors, whatever the slider is called."""
        content = hashlib.sha256()
        for module, update in sorted(self.update.items()):
            content.update(module.encode())
            for factor in (update.A, update.B):
                content.update(factor.detach().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def __neg__(self) -> "Slider":
        """The same slider with its ends swapped; of the metadata only the base stays true."""
        return Slider(self.name, -self.update, common_base(self))


def common_base(*dials: "NamedDial") -> dict[str, str]:
    """What is known of all dials alike: the base that they were made for."""
    first, *others = (dial.metadata for dial in dials)
    return {
        key: value
        for key, value in first.items()
        if key.startswith("sliders.base_") and all(other.get(key) == value for other in others)
    }


@dataclass(frozen=True)
class Hinge(Piecewise):
    """Two sliders on one dial: the negative side of ``left`` below 0 and the positive side of ``right`` above.

    On either side of 0 it is additive.  Across 0 it is not a one-parameter group, unless both have one update: going
    1 up and 2 down is not going 1 down (`sliders.algebra.laws.is_group` says where it breaks).
    """

    name: str
    left: Slider
    right: Slider

    def at(self, position: float) -> Translation:
        return (self.left if position < 0 else self.right).at(position)

    def pieces(self) -> tuple[Piece, ...]:
        return Piece(self.left.update, high=0.0), Piece(self.right.update, low=0.0)

    @property
    def metadata(self) -> dict[str, str]:
        return common_base(self.left, self.right)


def hinge(left: Slider, right: Slider) -> Hinge:
    """``left`` below 0 and ``right`` above, named after both."""
    return Hinge(f"{left.name}|{right.name}", left, right)


@dataclass(frozen=True)
class Interpolated(Piecewise):
    """A share of any edit: ``s -> (W -> W + s (f(W) - W))``, on a straight line from ``W`` to ``f(W)``.

    It is a one-parameter group only where ``f`` is a translation: two halves of an ablation are three quarters of it.

    Args:
        name: what to call it.
        edit: ``f``, at dial 1; it acts on each weight from one side at most.
        metadata: what is known of it (method, base model), as strings.
    """

    name: str
    edit: Affine
    metadata: Mapping[str, str] = field(default_factory=dict)

    def at(self, position: float) -> Affine:
        return self.edit * position

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(self.edit),)


NamedDial = Slider | Hinge | Interpolated
"""A dial that has a file: it says what it is called and which base it was made for."""
