"""What a user can ask for, within limits."""

from dataclasses import dataclass

from torch import Tensor

from sliders.errors import SliderError
from sliders.evaluation.pictures.sampling import Sampling, Scene
from sliders.page.painting import Positions, Row
from sliders.page.safety import clean_text, short, whole, within

FARTHEST = 8.0
LARGEST = 1536
MOST_ON_A_SIDE = 7
MOST_CHOSEN = 12


@dataclass(frozen=True)
class Canvas:
    """What is painted, whatever the dials.

    Args:
        prompt: what the picture shows.
        seed: of the noise.
        steps: of sampling.
        guidance: classifier-free guidance scale.
        start: the step at which the sliders set in: later ones keep more of the base's composition.
        height: in pixels; the model's own if None.
        width: likewise.
    """

    prompt: str
    seed: int = 0
    steps: int = 15
    guidance: float = 4.0
    start: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        short(self.prompt, "the prompt", 300)
        whole(self.seed, "the seed", 0, 2**31 - 1)
        whole(self.steps, "steps", 1, 50)
        within(self.guidance, "guidance", 0, 20)
        whole(self.start, "the start step", 0, self.steps)
        for name in ("height", "width"):
            if (side := getattr(self, name)) is not None:
                whole(side, f"the {name}", 8, LARGEST)

    @property
    def scene(self) -> Scene:
        """Its prompt and seed."""
        return Scene(self.prompt, int(self.seed))

    def sampling(self, batch: int = 16) -> Sampling:
        """How it is sampled."""
        height, width = (None if side is None else int(side) for side in (self.height, self.width))
        return Sampling(int(self.steps), self.guidance, batch, height, width)

    def row(self, positions: Positions) -> Row:
        """Its picture with dials at these positions from the start step on."""
        return Row(self.scene, positions, range(int(self.start), int(self.steps)))


@dataclass(frozen=True)
class Axis:
    """A dial that a grid goes along, over ``count`` positions from ``low`` to ``high``."""

    key: str
    low: float = -2.0
    high: float = 2.0
    count: int = 5

    def __post_init__(self) -> None:
        whole(self.count, "the number of positions", 2, MOST_ON_A_SIDE)
        for end in (self.low, self.high):
            within(end, f"an end of {clean_text(self.key)}", -FARTHEST, FARTHEST)

    @property
    def positions(self) -> list[float]:
        """All of them."""
        return [self.low + (self.high - self.low) * k / (self.count - 1) for k in range(int(self.count))]


@dataclass(frozen=True)
class Speech:
    """How the language model answers.

    Args:
        message: of the user.
        instruction: what stands before it; empty for none.
        chat: put both into the model's chat template; otherwise they are continued as plain text.
        seed: of the sampling.
        tokens: of the longest answer.
        temperature: 0 takes the likeliest token.
    """

    message: str
    instruction: str = ""
    chat: bool = True
    seed: int = 0
    tokens: int = 64
    temperature: float = 0.8

    def __post_init__(self) -> None:
        short(self.message, "the message", 600)
        short(self.instruction, "the instruction", 300)
        whole(self.seed, "the seed", 0, 2**31 - 1)
        whole(self.tokens, "tokens", 1, 160)
        within(self.temperature, "temperature", 0, 2)
        if not self.message.strip():
            raise SliderError("the message is empty; write something to the model")


@dataclass(frozen=True)
class Drawn:
    """The base's picture and that with the sliders, ``[3, h, w]`` in [-1, 1], and how long it took."""

    base: Tensor
    turned: Tensor
    seconds: float
