"""The tiny model that evaluations are tested on, and a slider for it."""

from pathlib import Path

import pytest
import torch

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.unet import UNetBackbone
from tests import tiny


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackbone:
    """A tiny Stable Diffusion; every test leaves it as it was."""
    folder: Path = tiny.save(tiny.stable_diffusion(), tmp_path_factory.mktemp("base") / "sd")
    model = UNetBackbone(str(folder))
    model.load()
    return model


def random_slider(model: AbstractBackbone, target: str, name: str = "random") -> Slider:
    """One that changes pictures visibly."""
    generator = torch.Generator().manual_seed(3)
    updates = {}
    for module in model.select_targets([target]):
        shape = tuple(model.get_submodule(module).get_parameter("weight").shape)
        inputs = torch.Size(shape[1:]).numel()
        up, down = torch.randn(shape[0], 2, generator=generator), torch.randn(2, inputs, generator=generator)
        updates[module] = LowRank(0.4 * up, down / inputs**0.5, shape)
    return Slider(name, Translation(updates))


@pytest.fixture(params=["xattn", "text-encoder"])
def slider(request: pytest.FixtureRequest, base: DiffusionBackbone) -> Slider:
    """On what predicts, and on what encodes the prompt."""
    return random_slider(base, request.param)
