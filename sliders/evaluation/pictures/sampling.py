"""Pictures over a dial: the same prompts and seeds at every position."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.guidance import Predictor, guided
from sliders.batch import TensorBatch, join
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.evaluation.pictures.settings import Sampling
from sliders.runtime.dials import DialContext
from sliders.teacher.training_free import oracle


@dataclass(frozen=True)
class Scene:
    """A prompt and the seed of its noise."""

    prompt: str
    seed: int


def scenes(prompts: Sequence[str], count: int, first_seed: int = 1000) -> list[Scene]:
    """``count`` scenes that go through the prompts, each with a seed of its own.

    Raises:
        SliderError: ``count`` is below 1.
    """
    if count < 1:
        raise SliderError(f"pictures is {count}; it must be at least 1")
    return [Scene(prompts[i % len(prompts)], first_seed + i) for i in range(count)]


def check_sampling(backbone: DiffusionBackbone, how: Sampling) -> None:
    """Know before any work is done whether a loaded model can make pictures like this.

    Raises:
        SliderError: not of this size, or not in so many steps.
    """
    backbone.size(how.height, how.width)
    backbone.calls(how.steps)


def conditionings(backbone: DiffusionBackbone, prompts: Sequence[str]) -> tuple[TensorBatch, TensorBatch]:
    """Of the prompts, and of the empty prompt as often."""
    return backbone.encode(prompts), backbone.encode([""] * len(prompts))


def follow(
    backbone: DiffusionBackbone, predict: Predictor, seeds: Sequence[int], how: Sampling
) -> Iterator[TensorBatch]:
    """The states from the noise of these seeds to the finished ones; see `DiffusionBackbone.trajectory`."""
    start = backbone.start(seeds, how.height, how.width)
    return backbone.trajectory(predict, start, how.steps, seeds, how.height, how.width)


def finish(backbone: DiffusionBackbone, predict: Predictor, seeds: Sequence[int], how: Sampling) -> Tensor:
    """Follow a predictor from noise to pictures ``[n, 3, h, w]`` in [-1, 1]."""
    *_, finished = follow(backbone, predict, seeds, how)
    return backbone.decode(finished).cpu().float()


@torch.no_grad()
def sample(backbone: DiffusionBackbone, wanted: Sequence[Scene], how: Sampling | None = None) -> Tensor:
    """A picture of each scene, with whatever is attached to the model; ``[n, 3, h, w]``."""
    how = how or Sampling()
    pictures = []
    for start in range(0, len(wanted), how.batch):
        part = wanted[start : start + how.batch]
        prompts, seeds = [scene.prompt for scene in part], [scene.seed for scene in part]
        made = backbone.pictures(prompts, seeds, how.steps, how.guidance, how.height, how.width)
        pictures.append(made.cpu().float())
    return torch.cat(pictures)


@torch.no_grad()
def visited(backbone: DiffusionBackbone, wanted: Sequence[Scene], how: Sampling) -> tuple[TensorBatch, Tensor]:
    """A third of the states that the model visits on its way to these scenes, and which scene each belongs to.

    These are the base's own with nothing attached, or with dials at 0.  The scenes' indices are int64 ``[n]``, and in
    turn: all scenes at one time, then all at the next.
    """
    prompt, empty = conditionings(backbone, [s.prompt for s in wanted])
    predict = guided(backbone, prompt, empty, how.guidance)
    path = list(follow(backbone, predict, [s.seed for s in wanted], how))[:-1]
    kept = path[1::3] or path
    return join(kept), torch.arange(len(wanted)).repeat(len(kept))


def _over_dial(
    make: Callable[[float, list[Scene]], Tensor], wanted: Sequence[Scene], positions: Sequence[float], batch: int
) -> Tensor:
    """Pictures ``[positions, scenes, 3, h, w]``; a batch stands at one position, which a model can be folded for."""
    parts = [list(wanted[start : start + batch]) for start in range(0, len(wanted), batch)]
    return torch.stack([torch.cat([make(position, part) for part in parts]) for position in positions])


@torch.no_grad()
def sample_dial(
    backbone: DiffusionBackbone,
    turn: DialContext,
    wanted: Sequence[Scene],
    positions: Sequence[float],
    how: Sampling | None = None,
) -> Tensor:
    """Every scene at every position of a dial: ``[positions, scenes, 3, h, w]``."""
    how = how or Sampling()

    def make(position: float, part: list[Scene]) -> Tensor:
        with turn(torch.tensor([position], device=backbone.device)):
            return sample(backbone, part, replace(how, batch=len(part)))

    return _over_dial(make, wanted, positions, how.batch)


@torch.no_grad()
def sample_oracle(
    backbone: DiffusionBackbone,
    concept: Concept,
    eta: float,
    wanted: Sequence[Scene],
    positions: Sequence[float],
    how: Sampling | None = None,
) -> Tensor:
    """What a slider that had learnt its target perfectly would show: no training, see `oracle`."""
    how = how or Sampling()

    def make(position: float, part: list[Scene]) -> Tensor:
        prompt, empty = conditionings(backbone, [scene.prompt for scene in part])
        amount = torch.full((len(part),), position * eta, device=backbone.device)
        predict = oracle(backbone, [(concept, amount)], prompt, empty, how.guidance)
        return finish(backbone, predict, [scene.seed for scene in part], how)

    return _over_dial(make, wanted, positions, how.batch)
