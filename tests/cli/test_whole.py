"""A command that is given a slider and nothing else: the model is the one that the slider's file names, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sliders import formats
from sliders.algebra.slider import Slider
from sliders.backbones import choice
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.formats import diffusers, peft
from tests import tiny, tiny_lm
from tests.commands import Ended, run
from tests.evaluation.conftest import random_slider

PICTURE, SPEECH = ["--sampling.steps", 1], ["--speaking.tokens", 3]


@dataclass(frozen=True)
class Place:
    """A folder with models of each family, a slider of each, and a concept with words for both media."""

    folder: Path
    models: Mapping[str, AbstractBackbone]

    def slider(self, family: str, name: str = "own", **changes: str) -> Path:
        """Write one that says what its base is, or what the changes say instead; ``""`` leaves out."""
        model = self.models[family]
        made = random_slider(model, "text-encoder" if family != "lm" else "mlp")
        said = {
            "sliders.base_model": model.base_model,
            "sliders.base_class": model.class_path,
            "sliders.base_fingerprint": model.fingerprint({module.partition(".")[0] for module in made.update}),
        }
        said = {key: value for key, value in (said | changes).items() if value}
        return model.save_slider(Slider(name, made.update, said), self.folder / family)

    @property
    def concept(self) -> Path:
        """Its file."""
        return self.folder / "mood.yaml"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        models = {
            "sd": UNetBackbone(str(tiny.save(tiny.stable_diffusion(), folder / "models" / "sd"))),
            "xl": SDXLBackbone(str(tiny.save(tiny.stable_diffusion_xl(), folder / "models" / "xl"))),
            "lm": CausalLMBackbone(str(tiny.save(tiny_lm.language_model("llama"), folder / "models" / "lm"))),
        }
        for family, model in models.items():
            model.load()
            model.fingerprint()
            (folder / family).mkdir()
    words = {"positives": ["be happy"], "negatives": ["be sad"], "contexts": ["day"]}
    words |= {"measure": {"attribute": "length", "prompts": ["the dog", "a day"]}}
    concept = {"name": "mood", "target": "a person", "positives": ["a happy person"], "negatives": ["a sad person"]}
    (folder / "mood.yaml").write_text(yaml.safe_dump({**concept, "text": words}))
    return Place(folder, models)


@pytest.fixture(autouse=True)
def _cache(here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own, in which the models of `here` are known; and a folder to write into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here.folder / "cache"))
    monkeypatch.chdir(tmp_path)


def sliders(*arguments: object) -> Ended:
    return run(cli.main, *arguments)


def refused(ended: Ended, *words: str) -> None:
    """In one line that says these words."""
    assert ended.code == 1, ended.out
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    assert all(word in ended.err for word in words), ended.err


@pytest.mark.parametrize("family", ["sd", "xl", "lm"])
def test_generate_and_bake(here: Place, family: str, tmp_path: Path) -> None:
    own = here.slider(family)
    ended = sliders("generate", "a dog", "--slider", own, "--dial", -1.5, *(SPEECH if family == "lm" else PICTURE))
    assert ended.code == 0, ended.err
    assert "own -1.5:" in ended.out if family == "lm" else (tmp_path / "grid.png").is_file()
    assert sliders("bake", own, tmp_path / "new").code == 0
    assert choice.class_path(str(tmp_path / "new")) == here.models[family].class_path


def test_laws_and_explain(here: Place, tmp_path: Path) -> None:
    for family in ("sd", "lm"):
        one, two = (here.slider(family, name) for name in ("one", "two"))
        ended = sliders("laws", f"[{one}, {two}]", "--level", "weights", "--out", tmp_path / family)
        assert ended.code == 0, ended.err
        ended = sliders("explain", one, "--run", "false", "--out", tmp_path / f"{family}_explained")
        assert ended.code == 0, ended.err
        assert (
            f"compared with {here.models[family].base_model}"
            in (tmp_path / f"{family}_explained" / "explain.html").read_text()
        )


def test_preview_takes_the_words_of_the_base(here: Place, tmp_path: Path) -> None:
    small = ["--amounts", "[1]", "--pictures", 2, "--out", tmp_path / "out"]
    for family, how, made in (("sd", PICTURE, "strip.png"), ("lm", SPEECH, "preview.json")):
        ended = sliders("preview", here.concept, "--base", here.models[family].base_model, *small, *how)
        assert ended.code == 0, ended.err
        assert (tmp_path / "out" / made).is_file()


@pytest.mark.parametrize(("modality", "model"), [("image", "avatars"), ("text", "smollm2")])
def test_the_base_where_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, model: str
) -> None:
    seen: list[str] = []
    for kind in (UNetBackbone, CausalLMBackbone):
        monkeypatch.setattr(kind, "load", lambda self: seen.append(self.base_model))
    concept = {"name": "mood", "modality": modality, "target": "a person", "positives": ["a"], "negatives": ["b"]}
    concept |= {"contexts": ["day"]} if modality == "text" else {}
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(concept))
    monkeypatch.setattr(f"sliders.media.{modality}.MEDIUM.preview", lambda *_: None, raising=False)
    assert sliders("preview", tmp_path / "mood.yaml").code == 0
    assert seen == [model]


@pytest.mark.parametrize("file", ["avatars/sliders/smile.safetensors", "text/sliders/sentiment"])
def test_a_slider_of_an_earlier_version_names_a_model_that_has_a_name(file: str) -> None:
    """The class follows from the model."""
    from sliders.resources.shipped import shipped

    place = shipped(f"data/{file}")
    dial = formats.load_dial(place)
    assert "sliders.base_class" not in dial.metadata
    chosen = choice.choose([dial], [place])
    assert (chosen.base_model, chosen.modality) in {("avatars", "image"), ("smollm2", "text")}


class TestAStranger:
    """Of what a file says, nothing is opened and nothing imported that this user does not use anyway."""

    def test_s_folder_is_not_opened(self, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """Control: the same folder is, where its weights are known by their hash."""
        for family in ("sd", "lm"):
            model = here.models[family].base_model
            changed = {"sliders.base_fingerprint": f"{'lm' if family == 'lm' else 'text_encoder'}={'0' * 32}"}
            for said in (changed, {"sliders.base_fingerprint": ""}):
                file = here.slider(family, "stranger", **said)
                for words in (["generate", "a", "--slider", file], ["bake", file, "new"], ["explain", file]):
                    ended = sliders(*words)
                    refused(ended, f"was made on {model}; give --base {model} to use that model")
        monkeypatch.setenv("XDG_CACHE_HOME", str(here.folder / "another"))
        refused(sliders("generate", "a", "--slider", here.slider("sd", "known")), "give --base")

    @pytest.mark.parametrize(
        "path", ["antigravity.fly", "torch.nn.Linear", "sliders.backbones.base.AbstractBackbone", "tests.tiny.Model",
                 "x" * 300, "sliders.backbones.unet.Any", "sliders.backbones.nowhere.Model", "sliders.page.app.App"]
    )  # fmt: skip
    def test_s_class_is_not_imported(self, here: Place, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        imported: list[str] = []
        load = choice.importlib.import_module
        monkeypatch.setattr(choice.importlib, "import_module", lambda name: imported.append(name) or load(name))
        file = here.slider("sd", "stranger", **{"sliders.base_class": path})
        refused(sliders("generate", "a", "--slider", file), path[:60], "--backbone")
        assert [name for name in imported if name.partition(".")[0] in ("antigravity", "tests", "x" * 300)] == []

    def test_s_file_says_nothing(self, here: Place) -> None:
        file = here.slider("sd", "silent", **{"sliders.base_model": "", "sliders.base_class": ""})
        refused(sliders("generate", "a", "--slider", file), "'silent' does not say which model", "--base")
        ended = sliders("generate", "a", "--slider", file, "--base", here.models["sd"].base_model, *PICTURE)
        assert ended.code == 0, ended.err


class TestRefusals:
    def test_media_and_bases_that_differ(self, here: Place) -> None:
        one, xl, text = (here.slider(family, f"of {family}") for family in ("sd", "xl", "lm"))
        refused(sliders("generate", "a", "--slider", f"[{one}, {text}]"), "of pictures and of language")
        refused(sliders("generate", "a", "--slider", f"[{one}, {xl}]"), "were made on", "--base")
        base = here.models["sd"].base_model
        refused(sliders("generate", "a", "--slider", text, "--base", base), "modality text", "modality image")

    def test_flags_of_another_medium(self, here: Place) -> None:
        one, text = here.slider("sd"), here.slider("lm")
        refused(sliders("generate", "a", "--slider", one, *SPEECH), "--speaking", "--sampling")
        refused(sliders("generate", "a", "--slider", text, *PICTURE), "--sampling", "--speaking")
        refused(sliders("generate", "a", "--slider", text, "--out", "a.png"), "--out")
        refused(sliders("evaluate", text, "--oracle", "true"), "--oracle")
        refused(sliders("laws", f"[{one}]", *SPEECH), "--speaking")

    @pytest.mark.parametrize(
        ("flags", "new"),
        [
            (["--text", "true"], "--base smollm2"),
            (["--text=true"], "--base smollm2"),
            (["--language.model", "x"], "--base"),
            (["--language", "x"], "--base"),
            (["--backbone.model", "x"], "--base"),
        ],
    )
    def test_flags_of_before(self, flags: list[str], new: str) -> None:
        refused(sliders("generate", "a", *flags), flags[0].partition("=")[0], new)

    @pytest.mark.parametrize("flag", ["--model", "--family", "--language.model"])
    def test_the_page_s_flags_of_before(self, flag: str) -> None:
        refused(sliders("demo", flag, "x"), flag, "--base" if flag != "--language.model" else "--language")

    def test_two_ways_to_say_the_model(self, here: Place) -> None:
        kind = ["--backbone", "sliders.backbones.unet.UNetBackbone", "--backbone.model", "avatars"]
        refused(sliders("generate", "a", "--base", "avatars", *kind), "--base and --backbone")

    def test_a_folder_that_is_no_model(self, tmp_path: Path) -> None:
        refused(sliders("generate", "a", "--base", tmp_path), f"no base model at {tmp_path}")


def test_what_is_composed_keeps_its_base(here: Place, tmp_path: Path) -> None:
    for family, name, read in (("sd", "sum.safetensors", diffusers.load), ("lm", "sum", peft.load)):
        one, two = (here.slider(family, called) for called in ("one", "two"))
        assert sliders("compose", f"[{one}, {two}]", tmp_path / name).code == 0
        assert read(tmp_path / name).metadata["sliders.base_class"] == here.models[family].class_path
        how = SPEECH if family == "lm" else PICTURE
        assert sliders("generate", "a dog", "--slider", tmp_path / name, *how).code == 0
