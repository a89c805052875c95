"""Several sliders in one process and in several, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from filelock import FileLock

import train
from sliders.backbones.unet import UNetBackbone
from sliders.cli import main as cli
from sliders.formats import diffusers as slider_file
from sliders.training import many
from tests.commands import ROOT, Ended, World, run, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model, and a folder of three configs on it: two concepts, one of them at two ranks."""
    made = world(tmp_path_factory.mktemp("world"))
    config, concept = yaml.safe_load(made.config.read_text()), yaml.safe_load(made.concept.read_text())
    (made.folder / "sad.yaml").write_text(yaml.safe_dump(concept | {"name": "sad", "positives": ["a sad dog"]}))
    (made.folder / "configs").mkdir()
    for name, concept_file, rank in (("a", "happy", 2), ("b", "sad", 2), ("c", "happy", 3)):
        config["data"]["concept"] = str(made.folder / f"{concept_file}.yaml")
        config["model"]["rank"] = rank
        (made.folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return made


def together(here: World, runs: Path, *arguments: object) -> Ended:
    """Run the command."""
    return run(cli.main, "train-many", here.folder / "configs", "--runs", runs, *arguments)


def sliders_of(runs: Path) -> dict[str, Path]:
    """The slider files of finished runs, by name and rank."""
    found = {}
    for done in runs.glob("*/done.json"):
        known = json.loads(done.read_text())
        found[f"{known['name']} {known['metadata']['sliders.rank']}"] = done.parent / f"{known['name']}.safetensors"
    return found


def same(one: Path, other: Path, within: float = 0) -> bool:
    """Whether two slider files have the same factors, bit by bit or up to a share of the larger one's size."""
    a, b = slider_file.load(one).update, slider_file.load(other).update
    if within:
        return set(a) == set(b) and float((a - b).norm()) <= within * float(a.norm())
    return set(a) == set(b) and all(torch.equal(a[n].A, b[n].A) and torch.equal(a[n].B, b[n].B) for n in a)


@pytest.fixture(scope="module")
def finished(here: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of three runs in this process, and how often the base was read."""
    runs, reads = tmp_path_factory.mktemp("runs"), []
    use = UNetBackbone.use
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNetBackbone, "use", lambda self, pipeline: (reads.append(1), use(self, pipeline))[1])
        assert together(here, runs).code == 0
    return runs, len(reads)


def test_the_base_is_read_once(finished: tuple[Path, int]) -> None:
    assert finished[1] == 1
    assert set(sliders_of(finished[0])) == {"happy 2", "sad 2", "happy 3"}


def test_each_is_what_it_is_alone(here: World, finished: tuple[Path, int], tmp_path: Path) -> None:
    """Bit by bit, so that nothing of a run is left in the next one."""
    for config, name in (("a", "happy 2"), ("b", "sad 2"), ("c", "happy 3")):
        file = here.folder / "configs" / f"{config}.yaml"
        assert run(train.main, "--config", file, "--runs", tmp_path, "--name", config).code == 0
        alone = next((tmp_path / config).glob("*.safetensors"))
        assert same(alone, sliders_of(finished[0])[name]), name


def test_they_share_what_the_base_says(finished: tuple[Path, int], here: World, tmp_path: Path) -> None:
    """The third slider's pool begins as the first one's, whose concept it has."""
    cost = {name: _evaluations(file) for name, file in sliders_of(finished[0]).items()}
    assert run(train.main, "--config", here.folder / "configs" / "c.yaml", "--runs", tmp_path).code == 0
    alone = _evaluations(next(tmp_path.glob("happy/*.safetensors")))
    assert cost["happy 3"] < cost["sad 2"] < cost["happy 2"] == alone


def _evaluations(file: Path) -> int:
    """How often the base was asked."""
    return json.loads(slider_file.load(file).metadata["sliders.training"])["teacher_evaluations"]


def test_what_is_finished_is_not_trained_again(
    here: World, finished: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "_train", lambda *_: pytest.fail("it is trained again"))
    ended = together(here, finished[0])
    assert ended.code == 0
    assert "happy" in ended.out


def test_another_config_is_another_run(here: World, finished: tuple[Path, int], tmp_path: Path) -> None:
    """Also where it is the concept's file that says something else; not where only the place is another."""
    file = here.folder / "configs" / "a.yaml"
    key = many.plan(file, tmp_path).key
    assert (finished[0] / f"happy-{key}").is_dir()
    assert many.plan(file, tmp_path, ["--model.rank=5"]).key != key
    assert many.plan(file, tmp_path, ["--name=other"]).key == key
    concept = yaml.safe_load(here.concept.read_text())
    (tmp_path / "concept.yaml").write_text(yaml.safe_dump(concept))
    assert many.plan(file, tmp_path, [f"--data.concept={tmp_path / 'concept.yaml'}"]).key == key
    (tmp_path / "concept.yaml").write_text(yaml.safe_dump(concept | {"negatives": ["a dog"]}))
    assert many.plan(file, tmp_path, [f"--data.concept={tmp_path / 'concept.yaml'}"]).key != key


def test_a_run_that_fails_does_not_stop_the_others(here: World, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text((here.folder / "configs" / "a.yaml").read_text().replace("xattn", "no_layer"))
    configs = f"[{tmp_path / 'wrong.yaml'},{here.folder / 'configs' / 'b.yaml'}]"
    ended = run(cli.main, "train-many", configs, "--runs", tmp_path / "runs")
    assert ended.code == 1
    assert "no_layer" in ended.out
    assert "1 of 2 are not finished (happy)" in ended.err
    assert set(sliders_of(tmp_path / "runs")) == {"sad 2"}


@pytest.mark.parametrize(
    ("arguments", "word"), [(["/no/such/folder"], "/no/such/folder"), (["configs/avatars", "--workers", 0], "workers")]
)
def test_errors(arguments: list[object], word: str) -> None:
    ended = run(cli.main, "train-many", *arguments)
    assert ended.code == 1
    assert word in ended.err


def stopped(here: World, runs: Path, *overrides: str) -> Ended:
    """Run the command until its second run's second step."""
    stop = json.dumps([{"class_path": "tests.training.test_many.StopSecond"}])
    return together(here, runs, "--overrides", json.dumps([f"--trainer.callbacks={stop}", *overrides]))


class StopSecond(L.Callback):
    """Sends SIGTERM in the second step of the second run of a process."""

    runs = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        StopSecond.runs += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if StopSecond.runs == 2 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_worker_leaves_its_run_to_go_on(
    here: World, finished: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopSecond, "runs", 0)
    ended = stopped(here, tmp_path)
    assert ended.code == 143
    assert ended.out.splitlines()[-1].startswith("stopped  go on with: ")
    assert len(sliders_of(tmp_path)) == 1
    steps = {step_of(file) for file in tmp_path.glob("*/checkpoints/last.ckpt")}
    assert steps == {4, 2}
    ended = stopped(here, tmp_path)
    assert ended.code == 0, ended.err
    ours, whole = sliders_of(tmp_path), sliders_of(finished[0])
    assert all(same(ours[name], whole[name]) for name in whole)


def step_of(checkpoint: Path) -> int:
    """That a checkpoint is of."""
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_a_run_is_done_only_while_its_slider_is_there(here: World, finished: tuple[Path, int], tmp_path: Path) -> None:
    """A checkpoint of the last step makes it again, without training."""
    one = here.folder / "configs" / "b.yaml"
    assert run(cli.main, "train-many", one, "--runs", tmp_path).code == 0
    (slider,) = sliders_of(tmp_path).values()
    planned = many.plan(one, tmp_path)
    assert planned.done is not None
    assert planned.done["slider"] == slider.name
    slider.unlink()
    assert planned.done is None
    assert run(cli.main, "train-many", one, "--runs", tmp_path).code == 0
    assert same(slider, sliders_of(finished[0])["sad 2"])
    assert json.loads(slider_file.load(slider).metadata["sliders.training"])["steps"] == 4


def test_a_training_that_leaves_no_slider_is_not_done(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many.SliderCLI, "fit", lambda self: None)
    ended = run(cli.main, "train-many", here.folder / "configs" / "b.yaml", "--runs", tmp_path)
    assert ended.code == 1
    assert "there is no slider in" in ended.out
    assert not list(tmp_path.glob("*/done.json"))


@pytest.mark.parametrize("broken", [["last.ckpt"], ["last.ckpt", "last-previous.ckpt"]], ids=str)
def test_a_broken_checkpoint_does_not_hold_a_run_up(
    here: World, finished: tuple[Path, int], tmp_path: Path, broken: list[str]
) -> None:
    """It goes on from the one before, at the third step, or begins anew, and says so."""
    one = here.folder / "configs" / "b.yaml"
    assert run(cli.main, "train-many", one, "--runs", tmp_path).code == 0
    (folder,) = (file.parent for file in tmp_path.glob("*/done.json"))
    (folder / "done.json").unlink()
    for name in broken:
        place = folder / "checkpoints" / name
        place.write_bytes(place.read_bytes()[:100])
    ended = run(cli.main, "train-many", one, "--runs", tmp_path)
    assert ended.code == 0, ended.err
    assert ("begins anew" if len(broken) == 2 else "last-previous.ckpt, step 3") in ended.out
    assert same(next(iter(sliders_of(tmp_path).values())), sliders_of(finished[0])["sad 2"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_all_workers(here: World, tmp_path: Path, workers: int) -> None:
    """From outside, to the command; its workers end their steps, and are gone."""
    if workers > 1:
        pytest.importorskip("submitit")
    command = [
        sys.executable,
        "-m",
        "sliders.cli.main",
        "train-many",
        str(here.folder / "configs"),
        "--runs",
        str(tmp_path),
    ]
    command += ["--overrides", '["--trainer.max_steps=100000"]', "--workers", str(workers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    patience = time.monotonic() + 300
    while len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) < workers:
        assert process.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < patience
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert "stopped  go on with: " in out.splitlines()[-1]
    begun = [file.parent for file in tmp_path.glob("*/checkpoints")]
    assert len(begun) == workers
    for folder in begun:
        slider = next(folder.glob("*.safetensors"))
        steps = json.loads(slider_file.load(slider).metadata["sliders.training"])["steps"]
        assert steps == step_of(folder / "checkpoints" / "last.ckpt")
        with FileLock(folder / ".lock").acquire(timeout=0):
            pass


@pytest.mark.slow
def test_a_killed_process_loses_nothing(here: World, finished: tuple[Path, int], tmp_path: Path) -> None:
    """SIGKILL in the middle of a run; the next call, by two workers, ends where the uninterrupted one ended."""
    overrides = ["--overrides", '["--trainer.max_steps=12","--checkpoint.every_n_train_steps=1"]']
    assert together(here, tmp_path / "whole", *overrides).code == 0
    command = [sys.executable, "-m", "sliders.cli.main", "train-many", str(here.folder / "configs")]
    command += ["--runs", str(tmp_path / "killed"), *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(sliders_of(tmp_path / "killed")) < 3
    pytest.importorskip("submitit")
    assert together(here, tmp_path / "killed", *overrides, "--workers", 2, "--cluster", "local").code == 0
    whole, killed = sliders_of(tmp_path / "whole"), sliders_of(tmp_path / "killed")
    assert set(whole) == set(killed)
    # workers have other numbers of threads than this process, which round sums differently
    assert all(same(whole[name], killed[name], within=1e-4) for name in whole)
    assert not all(same(file, next(iter(whole.values())), within=1e-4) for file in whole.values())
