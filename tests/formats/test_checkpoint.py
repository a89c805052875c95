"""Stored models against loaded ones: every layer under its own name, with the same numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.formats.checkpoint import Checkpoint, differences
from sliders.formats.stored import places
from sliders.runtime.layers import editable_modules, layer_weights
from tests import tiny, tiny_lm

LANGUAGE = ["gpt2", "llama", "qwen2", "neox"]


def saved(kind: str, folder: Path) -> AbstractBackbone:
    """A loaded model, and its files in the folder."""
    if kind in LANGUAGE:
        tiny_lm.language_model(kind).save_pretrained(folder)
        model: AbstractBackbone = CausalLMBackbone(str(folder))
    elif kind == "sdxl":
        model = SDXLBackbone(str(tiny.save(tiny.stable_diffusion_xl(), folder)))
    else:
        model = UNetBackbone(str(tiny.save(tiny.stable_diffusion(), folder)))
    model.load()
    return model


@pytest.mark.parametrize("kind", ["sd", "sdxl", *LANGUAGE])
def test_every_layer_of_the_loaded_model_is_found_with_its_numbers(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    stored = Checkpoint(tmp_path)
    names = editable_modules(model)
    assert names
    for name in names:
        (weight, bias), (kept, kept_bias) = layer_weights(model, name), stored.layer(name)
        assert torch.equal(weight, kept), name
        assert (bias is None) == (kept_bias is None), name
        assert bias is None or kept_bias is None or torch.equal(bias, kept_bias), name
        assert stored.is_layer(name)
    assert differences(stored, Checkpoint(tmp_path)) == ([], {})


def test_names_of_older_files_are_those_of_the_model(tmp_path: Path) -> None:
    """An autoencoder as Stable Diffusion 1.x has it, GPT-2 without its prefix, a text encoder with its old buffer."""
    model = saved("sd", tmp_path / "sd")
    file = next((tmp_path / "sd" / "vae").glob("*.safetensors"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, before in old.items():
        state = {key.replace(f"attentions.0.{new}", f"attentions.0.{before}"): t for key, t in state.items()}
    assert any(".query." in key for key in state)
    save_file(state, file, {"format": "pt"})
    text = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    buffer = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    state = {f"text_model.{key.removeprefix('text_model.')}": t for key, t in load_file(text).items()}
    save_file({**state, **buffer}, text, {"format": "pt"})
    stored = Checkpoint(tmp_path / "sd")
    for name in editable_modules(model):
        assert torch.equal(layer_weights(model, name)[0], stored.layer(name)[0]), name
    assert not [name for name in stored if name.endswith("position_ids")]

    bare = saved("gpt2", tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    save_file({key.removeprefix("transformer."): t for key, t in load_file(file).items()}, file, {"format": "pt"})
    assert "h.0.attn.c_attn.weight" in load_file(file)
    stored = Checkpoint(tmp_path / "gpt2")
    for name in editable_modules(bare):
        assert torch.equal(layer_weights(bare, name)[0], stored.layer(name)[0]), name


def test_what_a_library_makes_of_several_tensors_is_none_of_them(tmp_path: Path) -> None:
    """The experts of a mixture are stored one by one and loaded as one parameter."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    lm = AutoModelForCausalLM.from_config(config)
    lm.save_pretrained(tmp_path)
    found = places(lm, [tmp_path / "model.safetensors"])
    assert not [name for name in found if "experts" in name]
    for name, place in found.items():
        assert torch.equal(place.read(), lm.state_dict()[name]), name
