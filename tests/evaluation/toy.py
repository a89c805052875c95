"""A model whose laws are known: two linear layers side by side, and one that is bent."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.targets import TargetGroup
from sliders.batch import TensorBatch
from sliders.evaluation.base_states import BaseStates
from tests.factory import lowrank, normal

SCENES = 8


class Toy(AbstractBackbone):
    """``y = one x + other x + tanh(bent x)``."""

    modality = "image"
    space = "noise or velocity"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.bent = (nn.Linear(6, 5).double() for _ in range(3))
        self.requires_grad_(False)

    def load(self) -> None:
        pass

    @property
    def base_model(self) -> str:
        return "toy"

    def fingerprint(self, components: Iterable[str] | None = None) -> str:
        return "toy"

    def target_groups(self) -> dict[str, TargetGroup]:
        return {}

    def encode(self, prompts: Sequence[str]) -> TensorBatch:
        """A prompt is a number."""
        return {"shift": torch.tensor([float(prompt) for prompt in prompts], dtype=torch.float64)}

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        x = state["x"] + conditioning["shift"][:, None]
        return self.one(x) + self.other(x) + torch.tanh(self.bent(x))

    def write(self, folder: Path) -> None:
        raise NotImplementedError

    def save_slider(self, slider: Slider, folder: Path) -> Path:
        raise NotImplementedError

    def usage(self, slider: Slider, saved: Path) -> list[str]:
        return []


def states(model: Toy, batch: int = 5) -> BaseStates:
    """Three states of each scene."""
    x = normal(3 * SCENES, 6, seed=9)
    prompts = [f"{k % SCENES / 10}" for k in range(3 * SCENES)]
    base = model.predict({"x": x}, model.encode(prompts)).float()
    scene = torch.arange(3 * SCENES) % SCENES
    weight = torch.ones((), dtype=torch.float64)
    return BaseStates(model, {"x": x}, prompts, scene, [""], torch.zeros_like(scene), base, weight, batch)


def on(layer: str, name: str, seed: int = 0, rank: int = 2, scale: float = 1.0) -> Slider:
    """A random slider of one layer."""
    return Slider(name, Translation({layer: lowrank((5, 6), rank, seed) * scale}))


def crossing(name: str, column: int, row: int) -> Slider:
    """A slider of the bent layer that reads one input and writes one output."""
    up, down = torch.zeros(5, 1, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    up[column], down[:, row] = 1.5, 1.5
    return Slider(name, Translation({"bent": LowRank(up, down, (5, 6))}))
