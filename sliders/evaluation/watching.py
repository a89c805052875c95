"""What a training shows of a slider while it goes and leaves when it ends, whatever the medium."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.concept import Concept
from sliders.runtime.dials import DialContext

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Model = TypeVar("Model", bound=AbstractBackbone)
How = TypeVar("How")


@dataclass(frozen=True)
class Plan(Generic[How]):
    """What a slider is looked at with.

    Args:
        dials: positions, 0 among them.
        scenes: at each position: pictures, or responses to held-out prompts.
        how: these are sampled.
        oracle: the training-free oracle is measured, too.
        samples: shown in a terminal, where the medium's can be.
    """

    dials: Sequence[float]
    scenes: int
    how: How
    oracle: bool = False
    samples: int = 2


@dataclass(frozen=True)
class Finished:
    """What was measured of a finished slider, and written.

    Args:
        summary: the effect, as metadata of the slider's file.
        shown: tables for a terminal.
        files: what was written, by what it is.
        prompt: to try the slider on.
    """

    summary: Mapping[str, str]
    shown: Sequence[object]
    files: Mapping[str, Path]
    prompt: str


@dataclass(frozen=True)
class Watch(ABC, Generic[Model, How]):
    """Looks at a slider of one concept; one is made before the model is read, and says then what cannot be measured.

    Args:
        concept: in the words for the medium.
        plan: what is looked at.
    """

    concept: Concept
    plan: Plan[How]

    def check(self, backbone: Model) -> None:
        """Know of a loaded model, before the first step, whether it can make what is planned.

        Raises:
            SliderError: it cannot.
        """

    @abstractmethod
    def look(self, backbone: Model, turn: DialContext, board: "SummaryWriter | None", step: int) -> Mapping[str, float]:
        """The numbers of a slider on its way; what was made goes to TensorBoard.

        Args:
            backbone: the model.
            turn: the slider's dial.
            board: TensorBoard, if there is one.
            step: of the training.
        """

    @abstractmethod
    def report(self, backbone: Model, turn: DialContext, slider: Slider, folder: Path) -> Finished:
        """Measure a finished slider, and write what was found.

        Args:
            backbone: the model.
            turn: the slider's dial.
            slider: the same, to be attached.
            folder: to write into.
        """
