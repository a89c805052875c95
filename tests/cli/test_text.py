"""The `sliders` command on a tiny language model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from sliders import formats
from sliders.algebra.closed_forms import erase_output, onto, steer_output
from sliders.algebra.edit import Affine
from sliders.algebra.element import Element
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.cli import main as cli
from sliders.concept import Concept
from sliders.formats import edit as edit_file
from sliders.formats import peft
from sliders.formats.metadata import describe
from sliders.runtime.attach import attach
from sliders.runtime.layers import weight_shape
from tests import tiny, tiny_lm
from tests.commands import Ended, run
from tests.evaluation.conftest import random_slider
from tests.factory import normal

LAYER = "lm.model.layers.1.mlp.down_proj"
SHORT = ["--speaking.tokens", 9, "--speaking.temperature", 0]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a concept and neutral text."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), folder / "lm")
    (folder / "heldout.txt").write_text("how was your day\nthe dog\n")
    (folder / "neutral.txt").write_text("a dog with a hat\nthe day was good\n")
    concept = {
        "name": "mood",
        "modality": "text",
        "target": "you are a person",
        "positives": ["you are a happy person"],
        "negatives": ["you are a sad person"],
        "contexts": ["day"],
        "measure": {"attribute": "length", "prompts": str(folder / "heldout.txt")},
    }
    (folder / "mood.yaml").write_text(yaml.safe_dump(concept))
    return folder


@pytest.fixture(scope="module")
def lm(here: Path) -> CausalLMBackbone:
    """The model, for comparisons."""
    model = CausalLMBackbone(str(here / "lm"))
    model.load()
    return model


def save_slider(here: Path, lm: CausalLMBackbone, name: str, target: str, **changes: Any) -> Path:
    """Write a random slider that says what it is."""
    said: dict[str, Any] = {"base_model": lm.base_model, "base_class": lm.class_path, "fingerprint": lm.fingerprint()}
    said |= {"eta": 1.5, **changes}
    concept = Concept.load(here / "mood.yaml")
    metadata = describe(concept, rank=2, alpha=2.0, targets=[target], training={}, **said)
    return lm.save_slider(Slider(name, random_slider(lm, target).update, metadata), here)


@pytest.fixture(scope="module")
def mood(here: Path, lm: CausalLMBackbone) -> Path:
    """A slider's folder."""
    return save_slider(here, lm, "mood", "attention")


@pytest.fixture(scope="module")
def other(here: Path, lm: CausalLMBackbone) -> Path:
    """Another's."""
    return save_slider(here, lm, "other", "mlp")


@pytest.fixture(scope="module")
def stranger(here: Path, lm: CausalLMBackbone) -> Path:
    """One that was made for another base."""
    return save_slider(here, lm, "stranger", "mlp", base_model="elsewhere/model", fingerprint="0" * 32)


def sliders(here: Path, *arguments: object) -> Ended:
    """Run the command on the tiny model."""
    return run(cli.main, *arguments, "--base", here / "lm")


def response(lm: CausalLMBackbone, *on: tuple[Path, float], message: str = "the dog") -> str:
    """What the model says, likeliest tokens only."""
    loaded = [formats.load(path) for path, _ in on]
    dials = {slider.name: dial for slider, (_, dial) in zip(loaded, on, strict=True)}
    with attach(lm, loaded, dials):
        said = lm.respond(lm.encode([f"\n\n{message}"]), [0], 9, 0.0)
    ids = said["tokens"][0][said["mask"][0]]
    return lm.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


