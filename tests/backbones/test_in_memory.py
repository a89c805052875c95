"""Models that are in memory already: taken as they are, and called what the backbone was told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.factory import slider


def lm(dtype: torch.dtype = torch.float32) -> Any:
    return tiny_lm.language_model("llama", tiny_lm.CHAT).to(dtype)


def speaking(model: Any, **options: Any) -> CausalLMBackbone:
    backbone = CausalLMBackbone("mine", support=5, prompt_tokens=32, **options)
    backbone.use(model.lm, model.tokenizer)
    return backbone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_language_model_keeps_its_precision_whatever_was_asked_for(dtype: torch.dtype) -> None:
    model = lm(dtype)
    backbone = speaking(model, dtype="float16")
    assert backbone.dtype == dtype
    assert {weight.dtype for weight in model.lm.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_keeps_the_precision_of_its_unet(dtype: torch.dtype) -> None:
    pipe = tiny.stable_diffusion().to(dtype)
    backbone = UNetBackbone("mine", dtype="float16")
    backbone.use(pipe)
    assert backbone.dtype == dtype
    assert backbone.encode(["a person"])["prompt_embeds"].dtype == dtype
    assert {weight.dtype for weight in pipe.unet.parameters()} == {dtype}


def test_what_is_asked_goes_to_where_the_model_is() -> None:
    """Also if it is moved by whoever has it."""
    model = lm()
    backbone = speaking(model)
    assert backbone.encode(["day"])["prefix"].device.type == backbone.device.type == "cpu"
    model.lm.to("meta")
    assert backbone.encode(["day"])["prefix"].device.type == backbone.device.type == "meta"
    assert backbone.responses(["day"], 3)["tokens"].device.type == backbone.sampler.network.device.type == "meta"


def test_it_is_not_copied_but_frozen_and_nothing_is_loaded_after_it() -> None:
    """There is nothing of the name to load; the control."""
    model = lm()
    model.lm.train().requires_grad_(True)
    backbone = speaking(model)
    backbone.load()
    assert backbone.lm is model.lm
    assert not model.lm.training
    assert not any(weight.requires_grad for weight in model.lm.parameters())
    pipe, pictures = tiny.stable_diffusion(), UNetBackbone("/nowhere/mine")
    pictures.use(pipe)
    pictures.load()
    assert pictures.unet is pipe.unet
    for other in (CausalLMBackbone("/nowhere/mine"), UNetBackbone("/nowhere/mine")):
        with pytest.raises(Exception, match="no base model at /nowhere/mine"):
            other.load()


def test_its_slider_is_written_without_fetching_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under the name of a model that could be fetched; and it turns the same model in its own library."""

    def refuse(name: str) -> Path:
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setattr("sliders.backbones.language.loading.fetch", refuse)
    model, backbone = lm(), CausalLMBackbone("smollm2", prompt_tokens=32)
    with pytest.raises(AssertionError, match="was fetched"):
        backbone.load()  # the control
    backbone.use(model.lm, model.tokenizer)
    made = slider(backbone, dict.fromkeys(backbone.select_targets(["attention"]), 2))
    place = backbone.save_slider(made, tmp_path)
    assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        base = model.lm(ids).logits
        with attach(backbone, [made], {made.name: 1.0}):
            turned = model.lm(ids).logits
        torch.testing.assert_close(PeftModel.from_pretrained(model.lm, str(place))(ids).logits, turned)
    assert (turned - base).abs().max() > 1e-2
