"""How runs end, stop, go on, and where: the real command, on a tiny model."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

import train
from sliders.backbones.unet import UNetBackbone
from sliders.formats import diffusers as slider_file
from sliders.training import callbacks, checkpoints, stopping
from tests.commands import ROOT, Ended, World, run, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What runs are made from; they have no reports."""
    made = world(tmp_path_factory.mktemp("world"))
    config = yaml.safe_load(made.config.read_text())
    config["trainer"]["callbacks"] = []
    config["trainer"]["max_steps"] = 6
    config["checkpoint"]["every_n_train_steps"] = 100
    made.config.write_text(yaml.safe_dump(config))
    return made


def begin(here: World, runs: Path, *arguments: object) -> Ended:
    """Run the training command."""
    return run(train.main, "--config", here.config, "--runs", runs, *arguments)


def with_callback(kind: str, /, **arguments: Any) -> tuple[str, str]:
    """Flags by which a run has one callback."""
    return "--trainer.callbacks", json.dumps([{"class_path": f"tests.training.{kind}", "init_args": arguments}])


def file(runs: Path, name: str = "happy") -> Path:
    """Where a run's slider is."""
    return runs / name / "happy.safetensors"


def spent(slider: Path) -> dict[str, Any]:
    """What a slider says of its training."""
    return json.loads(slider_file.load(slider).metadata["sliders.training"])


def same(one: Path, other: Path) -> bool:
    """Whether two slider files have the same factors, bit by bit."""
    a, b = slider_file.load(one).update, slider_file.load(other).update
    return set(a) == set(b) and all(torch.equal(a[n].A, b[n].A) and torch.equal(a[n].B, b[n].B) for n in a)


def last(runs: Path, name: str = "happy") -> Path:
    """The newest checkpoint of a run."""
    return runs / name / "checkpoints" / "last.ckpt"


