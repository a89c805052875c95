"""The `sliders` command, on a tiny model."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.concept import Concept
from sliders.evaluation.pictures.dose import DoseResponse, Drift
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.strength import DRIFT_AT_1, DRIFT_AT_2, suggest_eta
from sliders.formats import diffusers as slider_file
from sliders.formats.metadata import describe
from sliders.media import image
from sliders.report import drawing
from tests import tiny
from tests.commands import Ended, World, run, world
from tests.evaluation.conftest import random_slider

QUICK = ["--sampling.steps", 2, "--sampling.guidance", 2]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A folder with a tiny model, a concept and a judge."""
    made = world(tmp_path_factory.mktemp("world"))
    torch.manual_seed(0)
    AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8).save(made.folder / "judge.safetensors")
    return made


@pytest.fixture(scope="module")
def base(here: World) -> UNetBackbone:
    """The model, for comparisons."""
    model = UNetBackbone(str(here.model))
    model.load()
    return model


def save_slider(here: World, base: UNetBackbone, name: str, target: str, **changes: Any) -> Path:
    """Write a random slider that says what it is."""
    concept = Concept.load(here.concept)
    said: dict[str, Any] = {
        "base_model": base.base_model,
        "base_class": base.class_path,
        "fingerprint": base.fingerprint(),
    }
    said |= {"eta": 1.5, **changes}
    metadata = describe(concept, rank=2, alpha=2.0, targets=[target], training={}, **said)
    slider_file.save(Slider(name, random_slider(base, target).update, metadata), here.folder / f"{name}.safetensors")
    return here.folder / f"{name}.safetensors"


@pytest.fixture(scope="module")
def happy(here: World, base: UNetBackbone) -> Path:
    """A slider's file."""
    return save_slider(here, base, "happy", "xattn")


@pytest.fixture(scope="module")
def other(here: World, base: UNetBackbone) -> Path:
    """Another's, on the text encoder."""
    return save_slider(here, base, "other", "text-encoder")


@pytest.fixture(scope="module")
def stranger(here: World, base: UNetBackbone) -> Path:
    """One that was made for another base."""
    return save_slider(here, base, "stranger", "xattn", base_model="elsewhere/model", fingerprint="0" * 32)


def sliders(here: World, *arguments: object) -> Ended:
    """Run the command on the tiny model."""
    return run(cli.main, *arguments, "--base", here.model)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Sequence[str], Sequence[str]]]:
    """What every grid was made of: pictures, columns, rows."""
    seen: list[tuple[Tensor, Sequence[str], Sequence[str]]] = []
    draw = drawing.grid

    def watch(pictures: Tensor, columns: Sequence[str], rows: Sequence[str], title: str = "") -> Image.Image:
        seen.append((pictures, columns, rows))
        return draw(pictures, columns, rows, title)

    monkeypatch.setattr(drawing, "grid", watch)
    return seen


Shown = list[tuple[Tensor, Sequence[str], Sequence[str]]]


