"""`sliders edit`, and what the other commands do with its files, on tiny models."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from sliders import formats
from sliders.algebra.slider import Interpolated, Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.cli import edit as cli_edit
from sliders.cli import main as cli
from sliders.editors.uce import UCE
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.formats import diffusers
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.commands import Ended, World, run, world

QUICK = ["--sampling.steps", 2, "--sampling.guidance", 2]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = world(tmp_path_factory.mktemp("world"))
    torch.manual_seed(0)
    AttributeJudge({"mood": ["sad", "happy"]}, width=8).save(made.folder / "judge.safetensors")
    return made


def sliders(here: World, *arguments: object) -> Ended:
    return run(cli.main, *arguments, "--base", here.model)


@pytest.fixture(scope="module")
def uce(here: World) -> Path:
    """An edit's file, made by a config and a flag over it."""
    config = here.folder / "uce.yaml"
    config.write_text(yaml.safe_dump({"editor": {"replace": {"happy": "sad"}, "contexts": ["a {} person"]}}))
    out = here.folder / "uce.safetensors"
    ended = sliders(here, "edit", "uce", "--config", config, "--editor.regularisation", 0.01, "--out", out)
    assert ended.code == 0, ended.err
    assert "'happy' read as 'sad'" in ended.out
    return out


def predicted(here: World, file: Path | None) -> Tensor:
    model = UNetBackbone(str(here.model))
    model.load()
    state = {"latents": model.start([1]), "timestep": torch.tensor([500])}
    dials = [] if file is None else [formats.load_dial(file)]
    with torch.no_grad(), attach(model, dials, {dial.name: 1.0 for dial in dials}):
        return model.predict(state, model.encode(["a happy person"]))


def test_the_file_is_the_edit_and_says_how_it_was_made(here: World, uce: Path) -> None:
    model = UNetBackbone(str(here.model))
    model.load()
    dial = formats.load_dial(uce)
    assert isinstance(dial, Interpolated)
    assert dial.name == "uce"
    assert dial.metadata["sliders.method"] == "sliders.editors.uce.UCE"
    assert json.loads(dial.metadata["sliders.configuration"])["regularisation"] == 0.01
    assert dial.metadata["sliders.base_fingerprint"] == model.fingerprint(["unet"])
    wanted = UCE({"happy": "sad"}, ["a {} person"], regularisation=0.01).fit(model)
    for name, element in wanted.items():
        assert torch.equal(dial.edit[name].right.B, element.right.B)
    assert (predicted(here, uce) - predicted(here, None)).abs().max() > 1e-3


def test_the_other_commands_take_it(here: World, uce: Path) -> None:
    out = here.folder / "out"
    judge = here.folder / "judge.safetensors"
    ended = sliders(here, "generate", "a happy person", "--slider", uce, "--out", out / "g.png", *QUICK)
    assert ended.code == 0, ended.err
    assert (out / "g.png").is_file()
    shown = ["--concept", here.concept, "--judge", judge, "--pictures", 2, "--dials", "[1]", "--out", out / "e"]
    assert sliders(here, "evaluate", uce, *shown, *QUICK).code == 0
    assert (out / "e" / "metrics.json").is_file()
    assert sliders(here, "laws", f"[{uce}]", "--level", "weights", "--out", out / "w").code == 0
    laws = {row["law"]: row["holds"] for row in json.loads((out / "w" / "laws.json").read_text())["laws"]}
    assert laws == {"one-parameter group": False, "additive": True, "invertible": True}
    states = ["--prompts", '["a dog"]', "--scenes", 1, "--out", out / "b", *QUICK]
    assert sliders(here, "laws", f"[{uce}]", "--level", "behaviour", "--twin", f"[{uce}]", *states).code == 0
    assert sliders(here, "bake", uce, out / "merged").code == 0
    merged = UNetBackbone(str(out / "merged"))
    merged.load()
    state = {"latents": merged.start([1]), "timestep": torch.tensor([500])}
    with torch.no_grad():
        said = merged.predict(state, merged.encode(["a happy person"]))
    torch.testing.assert_close(said, predicted(here, uce), atol=1e-4, rtol=1e-4)
    wrong = sliders(here, "evaluate", uce, "--judge", judge)
    assert "does not say which concept" in wrong.err