def step(checkpoint: Path) -> int:
    """That a checkpoint is of."""
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def whole(here: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps that nothing stopped."""
    runs = tmp_path_factory.mktemp("whole")
    assert begin(here, runs).code == 0
    return runs


def test_a_run_shorter_than_the_interval_leaves_a_checkpoint(whole: Path) -> None:
    assert step(last(whole)) == 6
    assert not checkpoints.previous(last(whole)).exists(), "the control: the interval made none"


def test_the_last_line_names_the_run(here: World, tmp_path: Path) -> None:
    ended = begin(here, tmp_path, "--trainer.max_steps", 1)
    assert ended.out.splitlines()[-1] == f"run      {tmp_path / 'happy'}"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C counts, also where the tests were started in the background by a shell that ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
class TestStopping:
    """Ctrl-C and SIGTERM."""

    @pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
    @pytest.mark.parametrize("gathered", [1, 2])
    def test_a_run_stops_at_a_step_s_end_and_goes_on_from_it(
        self, here: World, whole: Path, tmp_path: Path, name: str, code: int, gathered: int
    ) -> None:
        """With slider and checkpoint; by the command of the last line, to where an unstopped run comes."""
        gather = ["--trainer.accumulate_grad_batches", gathered]
        ended = begin(here, tmp_path, *gather, *with_callback("signals.SignalAt", step=3, name=name))
        assert ended.code == code
        assert spent(file(tmp_path))["steps"] == 4
        assert step(last(tmp_path)) == 4
        words = shlex.split(ended.out.splitlines()[-1].partition("go on with: ")[2])
        assert words[-2:] == ["--ckpt_path", str(last(tmp_path))]
        again = run(train.main, *words[1:], "--trainer.callbacks", "null")
        assert again.code == 0, again.err
        if gathered == 1:
            assert same(file(tmp_path), file(whole))
        else:
            assert begin(here, tmp_path / "whole", *gather).code == 0
            assert same(file(tmp_path), file(tmp_path / "whole"))
        assert [folder.name for folder in tmp_path.iterdir() if folder.name != "whole"] == ["happy"]

    def test_a_second_time_stops_at_once(self, here: World, tmp_path: Path) -> None:
        """In the middle of a step, of which there is no checkpoint."""
        often = with_callback("signals.SignalAt", step=3, times=2)
        assert begin(here, tmp_path, *often, "--checkpoint.every_n_train_steps", 2).code == 130
        assert spent(file(tmp_path))["steps"] == 3
        assert step(last(tmp_path)) == 2

    def test_before_the_first_step_nothing_is_left(
        self, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(self: UNetBackbone) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(UNetBackbone, "load", load)
        assert begin(here, tmp_path, "--trainer.logger", "null").code == 143
        assert not list(tmp_path.iterdir())

    def test_during_a_report_the_slider_is_there(self, here: World, tmp_path: Path) -> None:
        ended = begin(here, tmp_path, *with_callback("signals.BrokenReport", kind="SIGTERM"))
        assert ended.code == 143
        assert spent(file(tmp_path))["steps"] == 6

    def test_before_anything_was_learnt_there_is_a_checkpoint_and_no_slider(self, here: World, tmp_path: Path) -> None:
        """A learning rate that warms up from 0 leaves the first step without an effect."""
        warm = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 1e-30}}
        flags = ["--model.lr_scheduler", json.dumps(warm), *with_callback("signals.SignalAt", step=0)]
        ended = begin(here, tmp_path, *flags, "--model.optimizer.init_args.lr", 1e-30)
        assert ended.code == 130
        assert "no slider is written" in ended.out
        assert step(last(tmp_path)) == 1
        assert not file(tmp_path).exists()

    def test_handlers_are_what_they_were(self, here: World, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        begin(here, tmp_path, *with_callback("signals.SignalAt", step=1))
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_nothing_is_stopped_while_it_is_written(self) -> None:
        """But after it; and the control, where nothing is written."""
        done: list[str] = []

        def write(when: Callable[[], Any]) -> None:
            with stopping.listening(), when():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("written")

        for when, wanted in ((stopping.writing, ["written"]), (stopping.listening, [])):
            done.clear()
            with pytest.raises(stopping.Stopped):
                write(when)
            assert done == wanted

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_as_the_shell_sees_it(self, here: World, tmp_path: Path, number: signal.Signals, code: int) -> None:
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(here.config), "--runs", str(tmp_path)]
        process = subprocess.Popen(
            [*command, "--trainer.max_steps", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        patience = time.monotonic() + 300
        while not (tmp_path / "happy" / "config.yaml").is_file():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < patience
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code
        assert "Traceback" not in err
        assert out.splitlines()[-1].startswith(f"stopped  go on with: python {ROOT / 'train.py'} ")
        assert spent(file(tmp_path))["steps"] == step(last(tmp_path)) >= 1


class TestReports:
    """A report that fails loses nothing."""

    @pytest.mark.parametrize("kind", ["OSError", "ImportError"])
    def test_in_one_line(self, here: World, tmp_path: Path, kind: str) -> None:
        ended = begin(here, tmp_path, *with_callback("signals.BrokenReport", kind=kind))
        assert ended.code == 1
        assert spent(file(tmp_path))["steps"] == 6
        error = ended.err.splitlines()[-1]
        assert error.startswith("error: the slider is written into")
        assert "no pictures today" in error

    def test_of_a_fault_of_its_own(self, here: World, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="no pictures today"):
            begin(here, tmp_path, *with_callback("signals.BrokenReport", kind="fault"))
        assert spent(file(tmp_path))["steps"] == 6
        assert step(last(tmp_path)) == 6


class TestResuming:
    """From checkpoints."""

    def test_of_the_last_step_writes_what_is_missing(self, here: World, whole: Path, tmp_path: Path) -> None:
        assert begin(here, tmp_path).code == 0
        file(tmp_path).unlink()
        report = {
            "class_path": "sliders.training.callbacks.FinalReport",
            "init_args": {"judge": None, "scenes": 1, "dials": [-1, 0, 1], "how": {"steps": 1}},
        }
        bake = {"class_path": "sliders.training.callbacks.BakeModel"}
        wanted = ["--trainer.callbacks", json.dumps([bake, report])]
        ended = begin(here, tmp_path, "--ckpt_path", last(tmp_path), *wanted)
        assert ended.code == 0, ended.err
        assert same(file(tmp_path), file(whole))
        assert spent(file(tmp_path))["steps"] == 6
        assert (tmp_path / "happy" / "strip.png").is_file()
        assert (tmp_path / "happy" / "model" / "model_index.json").is_file()

    @pytest.mark.parametrize("gathered", [1, 2])
    def test_more_steps_go_on_where_a_longer_run_would_be(self, here: World, tmp_path: Path, gathered: int) -> None:
        gather = ["--trainer.accumulate_grad_batches", gathered]
        assert begin(here, tmp_path / "long", *gather, "--trainer.max_steps", 9).code == 0
        assert begin(here, tmp_path / "short", *gather).code == 0
        short = tmp_path / "short"
        arguments = [*gather, "--trainer.max_steps", 9, "--ckpt_path", last(short)]
        assert begin(here, short, *arguments).code == 0
        assert same(file(short), file(tmp_path / "long"))
        assert step(checkpoints.previous(last(short))) == 6

    def test_fewer_steps_than_were_made_are_an_error(self, here: World, whole: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(UNetBackbone, "load", lambda self: pytest.fail("weights are read"))
        ended = begin(here, whole, "--ckpt_path", last(whole), "--trainer.max_steps", 5)
        assert ended.code == 1
        assert "trainer.max_steps is 5" in ended.err.splitlines()[-1]
        assert " 6 steps" in ended.err.splitlines()[-1]

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("model.optimizer.init_args.lr", 0.5),
            ("model.optimizer.init_args.weight_decay", 0.5),
            ("model.loss.init_args.eta", 3.0),
            ("model.rank", 2),
            ("model.targets", "[selfattn]"),
            ("model.states.init_args.trajectories", 4),
            ("data.batch_size", 3),
            ("data.seed", 7),
            ("data.signs", "[1]"),
            ("data.magnitude", "[1.0, 1.0]"),
            ("trainer.accumulate_grad_batches", 2),
            ("trainer.gradient_clip_val", 0.1),
        ],
        ids=str,
    )
    def test_other_settings_are_refused_by_their_names(
        self, here: World, whole: Path, flag: str, value: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before the weights are read."""
        monkeypatch.setattr(UNetBackbone, "load", lambda self: pytest.fail("weights are read"))
        before = (whole / "happy" / "config.yaml").read_bytes()
        ended = begin(here, whole, "--ckpt_path", last(whole), "--trainer.max_steps", 9, f"--{flag}", value)
        assert ended.code == 1
        assert f"{flag} was " in ended.err.splitlines()[-1]
        assert (whole / "happy" / "config.yaml").read_bytes() == before

    def test_another_concept_is_refused(self, here: World, whole: Path, tmp_path: Path) -> None:
        concept = yaml.safe_load(here.concept.read_text())
        concept["measure"]["prompts"] = str(here.folder / "prompts.txt")
        for positives, code in ((["a merry person"], 1), (["a happy person"], 0)):
            (tmp_path / "concept.yaml").write_text(yaml.safe_dump(concept | {"positives": positives}))
            flags = ["--data.concept", tmp_path / "concept.yaml", "--ckpt_path", last(whole)]
            ended = begin(here, tmp_path / "runs", *flags)
            assert ended.code == code, ended.err
            assert ("data.concept was" in ended.err) == bool(code)

    def test_seconds_and_evaluations_add_up(self, here: World, tmp_path: Path) -> None:
        assert begin(here, tmp_path).code == 0
        first = spent(file(tmp_path))
        checkpoint = torch.load(last(tmp_path), weights_only=True)
        assert checkpoint["spent"]["teacher_evaluations"] == first["teacher_evaluations"] > 0
        checkpoint["spent"]["seconds"] = 1000.0
        torch.save(checkpoint, last(tmp_path))
        assert begin(here, tmp_path, "--ckpt_path", last(tmp_path), "--trainer.max_steps", 7).code == 0
        then = spent(file(tmp_path))
        assert then["seconds"] > 1000
        assert then["teacher_evaluations"] > first["teacher_evaluations"]

    def test_its_config_is_that_of_a_run_from_the_beginning(self, here: World, whole: Path, tmp_path: Path) -> None:
        assert begin(here, tmp_path, "--ckpt_path", last(whole)).code == 0
        written = yaml.safe_load((tmp_path / "happy" / "config.yaml").read_text())
        assert written["ckpt_path"] is None
        assert written["overwrite"] is False

    @pytest.mark.parametrize("kind", ["half", "flipped", "gone"])
    def test_a_broken_checkpoint_falls_back_to_the_one_before(
        self, here: World, whole: Path, tmp_path: Path, kind: str
    ) -> None:
        assert begin(here, tmp_path, "--checkpoint.every_n_train_steps", 4).code == 0
        damage(last(tmp_path), kind)
        ended = begin(here, tmp_path, "--ckpt_path", last(tmp_path))
        assert ended.code == 0, ended.err
        assert f"going on from {checkpoints.previous(last(tmp_path))}, step 4" in ended.out
        assert same(file(tmp_path), file(whole))

    def test_both_broken_are_an_error(self, here: World, tmp_path: Path) -> None:
        assert begin(here, tmp_path, "--checkpoint.every_n_train_steps", 4).code == 0
        for place in (last(tmp_path), checkpoints.previous(last(tmp_path))):
            damage(place, "half")
        ended = begin(here, tmp_path, "--ckpt_path", last(tmp_path))
        assert ended.code == 1
        assert f"error: --ckpt_path {last(tmp_path)}" in ended.err.splitlines()[-1]


def damage(place: Path, kind: str) -> None:
    """Break a checkpoint."""
    content = bytearray(place.read_bytes())
    if kind == "gone":
        place.unlink()
    elif kind == "half":
        place.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        place.write_bytes(content)


class TestFolders:
    """A run has a folder of its own."""

    def test_a_second_run_does_not_touch_the_first(self, here: World, tmp_path: Path) -> None:
        logs = ["--trainer.logger", "null", "--trainer.max_steps", 2]
        assert begin(here, tmp_path, *logs).code == 0
        before = {path: path.read_bytes() for path in (tmp_path / "happy").rglob("*") if path.is_file()}
        for number in (2, 3):
            ended = begin(here, tmp_path, *logs, "--data.seed", number)
            assert ended.out.splitlines()[-1] == f"run      {tmp_path / f'happy-{number}'}"
            assert last(tmp_path, f"happy-{number}").is_file()
            assert list((tmp_path / f"happy-{number}").glob("events.out.tfevents*"))
        assert {path: path.read_bytes() for path in (tmp_path / "happy").rglob("*") if path.is_file()} == before
        assert not same(file(tmp_path), file(tmp_path, "happy-2"))

    def test_overwriting_leaves_nothing_of_the_first(self, here: World, tmp_path: Path) -> None:
        logs = ["--trainer.logger", "null", "--trainer.max_steps", 2]
        assert begin(here, tmp_path, *logs).code == 0
        (old,) = (tmp_path / "happy").glob("events.out.tfevents*")
        (tmp_path / "happy" / "metrics.json").touch()
        ended = begin(here, tmp_path, *logs, "--overwrite")
        assert ended.out.splitlines()[-1] == f"run      {tmp_path / 'happy'}"
        assert not old.exists()
        assert not (tmp_path / "happy" / "metrics.json").exists()
        assert last(tmp_path).is_file()
        assert [folder.name for folder in tmp_path.iterdir()] == ["happy"]

    def test_what_would_be_overwritten_stays_until_the_training_begins(self, here: World, tmp_path: Path) -> None:
        assert begin(here, tmp_path, "--trainer.max_steps", 1).code == 0
        ended = begin(here, tmp_path, "--overwrite", "--model.targets", "[xatn]", "--trainer.logger", "null")
        assert ended.code == 1
        assert spent(file(tmp_path))["steps"] == 1
        assert not list((tmp_path / "happy").glob("events*"))

    def test_what_is_no_run_is_not_overwritten(self, here: World, tmp_path: Path) -> None:
        (tmp_path / "happy").mkdir()
        (tmp_path / "happy" / "letters.txt").write_text("dear")
        ended = begin(here, tmp_path, "--overwrite")
        assert ended.code == 1
        assert "is no run's folder" in ended.err.splitlines()[-1]
        assert [path.name for path in (tmp_path / "happy").iterdir()] == ["letters.txt"]

    def test_overwriting_and_going_on_contradict(self, here: World, whole: Path) -> None:
        ended = begin(here, whole, "--overwrite", "--ckpt_path", last(whole))
        assert ended.code == 1
        assert "--overwrite" in ended.err.splitlines()[-1]

    def test_two_at_once_do_not_write_into_one(self, here: World, tmp_path: Path) -> None:
        (tmp_path / "happy").mkdir()
        with FileLock(tmp_path / "happy" / ".lock"):
            assert begin(here, tmp_path, "--trainer.max_steps", 1).out.splitlines()[-1].endswith("happy-2")
            ended = begin(here, tmp_path, "--overwrite")
            assert ended.code == 1
            assert "is being written by another run" in ended.err.splitlines()[-1]
        assert begin(here, tmp_path, "--trainer.max_steps", 1).out.splitlines()[-1].endswith("happy"), "the control"

    def test_a_run_that_another_process_is_at_does_not_go_on_here(self, here: World, whole: Path) -> None:
        with FileLock(whole / "happy" / ".lock"):
            ended = begin(here, whole, "--ckpt_path", last(whole))
        assert ended.code == 1
        assert "another process" in ended.err.splitlines()[-1]

    def test_a_run_that_died_leaves_no_lock(self, here: World, tmp_path: Path) -> None:
        """Nor a folder that counts as a run's, while it had not made a checkpoint."""
        code = (
            "import os, sys; from pathlib import Path; from sliders.training.folder import take_new\n"
            "folder = take_new(Path(sys.argv[1])); (folder.path / 'config.yaml').touch(); os._exit(9)"
        )
        died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "happy")], cwd=ROOT, check=False)
        assert died.returncode == 9
        assert (tmp_path / "happy" / ".lock").exists()
        assert begin(here, tmp_path, "--trainer.max_steps", 1).out.splitlines()[-1].endswith("happy")

    @pytest.mark.parametrize("wrong", [("--model.targets", "[xatn]"), ("--trainer.fast_dev_run", "true")], ids=str)
    def test_a_run_that_cannot_begin_leaves_nothing(self, here: World, tmp_path: Path, wrong: tuple[str, str]) -> None:
        assert begin(here, tmp_path, *wrong, "--trainer.logger", "null").code == 1
        assert not list(tmp_path.iterdir())


