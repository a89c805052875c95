"""Weights that a file lacks, has beside the model's, or has in another shape."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.console import hush_libraries
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.resources.shipped import model_folder
from tests import tiny, tiny_lm

Change = Callable[[dict[str, Tensor], str], None]
DAMAGE: dict[str, tuple[Change, str]] = {
    "missing": (lambda state, key: state.__delitem__(key), "lack"),
    "unexpected": (lambda state, key: state.update({f"{key}_of_another": state[key].clone()}), "beside"),
    "mismatched": (lambda state, key: state.update({key: torch.zeros(3, 5, dtype=state[key].dtype)}), "3, 5"),
}
PARTS = ["lm", "unet", "vae", "text_encoder", "text_encoder_2"]


def made(part: str, folder: Path) -> tuple[CausalLMBackbone | UNetBackbone, Path]:
    """A model with that part in a folder, and the part's file."""
    if part == "lm":
        tiny_lm.language_model("llama").save_pretrained(folder)
        return CausalLMBackbone(str(folder)), folder / "model.safetensors"
    if part == "text_encoder_2":
        return SDXLBackbone(str(tiny.save(tiny.stable_diffusion_xl(), folder))), folder / part / "model.safetensors"
    tiny.save(tiny.stable_diffusion(), folder)
    return UNetBackbone(str(folder)), next((folder / part).glob("*.safetensors"))


def changed(file: Path, change: Change, ending: str = "weight") -> str:
    """Change one tensor of a file; returns its key."""
    state = load_file(file)
    key = [key for key in state if key.endswith(ending) and state[key].dim() == 2][-1]
    change(state, key)
    save_file(state, file, {"format": "pt"})
    return key


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_are_not_the_models_are_an_error_that_names_them_and_the_place(
    part: str, damage: str, tmp_path: Path
) -> None:
    model, file = made(part, tmp_path / "model")
    change, says = DAMAGE[damage]
    key = changed(file, change)
    with pytest.raises(SliderError, match=says) as error:
        model.load()
    assert key.removeprefix("text_model.") in str(error.value)
    assert str(file.parent) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", PARTS)
def test_whole_models_load(part: str, tmp_path: Path) -> None:
    """The control: nothing above is refused because of how it is written anew."""
    model, file = made(part, tmp_path / "model")
    changed(file, lambda state, key: None)
    model.load()


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    model, file = made("lm", tmp_path / "model")
    state = load_file(file)
    save_file({key: t for key, t in state.items() if ".layers.1." not in key}, file, {"format": "pt"})
    with pytest.raises(SliderError, match=r"layers\.1\..* and \d+ more"):
        model.load()


def test_what_the_library_says_is_of_no_matter_is_none(tmp_path: Path) -> None:
    """Tied weights that are stored once, and buffers that older versions stored."""
    model, file = made("text_encoder", tmp_path / "sd")
    state = load_file(file)
    state["text_model.embeddings.position_ids"] = torch.arange(32)[None]
    save_file(state, file, {"format": "pt"})
    model.load()
    tiny_lm.language_model("gpt2").save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    CausalLMBackbone(str(tmp_path / "tied")).load()


def test_a_judge_without_some_weights_is_an_error_in_one_line(tmp_path: Path) -> None:
    AttributeJudge({"hat": ["yes", "no"]}, 8).save(tmp_path / "judge.safetensors")
    AttributeJudge.load(tmp_path / "judge.safetensors")
    state, said = load_file(tmp_path / "judge.safetensors"), {"values": '{"hat": ["yes", "no"]}', "width": "8"}
    save_file({k: t for k, t in state.items() if k != "heads.hat.bias"}, tmp_path / "judge.safetensors", said)
    with pytest.raises(SliderError, match=r"heads\.hat\.bias") as error:
        AttributeJudge.load(tmp_path / "judge.safetensors")
    assert "\n" not in str(error.value)


def test_the_libraries_warnings_of_weights_show_where_their_chatter_is_hushed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hush_libraries()
    made("lm", tmp_path / "model")
    changed(tmp_path / "model" / "model.safetensors", DAMAGE["missing"][0])
    seen: list[str] = []
    logger = logging.getLogger("transformers")
    shown = next(handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))
    emit, shown.emit = shown.emit, lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    try:
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        logging.getLogger("transformers.any").warning("Token indices sequence length is longer than all")
    finally:
        shown.emit = emit  # type: ignore[method-assign]
    assert any("MISSING" in said for said in seen)
    assert not any("Token indices" in said for said in seen)
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_comes_up_in_one_precision_in_plain_diffusers_and_makes_our_picture() -> None:
    model = UNetBackbone("avatars", channels_last=False)
    model.load()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model_folder("avatars"))
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    prompt, start = "a smiling person with a hat", model.start([3])
    theirs: Any = pipeline(prompt, num_inference_steps=3, guidance_scale=1.0, latents=start, output_type="pt").images
    text = model.encode([prompt])
    *_, finished = model.trajectory(lambda state: model.predict(state, text), start, 3, [3])
    torch.testing.assert_close(model.decode(finished) / 2 + 0.5, theirs, atol=1e-4, rtol=0)