class TestGenerate:
    """Responses with sliders after the base's."""

    def test_the_base_alone(self, here: Path, lm: CausalLMBackbone) -> None:
        ended = sliders(here, "generate", "the dog", *SHORT)
        assert ended.code == 0, ended.err
        assert ended.out == f"> the dog\n{response(lm)}\n\n"

    def test_the_turned_after_the_base(self, here: Path, lm: CausalLMBackbone, mood: Path) -> None:
        ended = sliders(here, "generate", "the dog", "--slider", mood, "--dial", -1.5, *SHORT)
        assert ended.code == 0, ended.err
        turned = response(lm, (mood, -1.5))
        assert ended.out == f"> the dog\nbase:\n{response(lm)}\n\nmood -1.5:\n{turned}\n\n"
        assert turned != response(lm)

    def test_several_sliders_each_at_its_dial(self, here: Path, lm: CausalLMBackbone, mood: Path, other: Path) -> None:
        both = ["--slider", f"[{mood}, {other}]", "--dial", "[1, -2]"]
        ended = sliders(here, "generate", "the dog", *both, *SHORT)
        assert ended.code == 0, ended.err
        turned = response(lm, (mood, 1.0), (other, -2.0))
        assert ended.out.endswith(f"mood +1  other -2:\n{turned}\n\n")
        assert turned not in (response(lm, (mood, 1.0)), response(lm, (other, -2.0)), response(lm))

    def test_dial_0_is_the_base(self, here: Path, lm: CausalLMBackbone, mood: Path) -> None:
        ended = sliders(here, "generate", "the dog", "--slider", mood, "--dial", 0, *SHORT)
        assert ended.out.count(response(lm)) == 2

    def test_prompts_and_seeds(self, here: Path) -> None:
        hot = ["--speaking.tokens", 9, "--speaking.temperature", 1.5]
        ended = sliders(here, "generate", '["the dog", "day"]', "--seed", "[4, 5]", *hot)
        assert ended.code == 0, ended.err
        said = re.split(r"^> .*\n", ended.out, flags=re.MULTILINE)[1:]
        assert len(said) == 4
        assert len(set(said)) >= 3, "each seed is another response, and most messages are"
        alone = sliders(here, "generate", "day", "--seed", 5, *hot)
        assert alone.out.split("\n", 1)[1] == said[3]

    def test_an_instruction_stands_before_a_blank_line(self, here: Path, lm: CausalLMBackbone) -> None:
        ended = sliders(here, "generate", "be sad\n\nthe dog", *SHORT)
        said = lm.respond(lm.encode(["be sad\n\nthe dog"]), [0], 9, 0.0)
        assert lm.text(said)[0].rstrip("\ufffd") in ended.out


class TestEvaluate:
    """A slider, measured."""

    def test_the_report_stands_beside_the_slider(self, here: Path, mood: Path) -> None:
        arguments = ["--dials", "[-1, 1]", "--pictures", 2, "--speaking.neutral", here / "neutral.txt", *SHORT]
        ended = sliders(here, "evaluate", mood, *arguments)
        assert ended.code == 0, ended.err
        folder = mood.parent / "mood_evaluation"
        assert str(folder) in ended.out
        assert {file.name for file in folder.iterdir()} == {"metrics.json", "samples.md", "dose_response.png"}
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["dials"] == [-1, 0, 1], "0 is added"
        assert metrics["score"] == "length"
        assert metrics["divergence"][1] == 0 < metrics["divergence"][0]
        for perplexity in metrics["perplexity"]:
            assert f"{perplexity:.2f}" in ended.out

    def test_a_plain_lora_needs_a_concept(self, here: Path, lm: CausalLMBackbone, tmp_path: Path) -> None:
        """From elsewhere, without any word of what it is."""
        place = lm.save_slider(Slider("plain", random_slider(lm, "mlp").update), tmp_path)
        arguments = ["--dials", "[1]", "--pictures", 2, "--speaking.neutral", here / "neutral.txt", *SHORT]
        ended = sliders(here, "evaluate", place, *arguments, "--out", tmp_path / "out")
        assert ended.code == 1
        assert "plain" in ended.err
        ended = sliders(here, "evaluate", place, *arguments, "--out", tmp_path / "out", "--concept", here / "mood.yaml")
        assert ended.code == 0, ended.err
        assert (tmp_path / "out" / "metrics.json").exists()


def save_edit(lm: CausalLMBackbone, folder: Path, name: str, element: Element, modality: str = "text") -> Path:
    """Write an edit of the last layer of the second block."""
    file = folder / f"{name}.safetensors"
    edit_file.save(
        name, Affine({LAYER: element}), file, {"sliders.base_model": lm.base_model, "sliders.modality": modality}
    )
    return file