def test_what_no_slider_s_file_holds_is_refused(here: World, uce: Path) -> None:
    ended = run(cli.main, "compose", f"[{uce}]", here.folder / "c.safetensors")
    assert ended.code == 1
    assert "does more than add to weights" in ended.err
    fitted = ["edit", "uce", "--editor.replace.happy", "sad", "--lora", "true", "--out", here.folder / "l"]
    assert "no LoRA holds it" in sliders(here, *fitted).err
    assert not (here.folder / "l").exists()


def test_a_task_vector_can_be_a_slider_s_file(here: World, uce: Path) -> None:
    assert sliders(here, "bake", uce, here.folder / "moved").code == 0
    fitted = ["edit", "task_vector", "--editor.tuned", here.folder / "moved", "--name", "task"]
    ended = sliders(here, *fitted, "--lora", "true", "--out", here.folder / "lora")
    assert ended.code == 0, ended.err
    file = here.folder / "lora" / "task.safetensors"
    assert diffusers.load(file).metadata["sliders.method"] == "sliders.editors.task_vector.TaskVector"
    torch.testing.assert_close(predicted(here, file), predicted(here, uce), atol=1e-4, rtol=1e-4)
    assert sliders(here, *fitted, "--out", here.folder / "task.safetensors").code == 0
    assert isinstance(formats.load_dial(here.folder / "task.safetensors"), Slider)


def test_an_edit_of_a_language_model_is_streamed(tmp_path: Path) -> None:
    folder = tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path / "model")
    concept = {
        "name": "mood", "modality": "text", "target": "you are a person", "positives": ["you are a happy person"],
        "negatives": ["you are a sad person"], "contexts": ["how was your day"],
    }  # fmt: skip
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(concept))
    out = tmp_path / "s.safetensors"
    fitted = ["--editor.concept", tmp_path / "mood.yaml", "--editor.blocks", "[1]", "--editor.responses.tokens", 4]
    ended = run(cli.main, "edit", "steering", *fitted, "--base", folder, "--out", out, "--seed", 3)
    assert ended.code == 0, ended.err
    assert formats.load_dial(out).metadata["sliders.seed"] == "3"
    assert formats.modality_of(out) == "text"
    said = ["--base", folder, "--speaking.tokens", 3]
    ended = run(cli.main, "generate", "a dog", "--slider", out, *said)
    assert ended.code == 0, ended.err
    assert "steering +1" in ended.out


def test_a_model_of_another_kind_and_a_missing_configuration_are_errors(tmp_path: Path) -> None:
    lm = CausalLMBackbone("nowhere")
    with pytest.raises(Exception, match=r"UCE edits a UNetBackbone, but nowhere is a CausalLMBackbone"):
        cli_edit.fit(UCE({"a": "b"}), lm, "x", None, 0, False)
    ended = run(cli.main, "edit", "uce")
    assert ended.code == 1
    assert "configs/editors/uce.yaml" in ended.err


def test_a_file_that_no_edit_has_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    """Before the model is read: there is none."""
    with pytest.raises(SliderError, match=r"\.safetensors file, and .*folder does not end so"):
        cli_edit.fit(UCE({"a": "b"}), UNetBackbone("/no/such/model"), "x", tmp_path / "folder", 0, False)


@pytest.mark.parametrize(
    ("method", "flag", "value"),
    [
        ("steering", "responses.batch", 0),
        ("steering", "responses.messages", 0),
        ("leace", "responses.batch", 0),
        ("leace", "responses.messages", 0),
        ("ablation", "responses.tokens", 0),
        ("uce", "regularisation", 0),
    ],
)
def test_a_number_that_cannot_be_is_said_in_one_line(method: str, flag: str, value: int) -> None:
    known = {"steering": {"blocks": "[1]"}, "leace": {"layers": "[mlp]"}, "ablation": {"block": 1}}
    fields = {"replace.happy": "sad"} if method == "uce" else {"concept": "mood.yaml", **known[method]}
    flags = [part for name, text in (fields | {flag: value}).items() for part in (f"--editor.{name}", text)]
    ended = run(cli.main, "edit", method, *flags, "--base", "/no/such/model")
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert f"{flag} is {value}; it must be" in ended.err
    assert ended.err.count("\n") == 1


def test_every_method_is_a_command_of_its_file_s_name() -> None:
    assert set(cli_edit.methods()) >= {"uce", "leace", "ablation", "steering", "task_vector"}
    listed = run(cli.main, "edit", "--help").out
    assert all(name in listed for name in cli_edit.methods())