class TestPlaces:
    """Where nothing can be written, it is known before the weights are read."""

    @pytest.mark.parametrize("place", ["the folder of runs", "the run's"])
    def test_a_file_where_a_folder_should_be(
        self, here: World, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(UNetBackbone, "load", lambda self: pytest.fail("weights are read"))
        runs = tmp_path / "runs"
        if place == "the run's":
            runs.mkdir()
        taken = runs if place == "the folder of runs" else runs / "happy"
        taken.touch()
        ended = begin(here, runs)
        assert ended.code == 1
        assert str(taken) in ended.err.splitlines()[-1]
        assert taken.read_bytes() == b""

    def test_a_disk_that_is_full_is_said_in_one_line(
        self, here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While it trains; the checkpoint before stays whole, and no half of a new one."""
        sync = os.fsync
        calls: list[int] = []

        def full(number: int) -> None:
            calls.append(number)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(number)

        monkeypatch.setattr(os, "fsync", full)
        ended = begin(here, tmp_path, "--checkpoint.every_n_train_steps", 2)
        assert ended.code == 1
        assert ended.err.splitlines()[-1] == f"error: {os.strerror(errno.ENOSPC)}"
        assert step(last(tmp_path)) == 2
        assert [path.name for path in last(tmp_path).parent.iterdir()] == ["last.ckpt"]


def test_the_slider_comes_before_the_reports(here: World) -> None:
    """Whatever the order in which a config names them."""
    from sliders.training.cli import SliderCLI

    report = with_callback("signals.BrokenReport")
    made = SliderCLI(["--config", str(here.config), "--runs", str(here.folder / "order"), *report])
    kinds = [type(callback) for callback in callbacks.callbacks_of(made.trainer)]
    names = [kind.__name__ for kind in kinds]
    assert names.index("SliderWriter") < names.index("BrokenReport") < names.index("RunCheckpoint")