class TestGenerate:
    """Pictures with sliders beside the base's."""

    def test_pictures_stand_beside_the_base_s_of_the_same_seed(
        self, here: World, happy: Path, tmp_path: Path, shown: Shown
    ) -> None:
        out = tmp_path / "new" / "grid.png"
        prompts = '["a person", "a dog", "a person with a hat"]'
        ended = sliders(here, "generate", prompts, "--slider", happy, "--seed", "[4, 5]", "--out", out, *QUICK)
        assert ended.code == 0
        assert str(out) in ended.out
        with Image.open(out) as image:
            image.load()
        pictures, columns, rows = shown[0]
        assert pictures.shape == (4, 3, 3, 16, 16)
        assert len(columns) == 4
        assert list(rows) == ["a person", "a dog", "a person with a hat"]
        assert "4" in columns[0]
        assert "5" in columns[2]
        differences = (pictures[1::2] - pictures[0::2]).abs().amax((2, 3, 4))
        assert (differences > 0.01).all()
        assert (pictures[0] - pictures[2]).abs().max() > 0.01

    def test_dial_0_is_the_base(self, here: World, happy: Path, tmp_path: Path, shown: Shown) -> None:
        out = tmp_path / "grid.png"
        for slider in ([], ["--slider", happy, "--dial", 0], ["--slider", happy, "--dial", -1.5]):
            assert sliders(here, "generate", "a person", *slider, "--out", out, *QUICK).code == 0
        alone, at_0, turned = (pictures for pictures, _, _ in shown)
        assert alone.shape[0] == 1
        assert torch.equal(at_0[0], at_0[1])
        assert torch.equal(alone[0], at_0[0])
        assert not torch.allclose(turned[1], at_0[0], atol=0.01)

    def test_every_slider_has_its_own_dial(
        self, here: World, happy: Path, other: Path, tmp_path: Path, shown: Shown
    ) -> None:
        both = ["--slider", f"[{happy}, {other}]"]
        cases = ([*both, "--dial", "[1, 0]"], ["--slider", happy], [*both, "--dial", "[0, 1]"], ["--slider", other])
        for case in cases:
            assert sliders(here, "generate", "a person", *case, "--out", tmp_path / "grid.png", *QUICK).code == 0
        turned = [pictures[1] for pictures, _, _ in shown]
        torch.testing.assert_close(turned[0], turned[1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(turned[2], turned[3], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(turned[0], turned[2], atol=0.01)

    def test_a_slider_of_another_base_is_refused_unless_told_otherwise(
        self, here: World, stranger: Path, tmp_path: Path
    ) -> None:
        arguments = ["generate", "a person", "--slider", stranger, "--out", tmp_path / "grid.png", *QUICK]
        ended = sliders(here, *arguments)
        assert ended.code != 0
        assert ended.err.startswith("error: ")
        for word in ("stranger", "elsewhere/model", "--any"):
            assert word in ended.err
        assert not (tmp_path / "grid.png").exists()

    def test_the_flag_that_the_error_names_is_one(self, here: World, stranger: Path, tmp_path: Path) -> None:
        """Typed as it is printed, the slider is loaded all the same."""
        arguments = ["generate", "a person", "--slider", stranger, "--out", tmp_path / "grid.png", *QUICK]
        flag = re.search(r"--any[-_]base( true)?", sliders(here, *arguments).err)
        assert flag is not None
        ended = sliders(here, *arguments, *flag[0].split())
        assert ended.code == 0, ended.err[-300:]
        assert (tmp_path / "grid.png").exists()


class TestEvaluate:
    """A slider, measured."""

    def test_the_report_stands_beside_the_slider(self, here: World, happy: Path) -> None:
        ended = sliders(
            here, "evaluate", happy, "--judge", here.folder / "judge.safetensors", "--dials", "[-1, 1]",
            "--pictures", 2, "--oracle", "true", *QUICK,
        )  # fmt: skip
        assert ended.code == 0
        folder = happy.parent / "happy_evaluation"
        assert str(folder) in ended.out
        assert {file.name for file in folder.iterdir()} == {"strip.png", "dose_response.png", "metrics.json"}
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["dials"] == [-1, 0, 1], "0 is added"
        assert metrics["eta"] == 1.5, "the slider's own"
        assert metrics["slider"]["attribute"] == "mood"
        assert metrics["oracle"] is not None
        assert metrics["straightness"]["additivity"] > 0
        for response in metrics["slider"]["response"]:
            assert f"{response:.2f}" in ended.out

    def test_without_a_judge_there_are_pictures(self, here: World, happy: Path, tmp_path: Path) -> None:
        ended = sliders(
            here, "evaluate", happy, "--judge", "null", "--dials", "[1]", "--pictures", 1, "--out", tmp_path / "new",
            "--eta", 3, *QUICK,
        )  # fmt: skip
        assert ended.code == 0
        assert {file.name for file in (tmp_path / "new").iterdir()} == {"strip.png", "metrics.json"}
        assert json.loads((tmp_path / "new" / "metrics.json").read_text())["eta"] == 3

    def test_a_file_that_does_not_say_its_concept_needs_one(
        self, here: World, base: UNetBackbone, tmp_path: Path
    ) -> None:
        """A LoRA from elsewhere is measured with `--concept`."""
        file = tmp_path / "plain.safetensors"
        slider_file.save(Slider("plain", random_slider(base, "xattn").update), file)
        arguments = ["evaluate", file, "--judge", "null", "--pictures", 1, "--dials", "[1]", "--out", tmp_path, *QUICK]
        ended = sliders(here, *arguments)
        assert ended.code != 0
        assert "plain" in ended.err
        assert sliders(here, *arguments, "--concept", here.concept).code == 0

    def test_two_sliders_of_one_folder_have_a_report_each(self, here: World, happy: Path, tmp_path: Path) -> None:
        """But in a run's folder, which has one slider, it is `evaluation`."""
        quick = ["--judge", "null", "--dials", "[1]", "--pictures", 1, *QUICK]
        for name in ("one", "two"):
            shutil.copy(happy, tmp_path / f"{name}.safetensors")
            assert sliders(here, "evaluate", tmp_path / f"{name}.safetensors", *quick).code == 0
        assert {file.parent.name for file in tmp_path.rglob("metrics.json")} == {"one_evaluation", "two_evaluation"}
        (tmp_path / "config.yaml").touch()
        assert sliders(here, "evaluate", tmp_path / "one.safetensors", *quick).code == 0
        assert (tmp_path / "evaluation" / "metrics.json").is_file()

    def test_a_judge_that_does_not_know_the_measure_is_refused_before_anything_is_made(
        self, here: World, happy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        AttributeJudge({"hat": ["no", "yes"]}, width=8).save(tmp_path / "judge.safetensors")
        monkeypatch.setattr(image, "evaluate_dial", lambda *_, **__: pytest.fail("pictures are made"))
        ended = sliders(here, "evaluate", happy, "--judge", tmp_path / "judge.safetensors")
        assert ended.err == "error: the judge has no attribute 'mood'; it has hat\n"


class TestPreview:
    """What a slider can become."""

    @pytest.mark.parametrize("values", [None, {"hat": ["no", "yes"]}, {"mood": ["sad", "calm"]}], ids=str)
    def test_a_judge_that_is_of_no_use_is_refused_before_anything_is_made(
        self, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, list[str]] | None
    ) -> None:
        judge = tmp_path / "judge.safetensors"
        if values is not None:
            AttributeJudge(values, width=8).save(judge)
        monkeypatch.setattr(image, "sample_oracle", lambda *_: pytest.fail("pictures are made"))
        ended = sliders(here, "preview", here.concept, "--judge", judge, "--out", tmp_path / "out")
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert str(judge) in ended.err if values is None else "it has " in ended.err

    def test_the_oracle_is_shown_and_an_eta_suggested(self, here: World, tmp_path: Path) -> None:
        ended = sliders(
            here, "preview", here.concept, "--judge", here.folder / "judge.safetensors", "--pictures", 2,
            "--amounts", "[2, 1]", "--out", tmp_path / "new", *QUICK,
        )  # fmt: skip
        assert ended.code == 0
        assert {"strip.png", "dose_response.png"} <= {file.name for file in (tmp_path / "new").iterdir()}
        assert "suggested eta" in ended.out
        for amount in ("-2", "-1", "+1", "+2"):
            assert amount in ended.out

    def test_without_a_judge_it_is_shown_in_the_runs_folder(
        self, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments = ["--judge", "null", "--pictures", 1, "--amounts", "[1]"]
        assert sliders(here, "preview", here.concept, *arguments, *QUICK).code == 0
        assert (tmp_path / "runs" / "preview" / "happy" / "strip.png").exists()


class TestBake:
    """A slider in the weights."""

    def test_the_new_model_is_the_base_and_the_sliders(
        self, here: World, base: UNetBackbone, happy: Path, other: Path, tmp_path: Path
    ) -> None:
        ended = sliders(here, "bake", f"[{happy}, {other}]", tmp_path / "new", "--dial", "[1, -2]")
        assert ended.code == 0
        assert str(tmp_path / "new") in ended.out
        made = UNetBackbone(str(tmp_path / "new"))
        made.load()
        moved = {**slider_file.load(happy).at(1.0), **slider_file.load(other).at(-2.0)}
        wanted = dict(base.state_dict())
        for name, update in moved.items():
            wanted[f"{name}.weight"] = wanted[f"{name}.weight"] + update.dense()
        for name, weight in made.state_dict().items():
            torch.testing.assert_close(weight, wanted[name], msg=name)
        assert made.fingerprint() != base.fingerprint()
        DiffusionPipeline.from_pretrained(tmp_path / "new")
        assert [path.name for path in tmp_path.iterdir()] == ["new"]

    def test_two_sliders_on_the_same_layers_add_up(self, here: World, base: UNetBackbone, tmp_path: Path) -> None:
        files = [save_slider(here, base, name, "xattn") for name in ("one", "two")]
        assert sliders(here, "bake", f"[{files[0]}, {files[1]}]", tmp_path / "new", "--dial", "[1, 0.5]").code == 0
        made = UNetBackbone(str(tmp_path / "new"))
        made.load()
        name = base.select_targets(["xattn"])[0]
        update = slider_file.load(files[0]).update[name].dense()
        wanted = base.get_submodule(name).get_parameter("weight") + 1.5 * update
        torch.testing.assert_close(made.get_submodule(name).get_parameter("weight"), wanted)


WRONG: dict[str, tuple[Callable[[World, Path], list[object]], list[str]]] = {
    "no command": (lambda here, happy: [], ["preview", "generate", "evaluate", "train"]),
    "no such command": (lambda here, happy: ["paint"], ["paint"]),
    "misspelt flag": (lambda here, happy: ["generate", "a person", "--dail", 1], ["--dail"]),
    "no such slider": (lambda here, happy: ["generate", "a", "--slider", "/no/slider"], ["/no/slider"]),
    "not a slider": (lambda here, happy: ["generate", "a", "--slider", here.concept], ["happy.yaml"]),
    "one slider twice": (lambda here, happy: ["generate", "a", "--slider", f"[{happy}, {happy}]"], ["happy"]),
    "dials for other sliders": (
        lambda here, happy: ["generate", "a", "--slider", happy, "--dial", "[1, 2]"],
        ["--dial"],
    ),
    "no such judge": (
        lambda here, happy: ["evaluate", happy, "--judge", "/no/judge", "--pictures", 1, *QUICK],
        ["/no/judge"],
    ),
    "no such concept": (lambda here, happy: ["preview", "/no/concept.yaml"], ["/no/concept.yaml"]),
    "amounts below 0": (lambda here, happy: ["preview", here.concept, "--amounts", "[-1, 1]"], ["--amounts"]),
    "no seeds": (lambda here, happy: ["generate", "a", "--seed", "[]"], ["--seed is empty"]),
    "no prompts": (lambda here, happy: ["generate", "[]"], ["prompt is empty"]),
    "no pictures": (
        lambda here, happy: ["evaluate", happy, "--judge", "null", "--pictures", 0],
        ["pictures is 0"],
    ),
    "a grid that is no picture's file": (
        lambda here, happy: ["generate", "a", "--slider", happy, "--out", "grid"],
        ["--out is grid", ".png"],
    ),
    "bake to nowhere": (lambda here, happy: ["bake", happy], ["out"]),
    "bake one slider twice": (
        lambda here, happy: ["bake", f"[{happy}, {happy}]", "new", "--dial", "[1, -1]"],
        ["happy"],
    ),
    "bake over the base": (lambda here, happy: ["bake", happy, here.model], ["model is there already"]),
}


class TestErrors:
    """What is wrong is said in a line on stderr, with an exit code, and without a traceback."""

    @pytest.mark.parametrize("case", WRONG)
    def test_of_arguments(
        self, here: World, happy: Path, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments, words = WRONG[case]
        ended = sliders(here, *arguments(here, happy)) if case != "no command" else run(cli.main)
        assert ended.code != 0
        error = ended.err[ended.err.index("error:") :]
        assert all(word in error for word in words), error
        assert not list(tmp_path.rglob("*.png"))

    @pytest.mark.parametrize(("flag", "value"), [("batch", 0), ("steps", 0), ("steps", -3)], ids=str)
    def test_of_sampling_that_cannot_be(self, here: World, tmp_path: Path, flag: str, value: int) -> None:
        """In one line, though jsonargparse makes the argument."""
        ended = sliders(here, "generate", "a", "--out", tmp_path / "grid.png", f"--sampling.{flag}", value)
        assert ended.code == 1
        assert ended.err == f"error: sampling.{flag} is {value}; it must be at least 1\n"

    @pytest.mark.parametrize("command", ["generate", "evaluate", "preview", "bake"])
    def test_of_a_missing_base(self, here: World, happy: Path, command: str, tmp_path: Path) -> None:
        subject = {"generate": ["a"], "evaluate": [happy], "preview": [here.concept], "bake": [happy, tmp_path / "new"]}
        ended = run(cli.main, command, *subject[command], "--base", "/no/such/model")
        assert ended.code == 1
        assert ended.err.startswith("error: no base model at /no/such/model")

    def test_of_a_slider_for_other_layers(self, here: World, tmp_path: Path, happy: Path) -> None:
        """Of the same base by its word, but with layers that the model does not have."""
        slider = slider_file.load(happy)
        wrong = Slider(
            "wrong", type(slider.update)({"unet.nowhere": next(iter(slider.update.values()))}), slider.metadata
        )
        slider_file.save(wrong, tmp_path / "wrong.safetensors")
        for arguments in (
            ["generate", "a", "--slider", tmp_path / "wrong.safetensors", "--out", tmp_path / "grid.png", *QUICK],
            ["bake", tmp_path / "wrong.safetensors", tmp_path / "new"],
        ):
            ended = sliders(here, *arguments)
            assert ended.code == 1
            assert "unet.nowhere" in ended.err

    def test_of_another_family(self, here: World, tmp_path: Path) -> None:
        model = tiny.save(tiny.stable_diffusion_xl(), tmp_path / "xl")
        whose = ["--backbone", "sliders.backbones.unet.UNetBackbone", "--backbone.model", model]
        ended = run(cli.main, "generate", "a", *whose, "--out", tmp_path / "grid.png", *QUICK)
        assert ended.code == 1
        assert str(model) in ended.err


def test_help_names_the_commands_and_their_arguments() -> None:
    ended = run(cli.main, "--help")
    assert ended.code == 0
    assert all(command in ended.out for command in ("preview", "generate", "evaluate", "bake"))
    ended = run(cli.main, "generate", "--help")
    assert ended.code == 0
    assert "where to turn it" in ended.out
    assert "of pictures: the file to write" in ended.out


class TestSuggestedEta:
    """From constructed responses of the oracle."""

    amounts = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)

    def dose(self, effects: dict[float, float], drifts: dict[float, float]) -> DoseResponse:
        """One whose response is 0.5 ± effect / 2 and whose drift is given, on both sides."""
        both = list(self.amounts)
        response = [0.5 + (effects[abs(a)] / 2) * (1 if a > 0 else -1) if a else 0.5 for a in both]
        return DoseResponse(
            dials=both,
            pictures=1,
            attribute="mood",
            value="happy",
            response=response,
            error=[0.0] * 7,
            spearman=1.0,
            drift=[Drift(drifts[abs(a)] if a else 0.0, "hat", "yes") for a in both],
            means={},
            pixel_change=[0.0] * 7,
            pixel_change_elsewhere=[0.0] * 7,
        )

    def test_the_largest_where_the_effect_grows(self) -> None:
        eta, reason = suggest_eta(self.amounts, self.dose({1: 0.3, 2: 0.7, 4: 0.9}, {1: 0.01, 2: 0.02, 4: 0.05}))
        assert eta == 2.0, "of 4, the dial's double is not known"
        assert "0.70" in reason

    def test_the_smallest_that_reaches_nine_tenths_of_the_best(self) -> None:
        eta, _ = suggest_eta(self.amounts, self.dose({1: 0.64, 2: 0.7, 4: 0.9}, {1: 0.01, 2: 0.02, 4: 0.05}))
        assert eta == 1.0

    def test_drift_at_the_end_bounds_it(self) -> None:
        over = DRIFT_AT_1 + 0.01
        eta, _ = suggest_eta(self.amounts, self.dose({1: 0.3, 2: 0.7, 4: 0.9}, {1: 0.01, 2: over, 4: over}))
        assert eta == 1.0

    def test_drift_at_twice_the_end_bounds_it(self) -> None:
        over = DRIFT_AT_2 + 0.01
        eta, _ = suggest_eta(self.amounts, self.dose({1: 0.3, 2: 0.7, 4: 0.9}, {1: 0.01, 2: 0.02, 4: over}))
        assert eta == 1.0

    def test_drift_of_one_side_counts(self) -> None:
        dose = self.dose({1: 0.3, 2: 0.7, 4: 0.9}, {1: 0.01, 2: 0.02, 4: 0.05})
        dose.drift[self.amounts.index(-2.0)] = Drift(0.5, "hat", "yes")
        assert suggest_eta(self.amounts, dose)[0] is None  # as the double of 1, and itself

    def test_none_where_everything_else_moves_too(self) -> None:
        eta, reason = suggest_eta(self.amounts, self.dose({1: 0.3, 2: 0.7, 4: 0.9}, {1: 0.5, 2: 0.5, 4: 0.5}))
        assert eta is None
        assert "drift" in reason

    @pytest.mark.parametrize("sign", [-1.0, 0.0])
    def test_none_where_the_concept_does_not_move_or_moves_the_wrong_way(self, sign: float) -> None:
        effects = {1.0: 0.3 * sign, 2.0: 0.7 * sign, 4.0: 0.9 * sign}
        eta, reason = suggest_eta(self.amounts, self.dose(effects, {1: 0.01, 2: 0.02, 4: 0.05}))
        assert eta is None
        assert "effect" in reason
