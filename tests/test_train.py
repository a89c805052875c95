"""`python train.py`, on a tiny model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from sliders.algebra.slider import Slider
from sliders.concept import Concept
from sliders.formats import diffusers as slider_file
from sliders.formats.metadata import concept_of
from sliders.resources.shipped import config_names
from tests import families, tiny
from tests.commands import ROOT, Ended, World, run, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What runs are made from."""
    return world(tmp_path_factory.mktemp("world"))


def begin(here: World, runs: Path, *arguments: object) -> Ended:
    """Run the training command."""
    return run(train.main, "--config", here.config, "--runs", runs, *arguments)


@pytest.fixture(scope="module")
def finished(here: World) -> tuple[Path, Ended]:
    """The folder of a run with TensorBoard, and how it ended."""
    ended = begin(here, here.folder / "runs", "--trainer.logger", "null")
    return here.folder / "runs" / "happy", ended


def same(one: Slider, other: Slider) -> bool:
    """Whether two sliders have the same factors, bit by bit."""
    return set(one.update) == set(other.update) and all(
        torch.equal(one.update[name].A, other.update[name].A) and torch.equal(one.update[name].B, other.update[name].B)
        for name in one.update
    )


class TestRun:
    """A run from a config."""

    def test_it_leaves_everything_in_its_folder(self, finished: tuple[Path, Ended]) -> None:
        folder, ended = finished
        assert ended.code == 0
        names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert {"happy.safetensors", "strip.png", "metrics.json", "config.yaml", "checkpoints/last.ckpt"} <= names
        assert any("tfevents" in name for name in names)
        assert {name for name in names if any(part.startswith(".") for part in Path(name).parts)} == {".lock"}

    def test_it_says_where_the_slider_is_and_how_to_use_it(self, finished: tuple[Path, Ended]) -> None:
        folder, ended = finished
        for text in (str(folder / "happy.safetensors"), str(folder / "strip.png"), "load_lora_weights"):
            assert text in ended.out
        assert "Traceback" not in ended.err

    def test_the_slider_is_a_trained_one(self, finished: tuple[Path, Ended], here: World) -> None:
        slider = slider_file.load(finished[0] / "happy.safetensors")
        assert slider.update.norm() > 0
        assert concept_of(slider) == Concept.load(here.concept)
        assert slider.metadata["sliders.base_model"] == str(here.model)

    def test_its_config_makes_the_same_slider_again(
        self, finished: tuple[Path, Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The written config alone is enough, in another folder and under another name."""
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(77)
        arguments = ["--config", finished[0] / "config.yaml", "--runs", tmp_path, "--name", "again"]
        assert run(train.main, *arguments).code == 0
        again = slider_file.load(tmp_path / "again" / "happy.safetensors")
        assert same(again, slider_file.load(finished[0] / "happy.safetensors"))
        assert run(train.main, *arguments, "--data.seed", 1).code == 0
        other = slider_file.load(tmp_path / "again-2" / "happy.safetensors")
        assert not same(other, again), "the control: another seed makes another slider"

    def test_it_goes_on_from_a_checkpoint(self, finished: tuple[Path, Ended], here: World, tmp_path: Path) -> None:
        """The checkpoint before the last is of the third step of four."""
        checkpoint = finished[0] / "checkpoints" / "last-previous.ckpt"
        assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
        assert begin(here, tmp_path, "--ckpt_path", checkpoint).code == 0
        resumed = slider_file.load(tmp_path / "happy" / "happy.safetensors")
        assert same(resumed, slider_file.load(finished[0] / "happy.safetensors"))

    def test_flags_override_the_config(self, here: World, tmp_path: Path) -> None:
        arguments = ["--model.rank", 3, "--model.targets", "[xattn-strict,'proj_in$']", "--trainer.max_steps", 2]
        assert begin(here, tmp_path, "--name", "other", *arguments).code == 0
        slider = slider_file.load(tmp_path / "other" / "happy.safetensors")
        assert {update.rank for update in slider.update.values()} == {3}
        assert {name.rpartition(".")[2] for name in slider.update} == {"to_k", "to_v", "proj_in"}
        written = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
        assert written["model"]["rank"] == 3
        assert [folder.name for folder in tmp_path.iterdir()] == ["other"]

    def test_another_source_of_states_and_a_baked_model(self, here: World, tmp_path: Path) -> None:
        """All of a config's parts are exchangeable: an erasure that is written as a model."""
        config = {
            "trainer": {"max_steps": 2, "callbacks": [{"class_path": "sliders.training.callbacks.BakeModel"}]},
            "model": {
                "states": {"class_path": "sliders.training.states.Rollout", "init_args": {"steps": 2}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
                "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.ConstantLR"},
                "targets": ["text-encoder"],
            },
            "data": {"signs": [1], "magnitude": [1, 1]},
        }
        (tmp_path / "erase.yaml").write_text(yaml.safe_dump(config))
        ended = begin(here, tmp_path / "runs", "--config", tmp_path / "erase.yaml")
        assert ended.code == 0
        assert (tmp_path / "runs" / "happy" / "model" / "model_index.json").is_file()
        assert str(tmp_path / "runs" / "happy" / "model") in ended.out

    def test_help_names_the_arguments_and_their_units(self) -> None:
        ended = run(train.main, "--help")
        assert ended.code == 0
        for text in ("--model.rank", "--data.batch_size", "--ckpt_path", "--runs", "alpha / rank"):
            assert text in ended.out


LARGE: dict[str, Callable[[], Any]] = {
    "sd15/age": lambda: tiny.stable_diffusion(room=77),
    "sdxl/age": lambda: tiny.stable_diffusion_xl(77),
    "sd35/age": lambda: families.family("sd3"),
    "flux1/dev": lambda: families.family("flux"),
    "flux1/schnell": lambda: families.family("schnell"),
    "flux2/klein": lambda: families.family("klein"),
    "qwen/age": lambda: families.family("qwen"),
    "zimage/age": lambda: families.family("zimage"),
    "sana/age": lambda: families.family("sana"),
    "wan/age": lambda: families.family("wan"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_config_for_a_large_model_runs_on_a_tiny_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the model, the device and the numbers of pictures and steps, and their size, is changed."""
    monkeypatch.chdir(ROOT)
    model, file = tiny.save(LARGE[name](), tmp_path / "model"), ROOT / "configs" / f"{name}.yaml"
    said = yaml.safe_load(file.read_text())
    callbacks = said["trainer"]["callbacks"]
    for callback in callbacks:
        callback["init_args"] |= {"scenes": 1, "how": {"steps": 1, "guidance": 2.0}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    small = ["--trainer.max_steps", 1, "--trainer.accelerator", "cpu", "--model.states.steps", 2]
    small += ["--trainer.enable_progress_bar", "false", "--model.backbone.model", model]
    if said["model"]["backbone"]["class_path"].endswith("PipelineBackbone"):
        side = 32 if name == "sana/age" else 16
        small += ["--model.backbone.height", side, "--model.backbone.width", side]
    if name == "wan/age":
        small += ["--model.backbone.call", "{num_frames: 2}"]
    if name == "sana/age":
        small += ["--model.backbone.call", "{use_resolution_binning: false}"]
    arguments = ["--config", file, "--config", tmp_path / "small.yaml", "--runs", tmp_path / "runs"]
    ended = run(train.main, *arguments, "--name", "small", *small)
    assert ended.code == 0, ended.err
    slider = next((tmp_path / "runs" / "small").glob("*.safetensors"))
    assert slider_file.load(slider).update.norm() > 0
    assert (tmp_path / "runs" / "small" / "strip.webp").is_file() == (name == "wan/age")


def test_every_config_for_a_large_model_is_run() -> None:
    small = {"avatars", "flow", "smollm2", "editors"}
    assert set(LARGE) == {name for name in config_names() if name.partition("/")[0] not in small}


WRONG: dict[str, tuple[list[object], list[str]]] = {
    "misspelt key": (["--model.rnk", 3], ["model.rnk"]),
    "unknown group": (["--model.targets", "[xatn]"], ["xatn", "xattn", "noxattn"]),
    "pattern without a match": (["--model.targets", "[xattn,'unet.to_z$']"], ["unet.to_z$", "nearest"]),
    "missing base": (["--model.backbone.model", "/no/such/model"], ["/no/such/model"]),
    "rank 0": (["--model.rank", 0], ["model.rank"]),
    "rank of words": (["--model.rank", "four"], ["rank", "four"]),
    "unknown class": (["--model.states", "Pond"], ["Pond"]),
    "wrong argument of a part": (["--model.states.trajectories", 1], ["trajectories"]),
    "missing concept": (["--data.concept", "/no/such/concept.yaml"], ["/no/such/concept.yaml"]),
    "name with a slash": (["--data.concept.name", "../happy"], ["../happy"]),
    "no such config": (["--config", "/no/such/config.yaml"], ["/no/such/config.yaml"]),
    "no such checkpoint": (["--ckpt_path", "/no/such.ckpt"], ["/no/such.ckpt"]),
    "a slider file never": (["--slider_file.every", 0], ["SliderWriter.every is 0"]),
    "no end": (["--trainer.max_steps", -1], ["max_steps"]),
}


class TestErrors:
    """What is wrong is said in a line on stderr, with an exit code, and without a traceback."""

    @pytest.mark.parametrize("case", WRONG)
    def test_of_arguments(self, here: World, tmp_path: Path, case: str) -> None:
        arguments, words = WRONG[case]
        ended = begin(here, tmp_path / "runs", *arguments)
        assert ended.code != 0
        error = ended.err[ended.err.index("error:") :]
        assert all(word in error for word in words), error
        assert not list(tmp_path.rglob("*.safetensors"))

    @pytest.mark.parametrize(("key", "word"), [("positive", "positive"), ("measure", "measure"), ("target", "target")])
    def test_of_a_concept_s_file(self, here: World, tmp_path: Path, key: str, word: str) -> None:
        """A misspelt key, a value of another kind, and a missing key."""
        concept = yaml.safe_load(here.concept.read_text())
        if key == "positive":
            concept["positive"] = concept.pop("positives")
        elif key == "measure":
            concept["measure"] = "happiness"
        else:
            del concept["target"]
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(concept))
        ended = begin(here, tmp_path / "runs", "--data.concept", tmp_path / "wrong.yaml")
        assert ended.code != 0
        assert word in ended.err[ended.err.index("error:") :]

    def test_of_a_missing_judge(self, here: World, tmp_path: Path) -> None:
        probe = {"class_path": "sliders.training.callbacks.Probe", "init_args": {"judge": "/no/judge"}}
        (tmp_path / "judged.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [probe]}}))
        ended = begin(here, tmp_path / "runs", "--config", tmp_path / "judged.yaml")
        assert ended.code != 0
        assert "/no/judge" in ended.err

    @pytest.mark.parametrize(
        ("given", "words"),
        [({"every": 0}, "Probe.every is 0"), ({"how": {"steps": 0}}, "sampling.steps is 0")],
        ids=str,
    )
    def test_of_a_callback_in_one_line(self, here: World, tmp_path: Path, given: dict[str, Any], words: str) -> None:
        """Though jsonargparse tries what else a list of callbacks may be."""
        probe = {"class_path": "sliders.training.callbacks.Probe", "init_args": given}
        (tmp_path / "probed.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [probe]}}))
        ended = begin(here, tmp_path / "runs", "--config", tmp_path / "probed.yaml")
        assert ended.code == 1
        assert ended.err.splitlines()[-1] == f"error: {words}; it must be at least 1"

    @pytest.mark.parametrize("kind", ["broken", "other", "empty"])
    def test_of_a_checkpoint_that_is_none(
        self, here: World, finished: tuple[Path, Ended], tmp_path: Path, kind: str
    ) -> None:
        checkpoint = tmp_path / "wrong.ckpt"
        if kind == "broken":
            whole = (finished[0] / "checkpoints" / "last.ckpt").read_bytes()
            checkpoint.write_bytes(whole[: len(whole) // 2])
        elif kind == "other":
            torch.save({"weights": torch.zeros(2)}, checkpoint)
        else:
            checkpoint.touch()
        ended = begin(here, tmp_path / "runs", "--ckpt_path", checkpoint)
        assert ended.code != 0
        assert str(checkpoint) in ended.err

    def test_of_a_model_of_another_family(self, here: World, tmp_path: Path) -> None:
        ended = begin(
            here,
            tmp_path / "runs",
            "--model.backbone",
            "sliders.backbones.sdxl.SDXLBackbone",
            "--model.backbone.model",
            here.model,
        )
        assert ended.code != 0
        assert str(here.model) in ended.err

    @pytest.mark.slow
    def test_as_the_shell_sees_them(self, here: World, tmp_path: Path) -> None:
        """In a process of its own: one line on stderr, exit code 1."""
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(here.config), "--runs", str(tmp_path)]
        ended = subprocess.run(
            [*command, "--model.backbone.model", "/no/such/model"], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1
        assert ended.stderr.rstrip().splitlines()[-1].startswith("error: no base model at /no/such/model")
        assert "Traceback" not in ended.stderr


def position(checkpoint: Path) -> int:
    """The step that a checkpoint was written at; -1 where there is none."""
    return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.is_file() else -1


@pytest.mark.slow
@pytest.mark.parametrize("states", ["Pool", "Rollout"])
def test_a_killed_run_ends_where_one_that_was_not_ends(here: World, tmp_path: Path, states: str) -> None:
    """SIGKILL, whenever it comes, while a checkpoint is written after every step."""
    steps = 60
    arguments = ["--trainer.max_steps", steps, "--checkpoint.every_n_train_steps", 1, "--slider_file.every", 1]
    if states == "Rollout":
        arguments += ["--model.states", "sliders.training.states.Rollout", "--model.states.steps", 2]
    assert begin(here, tmp_path / "whole", *arguments).code == 0

    last = tmp_path / "killed" / "happy" / "checkpoints" / "last.ckpt"
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(here.config), "--runs", str(tmp_path / "killed")]
    process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 300
    while position(last) < 3:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    assert 3 <= position(last) < steps
    slider_file.load(tmp_path / "killed" / "happy" / "happy.safetensors")  # whole, though it was killed
    assert begin(here, tmp_path / "killed", *arguments, "--ckpt_path", last).code == 0
    one, other = (slider_file.load(tmp_path / name / "happy" / "happy.safetensors") for name in ("whole", "killed"))
    assert same(one, other)
