"""Fit a slider on a base that carries another one already."""

import json
import warnings
from contextlib import ExitStack
from pathlib import Path

from sliders import formats
from sliders.algebra.slider import Slider
from sliders.backbones.placement import Placement
from sliders.errors import SliderError
from sliders.files import read_text, write_text
from sliders.runtime.attach import attach
from sliders.training.folder import saved_slider


def config_of(slider: Path) -> Path:
    """The configuration of the run that a slider's file came from, which stands beside it.

    Raises:
        SliderError: it is not there.
    """
    file = slider.parent / "config.yaml"
    if not file.is_file():
        raise SliderError(
            f"{slider} has no {file.name} beside it, so that it cannot be trained again; give one of a run"
        )
    return file


def fit_again(
    config: Path, runs: Path, name: str, seed: int, first: Slider | None = None, steps: int | None = None,
    where: Placement | None = None,
) -> Slider:  # fmt: skip
    """Train by a run's configuration once more, with another seed or with another slider in place at dial 1.

    With ``first`` in place, teacher and student both are the base with it.  A fit that is there already, by the same
    configuration, seed and steps and on the same slider, is read.

    Args:
        config: of the run.
        runs: folder of the new run, which is ``runs/name``.
        name: of the new slider.
        seed: of the training.
        first: what is in place.
        steps: of the training; the configuration's unless given.
        where: the model is trained; what the configuration says unless given.
    """
    from sliders.training.cli import SliderCLI

    folder = runs / name
    note = folder / "made_from.txt"
    key = repr((seed, steps, first and first.digest())) + "\n" + read_text(config, "configuration")
    saved = saved_slider(folder, name)
    if saved is not None and note.is_file() and note.read_text(encoding="utf-8") == key:
        return formats.load(saved)
    note.unlink(missing_ok=True)
    arguments = ["--config", config, "--runs", runs, "--name", name, "--seed_everything", seed, "--data.seed", seed]
    arguments += ["--trainer.callbacks", "null", "--trainer.logger", "false", "--ckpt_path", "null", "--overwrite"]
    arguments += [] if steps is None else ["--trainer.max_steps", steps]
    arguments += [] if where is None else where.arguments()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*intended to run from within Python.*")
        cli = SliderCLI(args=[str(argument) for argument in arguments])
    cli.model.place(cli.trainer)
    cli.model.backbone.load()
    with ExitStack() as stack:
        if first is not None:
            stack.enter_context(attach(cli.model.backbone, [first], {first.name: 1.0}))
            cli.model.measured = {"sliders.fitted_on": json.dumps({"name": first.name, "dial": 1.0})}
        cli.fit()
    fitted = cli.model.slider()
    named = Slider(name, fitted.update, fitted.metadata)
    cli.model.backbone.save_slider(named, folder)
    write_text(note, key)
    return named
