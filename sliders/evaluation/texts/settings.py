"""How texts are sampled and measured, as configs and flags say it; nothing here needs a model's libraries."""

from dataclasses import dataclass
from pathlib import Path

from sliders.errors import SliderError, check_at_least_1
from sliders.resources.shipped import shipped

NEUTRAL = shipped("data/text/neutral.txt")


@dataclass(frozen=True)
class TextSampling:
    """How texts are sampled and measured.

    Args:
        tokens: of the longest response, at least 1.
        temperature: of the sampling; 0 takes the likeliest token.
        batch: responses sampled together, at least 1.
        first_seed: of the first prompt; the others count on.
        neutral: a text file with a neutral paragraph a line, for perplexity and divergence.

    Raises:
        SliderError: a number is below what it can be.
    """

    tokens: int = 40
    temperature: float = 0.8
    batch: int = 64
    first_seed: int = 1000
    neutral: Path = NEUTRAL

    def __post_init__(self) -> None:
        check_at_least_1("speaking", self, "tokens", "batch")
        if not self.temperature >= 0:
            raise SliderError(f"speaking.temperature is {self.temperature:g}; it must be 0 or more")
