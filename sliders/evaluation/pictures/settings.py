"""How pictures are sampled, as configs and flags say it; nothing here needs a model's libraries."""

from dataclasses import dataclass

from sliders.errors import check_at_least_1


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled.

    Args:
        steps: of the model's own scheduler, at least 1.
        guidance: classifier-free guidance scale.
        batch: pictures made together, at least 1.
        height: of pictures in pixels; the backbone's own if None.
        width: likewise.

    Raises:
        SliderError: a number is below 1.
    """

    steps: int = 15
    guidance: float = 4.0
    batch: int = 48
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        sides = [name for name in ("height", "width") if getattr(self, name) is not None]
        check_at_least_1("sampling", self, "steps", "batch", *sides)