class TestBake:
    """Dials merged for good."""

    def test_the_new_model_says_what_the_slider_said(
        self, here: Path, lm: CausalLMBackbone, mood: Path, tmp_path: Path
    ) -> None:
        ended = sliders(here, "bake", mood, tmp_path / "new", "--dial", 2)
        assert ended.code == 0, ended.err
        made = CausalLMBackbone(str(tmp_path / "new"))
        made.load()
        assert response(made) == response(lm, (mood, 2.0)) != response(lm)

    def test_transformers_loads_the_model_with_all_of_them(
        self, here: Path, lm: CausalLMBackbone, mood: Path, other: Path, tmp_path: Path
    ) -> None:
        """Two sliders, of which one is on the layer of an edit that multiplies it."""
        direction = onto(normal(weight_shape(lm, LAYER)[0], 1, seed=1, dtype=torch.float32))
        edit = save_edit(lm, tmp_path, "ablated", erase_output(direction, None, weight_shape(lm, LAYER)))
        files, dials = [mood, other, edit], {"mood": 1.0, "other": -2.0, "ablated": 0.5}
        ended = sliders(here, "bake", f"[{','.join(map(str, files))}]", tmp_path / "new", "--dial", [*dials.values()])
        assert ended.code == 0, ended.err
        tokens = {"input_ids": torch.tensor([[1, 5, 9, 12]])}
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
        with torch.no_grad(), attach(lm, [formats.load_dial(file) for file in files], dials) as turned:
            wanted = lm.lm(**tokens).logits
            torch.testing.assert_close(theirs(**tokens).logits, wanted)
            turned.set(dict.fromkeys(dials, 0.0))
            assert (lm.lm(**tokens).logits - wanted).abs().max() > 1e-2

    def test_a_bias_without_a_place_in_the_checkpoint_is_refused(
        self, here: Path, lm: CausalLMBackbone, tmp_path: Path
    ) -> None:
        shape = weight_shape(lm, LAYER)
        vector = save_edit(lm, tmp_path, "vector", steer_output(normal(shape[0], seed=2, dtype=torch.float32), shape))
        ended = sliders(here, "bake", vector, tmp_path / "new")
        assert ended.code == 1
        assert LAYER in ended.err
        assert "bias" in ended.err
        assert not (tmp_path / "new").exists()

    def test_two_kinds_are_refused(self, here: Path, lm: CausalLMBackbone, mood: Path, tmp_path: Path) -> None:
        shape = weight_shape(lm, LAYER)
        vector = steer_output(normal(shape[0], seed=2, dtype=torch.float32), shape)
        ended = sliders(here, "bake", f"[{mood},{save_edit(lm, tmp_path, 'v', vector, 'image')}]", tmp_path / "new")
        assert ended.code == 1
        assert "different models" in ended.err

    def test_a_misspelt_place_is_named(self, here: Path, mood: Path, tmp_path: Path) -> None:
        """And is not taken for a slider of pictures."""
        ended = sliders(here, "bake", f"[{mood},{here / 'moof'}]", tmp_path / "new")
        assert ended.err == f"error: no slider file at {here / 'moof'}\n"


def test_preview_lets_the_formula_speak(here: Path, tmp_path: Path) -> None:
    arguments = ["--amounts", "[2]", "--pictures", 2, "--out", tmp_path / "out", *SHORT]
    ended = sliders(here, "preview", here / "mood.yaml", *arguments)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "preview.json").read_text())
    assert [row["amount"] for row in found["amounts"]] == [-2, 0, 2]
    assert found["prompts"] == ["how was your day", "the dog"]
    assert found["amounts"][0]["texts"] != found["amounts"][2]["texts"]


def test_preview_of_a_concept_without_a_score(here: Path, tmp_path: Path) -> None:
    concept = yaml.safe_load((here / "mood.yaml").read_text())
    concept["measure"]["attribute"] = ""
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(concept))
    arguments = ["--amounts", "[2]", "--pictures", 2, "--out", tmp_path / "out", *SHORT]
    ended = sliders(here, "preview", tmp_path / "mood.yaml", *arguments)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "preview.json").read_text())["amounts"]
    assert [row["mean"] for row in found] == [None, None, None]
    assert all(row["texts"] for row in found)
    assert f"{found[0]['log_odds']:+.3f}" in ended.out


