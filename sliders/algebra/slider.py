"""Dials: from a number to an edit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from sliders.algebra.edit import Edit, Translation


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
