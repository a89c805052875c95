"""What several commands take, and what they use where nothing is said.  Nothing here needs a model's libraries."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

from sliders.backbones.precision import Precision
from sliders.errors import SliderError
from sliders.resources.paths import Source

AVATARS = Source("avatars")
JUDGE = Source("avatars")


class Backbone(Protocol):
    """A model with all its settings: what a `sliders.backbones.base.AbstractBackbone` is to a command's flags."""

    def place(self, device: str | None, dtype: Precision | None) -> None:
        """Say where its weights shall be, and in which precision."""
        ...


T = TypeVar("T")


def listed(values: T | Sequence[T] | None) -> list[T]:
    """What a flag lists; one value is as good as a list of one, and nothing is an empty list."""
    return [] if values is None else list(values) if isinstance(values, list | tuple) else [cast("T", values)]


def some(flag: str, values: T | Sequence[T] | None) -> list[T]:
    """`listed`, of at least one.

    Raises:
        SliderError: it is empty.
    """
    if not (found := listed(values)):
        raise SliderError(f"{flag} is empty; give at least one")
    return found


def one_each(dial: float | list[float], sliders: Sequence[object]) -> Sequence[float]:
    """A position for every slider; one number, or a list of one, turns them all.

    Raises:
        SliderError: there are several numbers, but not one for each.
    """
    dials = dial if isinstance(dial, list) and len(dial) != 1 else listed(dial) * len(sliders)
    if len(dials) != len(sliders):
        raise SliderError(f"--dial has {len(dials)} numbers for {len(sliders)} sliders; give one each")
    return dials