class TestErrors:
    """In a line on stderr, with an exit code, and without a traceback."""

    def check(self, ended: Ended, *words: str) -> None:
        """How such a command ends."""
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert all(word in ended.err for word in words), ended.err

    @pytest.mark.parametrize("command", ["generate", "evaluate"])
    def test_another_base(self, here: Path, stranger: Path, command: str, tmp_path: Path) -> None:
        subject = ["generate", "day", "--slider", stranger]
        if command == "evaluate":
            subject = ["evaluate", stranger, "--pictures", 2, "--out", tmp_path, "--dials", "[1]"]
        arguments = [*SHORT, "--speaking.neutral", here / "neutral.txt"]
        ended = sliders(here, *subject, *arguments)
        self.check(ended, "stranger", "elsewhere/model", "--any_base true")
        if command == "generate":
            assert sliders(here, *subject, *arguments, "--any_base", "true").code == 0

    def test_a_slider_for_other_layers(self, here: Path, lm: CausalLMBackbone, tmp_path: Path) -> None:
        part = next(iter(random_slider(lm, "mlp").update.values()))
        wrong = Slider("wrong", type(random_slider(lm, "mlp").update)({"lm.nowhere": part}))
        place = lm.save_slider(wrong, tmp_path)
        self.check(sliders(here, "generate", "a", "--slider", place, *SHORT), "lm.nowhere")

    def test_a_folder_that_is_no_slider(self, here: Path) -> None:
        self.check(sliders(here, "generate", "a", "--slider", here), "no slider in", "adapter_config")

    @pytest.mark.parametrize("place", ["/no/such/model", "./nowhere"])
    def test_a_missing_base(self, place: str) -> None:
        ended = run(cli.main, "generate", "a", "--base", place)
        self.check(ended, f"no base model at {place}")

    def test_a_base_that_is_no_language_model(self, mood: Path, tmp_path: Path) -> None:
        model = tiny.save(tiny.stable_diffusion(), tmp_path / "sd")
        ended = run(cli.main, "generate", "a", "--slider", mood, "--base", model)
        self.check(ended, str(mood), "modality text", f"{model} is a model of the modality image")

    def test_a_concept_of_pictures(self, here: Path, mood: Path, tmp_path: Path) -> None:
        plain = {"name": "smile", "target": "a", "positives": ["b"], "negatives": ["c"]}
        (tmp_path / "smile.yaml").write_text(yaml.safe_dump(plain))
        ended = sliders(here, "evaluate", mood, "--concept", tmp_path / "smile.yaml")
        self.check(ended, "'smile' has no words for a model of text")

    @pytest.mark.parametrize(
        ("flag", "value"), [("temperature", -1), ("tokens", 0), ("tokens", -3), ("batch", 0)], ids=str
    )
    def test_speaking_that_cannot_be(self, here: Path, mood: Path, flag: str, value: int) -> None:
        subject = ["generate", "a"] if flag != "batch" else ["evaluate", mood, "--pictures", 2]
        self.check(sliders(here, *subject, f"--speaking.{flag}", value), f"{flag} is {value}")

    @pytest.mark.parametrize("flags", [["--speaking.batch", 0], ["--pictures", 0]], ids=str)
    def test_a_preview_that_cannot_be(self, here: Path, flags: list[object]) -> None:
        ended = sliders(here, "preview", here / "mood.yaml", *flags)
        self.check(ended, "is 0; it must be at least 1")
        assert ended.err.count("\n") == 1

    def test_fetch_of_an_unknown_name(self) -> None:
        self.check(run(cli.main, "fetch", "large"), "'large'", "smollm2")


def test_export_writes_what_llama_cpp_loads(here: Path, mood: Path, stranger: Path, tmp_path: Path) -> None:
    flags = ["--base", here / "lm"]
    ended = run(cli.main, "export", mood, tmp_path / "mood.gguf", *flags)
    assert ended.code == 0, ended.err
    assert f"--lora-scaled {tmp_path / 'mood.gguf'}" in ended.out
    names = [tensor.name for tensor in GGUFReader(tmp_path / "mood.gguf").tensors]
    assert "blk.0.attn_q.weight.lora_a" in names
    refused = run(cli.main, "export", stranger, tmp_path / "stranger.gguf", *flags)
    assert refused.code == 1
    assert "elsewhere/model" in refused.err
    wrong = run(cli.main, "export", mood, tmp_path / "mood.bin", *flags)
    assert "ends with .gguf" in wrong.err
    assert [file.name for file in tmp_path.iterdir()] == ["mood.gguf"]


def test_export_says_what_it_does_not_write(here: Path, lm: CausalLMBackbone, mood: Path, tmp_path: Path) -> None:
    shape = weight_shape(lm, LAYER)
    vector = save_edit(lm, tmp_path, "vector", steer_output(normal(shape[0], seed=2, dtype=torch.float32), shape))
    assert run(cli.main, "compose", f"[{mood}, {mood}]", tmp_path / "both", "--how", "hinge").code == 0
    for file, words in (
        (vector, "is an edit that does more than add to weights"),
        (tmp_path / "both", "is a hinge"),
        (tmp_path / "absent", "no slider file at"),
    ):
        ended = run(cli.main, "export", file, tmp_path / "new.gguf")
        assert ended.code == 1
        assert words in ended.err
        assert str(file) in ended.err


def test_compose_takes_the_base_from_what_names_it(
    here: Path, lm: CausalLMBackbone, mood: Path, tmp_path: Path
) -> None:
    """An edit's file that only adds to weights is a slider, but has no PEFT configuration."""
    task, parts = tmp_path / "task.safetensors", formats.load(mood)
    edit_file.save("task", parts.update, task, {"sliders.base_model": lm.base_model, "sliders.modality": "text"})
    ended = run(cli.main, "compose", f"[{task}, {mood}]", tmp_path / "both")
    assert ended.code == 0, ended.err
    assert peft.base_of(tmp_path / "both") == peft.base_of(mood)
    assert formats.load(tmp_path / "both").update.norm() == pytest.approx(2 * float(parts.update.norm()), rel=1e-4)
    ended = run(cli.main, "compose", f"[{task}]", tmp_path / "one")
    assert ended.code == 1
    assert f"none of {task} is a PEFT folder" in ended.err
    assert not (tmp_path / "one").exists()
