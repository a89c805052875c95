"""Baking changes the edited weights and nothing else, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PNDMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine, Edit, Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests import tiny, tiny_lm

Backbone = UNetBackbone | CausalLMBackbone


def change(model: Backbone, names: list[str], size: float = 1.0) -> Translation:
    generator = torch.Generator().manual_seed(0)

    def update(shape: tuple[int, ...]) -> LowRank:
        up = torch.randn(shape[0], 2, generator=generator) * size
        return LowRank(up, torch.randn(2, torch.Size(shape[1:]).numel(), generator=generator), shape)

    return Translation({name: update(weight_shape(model, name)) for name in names})


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, by file and key."""
    found = {}
    for file in folder.rglob("*.safetensors"):
        found |= {f"{file.relative_to(folder)} {key}": tensor for key, tensor in load_file(file).items()}
    return found


def others(folder: Path) -> dict[str, bytes]:
    """Every other file's bytes."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".safetensors")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def pictures(folder: Path, xl: bool = False) -> UNetBackbone:
    """As Stable Diffusion 1.x comes: PNDM, in half precision."""
    made = tiny.stable_diffusion_xl() if xl else tiny.stable_diffusion()
    made.scheduler = PNDMScheduler.from_config(made.scheduler.config, skip_prk_steps=True)
    tiny.save(made.to(torch.float16), folder)
    model = (SDXLBackbone if xl else UNetBackbone)(str(folder))
    model.load()
    return model


def language(folder: Path, kind: str, **save: Any) -> CausalLMBackbone:
    made = tiny_lm.language_model(kind)
    made.to(torch.float16)
    made.lm.save_pretrained(folder, **save)
    made.tokenizer.save_pretrained(folder)
    model = CausalLMBackbone(str(folder))
    model.load()
    return model


@pytest.mark.parametrize("kind", ["sd", "sdxl", "llama", "gpt2"])
def test_only_edited_weights_change_and_each_is_rounded_once(kind: str, tmp_path: Path) -> None:
    folder, out = tmp_path / "base", tmp_path / "new" / "baked"
    if kind.startswith("sd"):
        model: Backbone = pictures(folder, kind == "sdxl")
        names = [*model.select_targets(["xattn-strict"])[:2], *model.select_targets(["text-encoder"])]
        names += ["unet.conv_in"]
    else:
        model = language(folder, kind)
        names = model.select_targets(["attention"])[:2]
    edit = change(model, names)
    made = model.export(out, edit)
    assert others(out) == others(folder)
    before, after = stored(folder), stored(out)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(after[key].dtype == before[key].dtype == torch.float16 for key in before)
    assert len(changed) == len(names) == len(made.lost)
    assert 0 < max(made.lost.values()) < 0.1
    again = type(model)(str(out))
    again.load()
    with baked(model, edit):
        for name in names:
            weight = model.get_submodule(name).get_parameter("weight")
            assert torch.equal(again.get_submodule(name).get_parameter("weight"), weight.half().float()), name
    files = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    for file in files:
        with safe_open(folder / file, "pt") as old, safe_open(out / file, "pt") as new:
            assert old.metadata() == new.metadata()


def test_a_pipeline_is_what_it_was(tmp_path: Path) -> None:
    model = pictures(tmp_path / "base")
    model.export(tmp_path / "baked", change(model, ["unet.conv_in"]))
    again = DiffusionPipeline.from_pretrained(tmp_path / "baked", dtype=torch.float32)
    assert isinstance(again.scheduler, PNDMScheduler)


def test_every_variant_is_edited_and_other_formats_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    pipeline = tiny.stable_diffusion()
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    (folder / "v1-pruned.safetensors").write_bytes(b"old")
    (folder / "README.md").write_text("a card")
    model = UNetBackbone(str(folder))
    model.load()
    made = model.export(tmp_path / "baked", change(model, ["unet.conv_in"]))
    assert made.left_out == ["unet/diffusion_pytorch_model.bin", "v1-pruned.safetensors"]
    assert [line for line in made.lines() if line.startswith("left out")]
    assert (tmp_path / "baked" / "vae" / "diffusion_pytorch_model.bin").read_bytes() == b"old"
    assert (tmp_path / "baked" / "README.md").read_text() == "a card"
    for tag in ("", ".fp16"):
        file = Path("unet", f"diffusion_pytorch_model{tag}.safetensors")
        old, new = load_file(folder / file), load_file(tmp_path / "baked" / file)
        assert {key for key in old if not torch.equal(old[key], new[key])} == {"conv_in.weight"}
        assert old["conv_in.weight"].dtype == new["conv_in.weight"].dtype


def test_a_change_below_the_files_precision_is_said(tmp_path: Path) -> None:
    model = language(tmp_path / "base", "llama")
    names = model.select_targets(["attention"])[:1]
    assert model.export(tmp_path / "large", change(model, names)).lines() == []
    (line,) = model.export(tmp_path / "small", change(model, names, 1e-5)).lines()
    assert "loses more than 10% of the change in 1 of 1 weights" in line


@pytest.mark.parametrize("shards", [False, True])
def test_an_output_layer_that_shares_the_embeddings_weight_gets_its_own(shards: bool, tmp_path: Path) -> None:
    """The dial acts on the output layer alone, and so does the baked model, with the library's own loader."""
    save: dict[str, Any] = {"max_shard_size": "5KB"} if shards else {}
    model = language(tmp_path / "base", "qwen2", **save)
    assert ((tmp_path / "base" / "model.safetensors.index.json").is_file()) == shards
    assert model.lm.lm_head.weight is model.lm.model.embed_tokens.weight
    edit = change(model, ["lm.lm_head"])
    model.export(tmp_path / "baked", edit)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 9, 11, 3]])
    with torch.no_grad():
        base = model.lm(ids).logits
        with attach(model, [Slider("s", edit)], {"s": 1.0}):
            turned = model.lm(ids).logits
        with baked(model, edit):
            inside = model.lm(ids).logits
        outside = again(ids).logits
        assert torch.equal(model.lm(ids).logits, base)
    assert model.lm.lm_head.weight is model.lm.model.embed_tokens.weight
    effect = (turned - base).norm()
    assert (inside - turned).norm() < 1e-5 * effect
    assert (outside - turned).norm() < 1e-2 * effect, "half precision"
    old, new = load_all(tmp_path / "base"), load_all(tmp_path / "baked")
    assert set(new) - set(old) == {"lm_head.weight"}
    assert all(torch.equal(old[key], new[key]) for key in old)
    if shards:
        index = json.loads((tmp_path / "baked" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(new)


def load_all(folder: Path) -> dict[str, Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_a_bias_that_a_checkpoint_has_no_place_for(tmp_path: Path) -> None:
    model = language(tmp_path / "base", "llama")
    name = model.select_targets(["mlp"])[0]
    shape = weight_shape(model, name)
    edit: Edit = Affine({name: steer_output(torch.ones(shape[0]), shape)})
    with pytest.raises(SliderError, match="has no place"):
        model.export(tmp_path / "baked", edit)
    assert not (tmp_path / "baked").exists()


def test_a_model_in_memory_is_written_anew(tmp_path: Path) -> None:
    model = UNetBackbone("tiny")
    model.use(tiny.stable_diffusion())
    edit = change(model, ["unet.conv_in"])
    model.export(tmp_path / "baked", edit)
    again = UNetBackbone(str(tmp_path / "baked"))
    again.load()
    with baked(model, edit):
        assert torch.equal(again.unet.conv_in.weight, model.unet.conv_in.weight)


def test_a_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language(tmp_path / "base", "llama")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sliders.formats.baking.save_file", full)
    with pytest.raises(OSError, match="No space"):
        model.export(tmp_path / "baked", change(model, model.select_targets(["attention"])[:1]))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    save_file({}, tmp_path / "control.safetensors")


def test_numbers_that_the_files_precision_has_no_place_for(tmp_path: Path) -> None:
    model = language(tmp_path / "base", "llama")
    names = model.select_targets(["attention"])[:1]
    with pytest.raises(SliderError, match=r"float16, in which .*model\.safetensors is stored"):
        model.export(tmp_path / "new", change(model, names, 1e6))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_language_models_other_weights_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    model = language(tmp_path / "base", "llama")
    for name in ("consolidated.safetensors", "original/consolidated.00.pth", "onnx/model.onnx", "assets/note.txt"):
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_bytes(b"old")
    made = model.export(tmp_path / "new", change(model, model.select_targets(["attention"])[:1]))
    assert made.left_out == ["consolidated.safetensors", "onnx/model.onnx", "original/consolidated.00.pth"]
    assert (tmp_path / "new" / "assets" / "note.txt").read_bytes() == b"old"
    assert model.export(tmp_path / "same").left_out == []  # nothing is edited


def test_what_was_not_fetched_of_a_hub_model_is_fetched_to_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safety checker is not run here, but the index of the pipeline names it."""
    pictures(tmp_path / "part")
    (tmp_path / "part").rename(tmp_path / "whole")
    pictures(tmp_path / "part")
    (tmp_path / "whole" / "safety_checker").mkdir()
    (tmp_path / "whole" / "safety_checker" / "model.safetensors").write_bytes(b"checker")
    asked: list[dict[str, Any]] = []

    def download(place: str, **how: Any) -> str:
        asked.append(how)
        return str(tmp_path / ("part" if "safety_checker" in how else "whole"))

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    model = UNetBackbone("somebody/diffusion", revision="main")
    model.load()
    assert asked[0]["safety_checker"] is None
    model.export(tmp_path / "new", change(model, ["unet.conv_in"]))
    assert (tmp_path / "new" / "safety_checker" / "model.safetensors").read_bytes() == b"checker"
    assert asked[1]["revision"] == "main"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_written_pipeline_comes_up_in_one_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = UNetBackbone("memory")
    model.use(tiny.stable_diffusion().to(dtype))
    model.export(tmp_path / "new", change(model, ["unet.conv_in"]))
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "new")
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    pipeline("a person", num_inference_steps=1, output_type="np")
    model.pipeline.save_pretrained(tmp_path / "plain")  # the control: as the library writes it
    assert DiffusionPipeline.from_pretrained(tmp_path / "plain").text_encoder.dtype == dtype
