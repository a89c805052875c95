"""The real commands, run in this process as the shell would run them, on a tiny model."""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml

from tests import tiny

ROOT = Path(__file__).parents[1]

RUN = {
    "trainer": {
        "max_steps": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "callbacks": [
            {
                "class_path": "sliders.training.callbacks.FinalReport",
                "init_args": {"judge": None, "scenes": 2, "dials": [-1, 0, 1], "how": {"steps": 2}},
            }
        ],
    },
    "model": {
        "backbone": {"class_path": "sliders.backbones.unet.UNetBackbone", "init_args": {"model": None}},
        "states": {
            "class_path": "sliders.training.states.Pool",
            "init_args": {"trajectories": 2, "steps": 2, "refresh": 3},
        },
        "targets": ["xattn"],
    },
    "data": {"concept": None, "batch_size": 2},
    "checkpoint": {"every_n_train_steps": 3},
}
"""A run of four steps; checkpoints at the third."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, as the shell sees it."""

    code: int
    out: str
    err: str


def run(main: Callable[[], None], *arguments: object) -> Ended:
    """Run a command; an exception that is not its own way to exit is the caller's to see (a traceback)."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    argv = ["command", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
    number = code if isinstance(code, int) else 0 if code is None else 1
    return Ended(number, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class World:
    """A folder with a tiny model, a concept, and the config of a short run."""

    folder: Path

    @property
    def model(self) -> Path:
        """A diffusers pipeline."""
        return self.folder / "model"

    @property
    def concept(self) -> Path:
        """A concept's YAML file."""
        return self.folder / "happy.yaml"

    @property
    def config(self) -> Path:
        """A run's YAML file."""
        return self.folder / "run.yaml"


def world(folder: Path) -> World:
    """Make one."""
    made = World(folder)
    tiny.save(tiny.stable_diffusion(), made.model)
    (folder / "prompts.txt").write_text("a person\na dog with a hat\n")
    concept = {
        "name": "happy",
        "target": "a person",
        "positives": ["a happy person"],
        "negatives": ["a sad person"],
        "measure": {"attribute": "mood", "value": "happy", "prompts": str(folder / "prompts.txt")},
    }
    made.concept.write_text(yaml.safe_dump(concept))
    config = yaml.safe_load(yaml.safe_dump(RUN))
    config["model"]["backbone"]["init_args"]["model"] = str(made.model)
    config["data"]["concept"] = str(made.concept)
    made.config.write_text(yaml.safe_dump(config))
    return made
