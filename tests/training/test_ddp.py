"""One slider on several processes: the same weights as one process has on all the rows."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import Tensor

import train
from sliders.formats import diffusers as slider_file
from tests.commands import ROOT, World, run, world


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model and a run with prompts to preserve."""
    made = world(tmp_path_factory.mktemp("world"))
    config, concept = yaml.safe_load(made.config.read_text()), yaml.safe_load(made.concept.read_text())
    made.concept.write_text(yaml.safe_dump(concept | {"preserve": ["a dog", "a hat"]}))
    config["model"]["states"]["init_args"] |= {"trajectories": 4}
    config["trainer"]["callbacks"] = []
    made.config.write_text(yaml.safe_dump(config))
    return made


def factors(runs: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What a run has written."""
    update = slider_file.load(runs / "happy" / "happy.safetensors").update
    return {name: (part.A, part.B) for name, part in update.items()}


def distance(one: dict[str, tuple[Tensor, Tensor]], other: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The largest difference of any number in the factors."""
    assert set(one) == set(other)
    return max(float((a - b).abs().max()) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("states", ["Pool", "Rollout"])
def test_two_processes_train_what_one_does(here: World, tmp_path: Path, states: str) -> None:
    """A pool is filled twice on the way, by each process for itself and with the same states."""
    common = ["--config", here.config, "--model.states", f"sliders.training.states.{states}", "--model.states.steps", 2]
    whole = ["--data.batch_size", 4, "--data.preserve_batch_size", 2]
    half = ["--data.batch_size", 2, "--data.preserve_batch_size", 1]
    for name, rows in (("one", whole), ("half", half)):
        assert run(train.main, *common, *rows, "--runs", tmp_path / name).code == 0
    both = [*common, *half, "--runs", tmp_path / "both", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    command = [sys.executable, ROOT / "train.py", *both]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    one = factors(tmp_path / "one")
    assert distance(one, factors(tmp_path / "both")) <= 1e-6
    assert distance(one, factors(tmp_path / "half")) > 1e-4, "the control: half of the rows train another slider"
