"""Models that make a picture by following their predictions from noise."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.guidance import Predictor, guided
from sliders.batch import TensorBatch
from sliders.formats import diffusers


class DiffusionBackbone(AbstractBackbone):
    """A model that makes a picture by following its predictions from noise."""

    modality = "image"
    space = "noise or velocity"
    takes_guidance = False
    """Whether guidance is an input of the model, so that it is guided already."""

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
    def trajectory(
        self,
        predict: Predictor,
        start: Tensor,
        steps: int,
        seeds: Sequence[int],
        height: int | None = None,
        width: int | None = None,
    ) -> Iterator[TensorBatch]:
        """The states that the model visits when ``predict`` is followed for ``steps`` steps from ``start``.

        Yields ``calls(steps) + 1`` states: those that ``predict`` is asked about, each at the time at which it really
        is, and the finished one.  Nothing is predicted before the next state is asked for.

        Args:
            predict: is followed.
            start: ``[n, ...]``, what `start` gave for these seeds.
            steps: of sampling.
            seeds: of the rows: where steps add noise, each row's is its own, whatever stands in the other rows.
            height: of the pictures in pixels, what `start` was given.
            width: likewise.

        Raises:
            SliderError: the model cannot make so many steps.
        """

    def pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Pictures as the model's own library makes them, ``[n, 3, h, w]`` in [-1, 1]; of videos ``[n, frames, ...]``.

        Args:
            prompts: of the rows.
            seeds: of the rows.
            steps: of sampling.
            guidance: what the library calls the guidance scale.
            height: of the pictures in pixels; the model's own if not given.
            width: likewise.

        Raises:
            SliderError: the model has no pictures of this size, or cannot make so many steps.
        """
        predict = guided(self, self.encode(prompts), self.encode([""] * len(prompts)), guidance)
        start = self.start(seeds, height, width)
        *_, finished = self.trajectory(predict, start, steps, seeds, height, width)
        return self.decode(finished)

    def calls(self, steps: int) -> int:
        """How often a trajectory of so many steps asks its predictor: once a step, unless the model says otherwise."""
        return steps

    @abstractmethod
    def decode(self, finished: TensorBatch) -> Tensor:
        """Pictures ``[n, 3, h, w]`` in [-1, 1] of finished states."""
