"""Models that make a picture by following their predictions from noise."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.guidance import Predictor
from sliders.batch import TensorBatch
from sliders.formats import diffusers


class DiffusionBackbone(AbstractBackbone):
    """A model that makes a picture by following its predictions from noise."""

    modality = "image"
    space = "noise or velocity"

    def save_slider(self, slider: Slider, folder: Path) -> Path:
        file = folder / f"{slider.name}.safetensors"
        diffusers.save(slider, file)
        return file

    def usage(self, slider: Slider, saved: Path) -> list[str]:
        return [
            f"pipe.load_lora_weights({str(saved)!r}, adapter_name={slider.name!r})",
            f"pipe.set_adapters([{slider.name!r}], [1.0])",
        ]

    @abstractmethod
    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width of pictures in pixels: what is asked for, otherwise the model's own.

        Raises:
            SliderError: the model has no pictures of this size; with the nearest that it has.
        """

    @abstractmethod
    def start(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Where trajectories begin, ``[n, ...]``: a row for each seed, the same whatever stands in the other rows.

        Args:
            seeds: of the rows.
            height: of the pictures in pixels; the model's own if not given.
            width: likewise.

        Raises:
            SliderError: the model has no pictures of this size.
        """

    @abstractmethod
    def trajectory(self, predict: Predictor, start: Tensor, steps: int, seeds: Sequence[int]) -> Iterator[TensorBatch]:
        """The states that the model visits when ``predict`` is followed for ``steps`` steps from ``start``.

        Yields ``calls(steps) + 1`` states: those that ``predict`` is asked about, each at the time at which it really
        is, and the finished one.  Nothing is predicted before the next state is asked for.

        Args:
            predict: is followed.
            start: ``[n, ...]``, what `start` gave for these seeds.
            steps: of sampling.
            seeds: of the rows: where steps add noise, each row's is its own, whatever stands in the other rows.

        Raises:
            SliderError: the model cannot make so many steps.
        """

    def calls(self, steps: int) -> int:
        """How often a trajectory of so many steps asks its predictor: once a step, unless the model says otherwise."""
        return steps

    @abstractmethod
    def decode(self, finished: TensorBatch) -> Tensor:
        """Pictures ``[n, 3, h, w]`` in [-1, 1] of finished states."""
