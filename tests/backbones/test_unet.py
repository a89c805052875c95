"""Stable Diffusion with a UNet, noise and v prediction."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from tests import tiny
from tests.backbones.contract import LatentDiffusionContract
from tests.factory import slider
from tests.training.runs import equal, randomize


class TestStableDiffusion(LatentDiffusionContract):
    """The shape of Stable Diffusion 1.x."""

    @classmethod
    def pipeline(cls) -> Any:
        return tiny.stable_diffusion()

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return UNetBackbone(str(folder))


class TestVPrediction(LatentDiffusionContract):
    """The shape of Stable Diffusion 2.x."""

    prediction = "v_prediction"

    @classmethod
    def pipeline(cls) -> Any:
        return tiny.stable_diffusion("v_prediction")

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return UNetBackbone(str(folder), channels_last=False)


def test_a_model_of_another_family_is_an_error(tmp_path: Path) -> None:
    """SDXL takes other conditionings; the message names the folder."""
    folder = tiny.save(tiny.stable_diffusion_xl(), tmp_path / "xl")
    with pytest.raises(SliderError, match="xl"):
        UNetBackbone(str(folder)).load()


@pytest.mark.parametrize("name", ["no/such/folder", "./folder", "folder"])
def test_what_cannot_be_a_hub_name_is_not_looked_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder that is missing is said to be missing, without going to the network."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SliderError, match="no base model at"):
        UNetBackbone(name).load()


@pytest.mark.slow
def test_compiled_it_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sliders attached, with one in training, and when they are gone, with the same weights bit by bit.

    The graphs are torch's, and are run as they are traced; the language model's test compiles them.
    """
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    folder = str(tiny.save(tiny.stable_diffusion(), tmp_path / "sd"))
    said: list[dict[str, torch.Tensor]] = []
    for compiled in (False, True):
        model = UNetBackbone(folder, compile=compiled)
        model.load()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        names = model.select_targets(["xattn"])[:1]  # each one breaks the graph
        state = {"latents": model.start([1, 2]), "timestep": torch.tensor([300, 700])}
        prompt, dials = model.encode(["a person", "a dog"]), torch.tensor([1.0, -2.0])
        answers: dict[str, torch.Tensor] = {}
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            answers["base"] = model.predict(state, prompt)
            assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
            with attach(model, [slider(model, dict.fromkeys(names, 2))], {"s": 1.0}) as turned:
                answers["attached"] = model.predict(state, prompt)
                turned.set({"s": dials})
                answers["of each row"] = model.predict(state, prompt)
        with Adapter(model, names, 2, 2.0) as adapter:
            randomize(adapter)
            with adapter.dial(dials):
                answers["in training"] = model.predict(state, prompt)
                answers["in training"].square().sum().backward()
            answers |= {f"gradient {k}": p.grad for k, p in enumerate(adapter.parameters()) if p.grad is not None}
        with torch.no_grad():
            answers["base again"] = model.predict(state, prompt)  # a graph made anew may round otherwise
        assert equal(before, model.state_dict())
        said.append(answers)
    for name, wanted in said[0].items():
        torch.testing.assert_close(said[1][name], wanted, rtol=1e-3, atol=1e-4, msg=name)
    assert float((said[0]["attached"] - said[0]["base"]).abs().max()) > 1e-3
