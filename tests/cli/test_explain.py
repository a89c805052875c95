"""`sliders explain` on tiny models: every kind of file, and what it says of an edit that it was told nothing about."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.element import Element
from sliders.algebra.slider import Hinge, Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.errors import SliderError
from sliders.formats import diffusers as slider_file
from sliders.formats import edit as edit_file
from sliders.formats import hinge, peft
from sliders.formats.checkpoint import Checkpoint, differences, is_checkpoint
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from sliders.studies.explain.report import place
from tests import tiny, tiny_lm
from tests.algebra.test_explain import uce_factor
from tests.cli.test_compose import external
from tests.commands import Ended, run
from tests.factory import normal, slider
from tests.formats.test_diffusers import CONV, TO_K, TO_Q
from tests.formats.test_peft import mixed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    folder = tiny.save(tiny.stable_diffusion(), tmp_path_factory.mktemp("pictures") / "model")
    model = UNetBackbone(str(folder))
    model.load()
    return model


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    folder = tmp_path_factory.mktemp("language") / "model"
    tiny_lm.language_model("llama").save_pretrained(folder)
    model = CausalLMBackbone(str(folder))
    model.load()
    return model


@pytest.fixture(autouse=True)
def few_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "some.txt").write_text("a person\na happy dog with a hat\n")
    monkeypatch.setattr("sliders.studies.explain.reads.PROMPTS", dict.fromkeys(("image", "text"), tmp_path / "prompts"))


def uce_like(backbone: UNetBackbone, seed: int = 0) -> Affine:
    """One right factor in all keys and values that read the text."""
    names = backbone.select_targets(["xattn-strict"])
    right = uce_factor(weight_shape(backbone, names[0])[1], seed).to(torch.float32)
    return Affine({name: Element.of(weight_shape(backbone, name), right=right) for name in names})


def explain(update: Path, out: Path, *arguments: object) -> Ended:
    return run(cli.main, "explain", update, "--out", out, "--words", 6, *arguments)


def explained(update: Path, out: Path, *arguments: object) -> dict[str, Any]:
    ended = explain(update, out, *arguments)
    assert ended.code == 0, ended.err
    page = (out / "explain.html").read_text()
    assert external(page) == []
    assert page.count("<img") >= 1
    assert str(out / "explain.html") in ended.out
    return json.loads((out / "explain.json").read_text())


def test_a_slider_with_its_library(pictures: UNetBackbone, tmp_path: Path) -> None:
    known = {"sliders.base_model": pictures.base_model, "sliders.base_fingerprint": pictures.fingerprint()}
    files = []
    for name, seed in (("one", 1), ("two", 2)):
        made = slider(pictures, {TO_K: 2, TO_Q: 3, CONV: 1}, name, seed)
        slider_file.save(Slider(name, made.update, known), tmp_path / f"{name}.safetensors")
        files.append(tmp_path / f"{name}.safetensors")
    half = slider(pictures, {TO_K: 2, TO_Q: 3, CONV: 1}, "half", 2).update * 0.5
    slider_file.save(Slider("half", half, known), tmp_path / "half.safetensors")
    found = explained(tmp_path / "half.safetensors", tmp_path / "out", "--library", f"[{files[0]}, {files[1]}]")
    assert {name: one["rank"] for name, one in found["layers"].items()} == {TO_K: 2, TO_Q: 3, CONV: 1}
    assert found["nearest"]["neighbours"][0]["name"] == "two"
    assert found["nearest"]["neighbours"][0]["coefficient"] == pytest.approx(0.5, abs=1e-4)
    assert found["nearest"]["residual"] < 1e-2
    assert [one["module"] for one in found["effects"]] == list(found["layers"])
    titles = [ranking["title"] for ranking in found["reads"]]
    assert titles == [
        "Words it responds to",
        "Words alone",
        "Prompts it responds to",
        "Prompts whose predictions change most",
        "Words that do what it does",
    ]
    assert all(ranking["entries"] for ranking in found["reads"])


def test_an_edit_s_file_and_the_checkpoint_that_it_makes_are_explained_alike(
    pictures: UNetBackbone, tmp_path: Path
) -> None:
    edit = uce_like(pictures)
    edit_file.save("u", edit, tmp_path / "u.safetensors", {"sliders.base_model": pictures.base_model})
    with baked(pictures, edit):
        pictures.export(tmp_path / "model")
    given = ["--base", pictures.base_model, "--run", "false"]
    of_file = explained(tmp_path / "u.safetensors", tmp_path / "a", *given)
    of_model = explained(tmp_path / "model", tmp_path / "b", *given)
    for found in (of_file, of_model):
        (part,) = found["parts"]
        assert part["kind"] == "right factor"
        assert sorted(part["modules"]) == sorted(edit)
        assert part["rank"] == 2
        assert found["reads"] == []
    assert of_model["others"] == {}


def test_a_slider_of_language_and_a_steering_vector(language: CausalLMBackbone, tmp_path: Path) -> None:
    peft.save(mixed(language), tmp_path / "s", language.base_model)
    found = explained(tmp_path / "s", tmp_path / "a", "--base", language.base_model)
    assert found["kind"] in ("translation", "random")
    titles = [ranking["title"] for ranking in found["reads"]]
    assert titles[:3] == ["Words it responds to", "Tokens it responds to", "Prompts it responds to"]
    layer = "lm.model.layers.1.mlp.down_proj"
    vector = normal(16, seed=3, dtype=torch.float32)
    steer = Affine({layer: steer_output(vector, weight_shape(language, layer))})
    said = {"sliders.base_model": language.base_model, "sliders.modality": "text"}
    edit_file.save("v", steer, tmp_path / "v.safetensors", said)
    found = explained(tmp_path / "v.safetensors", tmp_path / "b", "--base", language.base_model)
    assert found["kind"] == "bias shift"
    promoted = dict(next(r["entries"] for r in found["reads"] if r["title"] == "Tokens it promotes"))
    head = language.lm.get_output_embeddings().weight
    wanted = (head @ (vector * language.lm.model.norm.weight)).topk(5).indices
    assert next(iter(promoted)) in {language.tokenizer.decode([i]).strip() for i in wanted.tolist()}


def test_without_a_base_spectra_are_judged_all_the_same(pictures: UNetBackbone, tmp_path: Path) -> None:
    one = slider(pictures, {TO_K: 2, CONV: 1}, "one", 1)
    slider_file.save(Slider("one", one.update), tmp_path / "one.safetensors")
    found = explained(tmp_path / "one.safetensors", tmp_path / "out")
    assert found["parts"][0]["kind"] == "translation"
    assert "not known" in found["parts"][0]["evidence"]
    assert (found["effects"], found["reads"]) == ([], [])


def changed(folder: Path, new: Path, change: Mapping[str, Tensor]) -> Path:
    """A copy of a pipeline with other tensors in its UNet."""
    shutil.copytree(folder, new)
    file = next((new / "unet").glob("*.safetensors"))
    save_file({**load_file(file), **change}, file, {"format": "pt"})
    return new


def test_checkpoints_are_compared_tensor_by_tensor(pictures: UNetBackbone, tmp_path: Path) -> None:
    base = Path(pictures.base_model)
    state = load_file(next((base / "unet").glob("*.safetensors")))
    norm, bias = "conv_norm_out.weight", "conv_in.bias"
    after = changed(base, tmp_path / "new", {norm: state[norm] * 1.5, bias: state[bias] + 1})
    changes, others = differences(Checkpoint(base), Checkpoint(after))
    assert others == {f"unet.{norm}": pytest.approx(0.5)}
    assert [(change.module, change.bias_alone) for change in changes] == [("unet.conv_in", True)]
    assert differences(Checkpoint(base), Checkpoint(base)) == ([], {})
    assert is_checkpoint(base)
    names = [name for name, _ in pictures.named_parameters()]
    assert set(names) <= set(Checkpoint(base))  # called as in a loaded model
    unlike = changed(base, tmp_path / "unlike", {"extra.weight": torch.zeros(2, 2)})
    with pytest.raises(SliderError, match=r"only one has 'unet.extra.weight'"):
        differences(Checkpoint(base), Checkpoint(unlike))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_layers_have_their_outputs_first(kind: str, tmp_path: Path) -> None:
    tiny_lm.language_model(kind).save_pretrained(tmp_path)
    model = CausalLMBackbone(str(tmp_path))
    model.load()
    stored = Checkpoint(tmp_path)
    for name in model.select_targets(["full"]):
        assert tuple(stored.layer(name)[0].shape) == weight_shape(model, name)


def test_the_same_model_is_said_to_be_the_same(pictures: UNetBackbone, tmp_path: Path) -> None:
    ended = explain(Path(pictures.base_model), tmp_path / "out", "--base", pictures.base_model, "--run", "false")
    assert ended.code == 0, ended.err
    assert "Nothing differs" in (tmp_path / "out" / "explain.html").read_text()


class TestErrors:
    def test_a_model_needs_a_base(self, pictures: UNetBackbone, tmp_path: Path) -> None:
        assert "--base" in explain(Path(pictures.base_model), tmp_path).err

    def test_a_base_must_be_there(self, pictures: UNetBackbone, tmp_path: Path) -> None:
        assert "give one with --base" in explain(Path(pictures.base_model), tmp_path, "--base", tmp_path / "no").err

    def test_an_edit_of_an_unknown_base(self, pictures: UNetBackbone, tmp_path: Path) -> None:
        edit_file.save("u", uce_like(pictures), tmp_path / "u.safetensors", {})
        assert "give its base with --base" in explain(tmp_path / "u.safetensors", tmp_path / "out").err

    def test_a_hinge_is_no_one_update(self, language: CausalLMBackbone, tmp_path: Path) -> None:
        """Also where its sides do not say what their base is."""
        slider_ = Slider("s", mixed(language).update)
        hinge.save(
            Hinge("h", slider_, slider_), tmp_path / "h", lambda side, place: peft.save(side, place, "x"), suffix=""
        )
        assert "hinge of two updates; explain its sides" in explain(tmp_path / "h", tmp_path / "out").err

    def test_another_base_is_refused(self, pictures: UNetBackbone, tmp_path: Path) -> None:
        made = slider(pictures, {TO_K: 1}, "s").update
        known = {"sliders.base_model": pictures.base_model, "sliders.base_fingerprint": "other"}
        slider_file.save(Slider("s", Translation(made), known), tmp_path / "s.safetensors")
        given = explain(tmp_path / "s.safetensors", tmp_path / "out", "--base", pictures.base_model)
        assert "fingerprint" in given.err


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (TO_K, ("unet down_blocks.1", "cross-attention k")),
        (TO_Q, ("unet up_blocks.0", "attention q")),
        (CONV, ("unet down_blocks.0", "convolution")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2", ("unet mid_block", "feed-forward")),
        ("lm.model.layers.12.mlp.down_proj", ("lm layers.12", "feed-forward")),
        ("lm.model.layers.3.self_attn.o_proj", ("lm layers.3", "attention o")),
        ("text_encoder.encoder.layers.2.self_attn.out_proj", ("text_encoder layers.2", "attention o")),
    ],
)
def test_layers_have_places(module: str, where: tuple[str, str]) -> None:
    assert place(module) == where
