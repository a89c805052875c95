"""The `sliders` command: look at a concept before training, generate, evaluate, bake, fetch."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from sliders import formats
from sliders.algebra.edit import Translation
from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.placement import Precision
from sliders.cli.compose import compose
from sliders.cli.defaults import BASE, JUDGE, LANGUAGE, listed, one_each, some
from sliders.cli.demo import demo
from sliders.cli.edit import edit_commands
from sliders.cli.explain import explain
from sliders.cli.export import export
from sliders.cli.laws import laws
from sliders.cli.train_many import train_many
from sliders.concept import Concept
from sliders.console import hush_libraries, in_one_line, say
from sliders.errors import SliderError, unwrapped
from sliders.evaluation.pictures.sampling import Sampling
from sliders.evaluation.texts.sampling import Speaking
from sliders.files import check_place
from sliders.formats.given import Given, given
from sliders.formats.metadata import check_base
from sliders.media.base import medium_of
from sliders.resources.fetch import fetch as fetch_model
from sliders.resources.paths import Source, called_here
from sliders.resources.shipped import with_files
from sliders.runtime.attach import check_names


def _load(
    files: Sequence[Given], backbone: AbstractBackbone, any_base: bool, device: str | None, dtype: Precision | None
) -> list[NamedDial]:
    """The sliders, and then the model, which takes longer to read."""
    backbone.place(device, dtype)
    loaded = [file.load() for file in files]
    check_names(loaded)
    backbone.load()
    for slider in loaded:
        if not any_base:
            check_base(slider, backbone)
    return loaded


def _positions(sliders: Sequence[NamedDial], dial: float | list[float]) -> dict[str, float]:
    """A position for every slider; one number turns them all.

    Raises:
        SliderError: two have one name, or there are several numbers, but not one for each.
    """
    check_names(sliders)
    return {slider.name: at for slider, at in zip(sliders, one_each(dial, sliders), strict=True)}


def preview(
    concept: Path,
    backbone: DiffusionBackbone = BASE,
    judge: Source | Path | None = JUDGE,
    amounts: float | list[float] | None = None,
    pictures: int = 32,
    sampling: Sampling | None = None,
    out: Path | None = None,
    text: bool = False,
    language: CausalLMBackbone = LANGUAGE,
    speaking: Speaking | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Show what a concept's slider can become, without training: its direction added at sampling time.

    Args:
        concept: the concept's YAML file.
        backbone: the model.
        judge: of pictures: file of the attribute judge, or its name.
        amounts: dial times eta, above 0; each is sampled on both sides.
        pictures: held-out scenes (of language: prompts) at each amount.
        sampling: how pictures are sampled.
        out: folder for the strip, the plot and the numbers; runs/preview/NAME unless given.
        text: with the language model, whose responses are read.
        language: the language model.
        speaking: how it answers.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    used = language if text else backbone
    medium = medium_of(used)
    what = Concept.load(concept).worded(used.modality)
    out = out or Path("runs") / "preview" / what.name
    check_place(out, folder=True)
    one_side = sorted(listed(amounts) or medium.amounts)
    if one_side[0] <= 0:
        raise SliderError(f"--amounts has {one_side[0]:g}; give amounts above 0, each is sampled on both sides")
    both = [-a for a in reversed(one_side)] + [0.0, *one_side]
    used.place(device, dtype)
    used.load()
    medium.preview(used, what, both, pictures, speaking if text else sampling, out, judge)


def generate(
    prompt: str | list[str],
    slider: Path | list[Path] | None = None,
    dial: float | list[float] = 1.0,
    seed: int | list[int] = 0,
    backbone: DiffusionBackbone = BASE,
    sampling: Sampling | None = None,
    out: Path = Path("grid.png"),
    any_base: bool = False,
    text: bool = False,
    language: CausalLMBackbone = LANGUAGE,
    speaking: Speaking | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Make pictures, or with --text responses, with sliders at their dials, beside the base's of the same seeds.

    Args:
        prompt: one, or a list; a row of the grid each.
        slider: a slider file, or NAME=FILE to call it otherwise, or a list; none shows the base alone.
        dial: where to turn it; a list for several sliders.
        seed: of the noise, one or a list; a pair of columns each.
        backbone: the model.
        sampling: of pictures: steps, guidance, batch.
        out: of pictures: the file to write.
        any_base: load sliders that were made for another base.
        text: the prompts are messages to the language model, whose responses are streamed.
        language: the language model.
        speaking: length and temperature of the responses.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    prompts, seeds = some("prompt", prompt), some("--seed", seed)
    used = language if text else backbone
    medium = medium_of(used)
    place = medium.place(out)
    one_each(dial, files := given(slider, "--slider"))
    loaded = _load(files, used, any_base, device, dtype)
    how = speaking if text else sampling
    medium.generate(used, prompts, seeds, loaded, _positions(loaded, dial), how, place)


def evaluate(
    slider: Path,
    backbone: DiffusionBackbone = BASE,
    concept: Path | None = None,
    judge: Source | Path | None = JUDGE,
    dials: float | list[float] | None = None,
    pictures: int = 64,
    sampling: Sampling | None = None,
    oracle: bool = False,
    eta: float | None = None,
    out: Path | None = None,
    any_base: bool = False,
    language: CausalLMBackbone = LANGUAGE,
    speaking: Speaking | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Measure a slider on held-out prompts: effect, drift, straightness; JSON, a table and plots.

    Args:
        slider: the slider's file; the folder of one for a language model; or NAME= before either.
        backbone: the model.
        concept: a concept's YAML file, where the slider's own metadata does not say or something else is asked.
        judge: of pictures: file of the attribute judge, or its name.
        dials: positions; 0 is added where it is missing.
        pictures: held-out scenes (of language: prompts) at each position.
        sampling: how pictures are sampled.
        oracle: of pictures: measure the training-free oracle on the same scenes.
        eta: of pictures: the oracle's; the slider's own unless given.
        out: folder for what is written; unless given ``evaluation`` in the slider's run folder, or NAME_evaluation
            beside a slider that is in none.
        any_base: load a slider that was made for another base.
        language: the language model.
        speaking: how it answers.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    positions = sorted({0.0, *(listed(dials) if dials is not None else [-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2])})
    what = Concept.load(concept) if concept else None
    files = given(slider, "slider")
    check_place(folder := out or _evaluation(files[0].path), folder=True)
    text = formats.modality_of(*(file.path for file in files)) == "text"
    used = language if text else backbone
    loaded = _load(files, used, any_base, device, dtype)[0]
    how = speaking if text else sampling
    medium_of(used).evaluate(used, loaded, what, positions, pictures, how, folder, judge, oracle, eta)


def _evaluation(slider: Path) -> Path:
    """Where the evaluation of a slider is written: in its run's folder, or beside it under its own name."""
    if (slider.parent / "config.yaml").is_file():
        return slider.parent / "evaluation"
    place = slider.resolve()
    return slider.parent / f"{place.name if place.is_dir() else place.stem}_evaluation"


def bake(
    slider: Path | list[Path],
    out: Path,
    dial: float | list[float] = 1.0,
    backbone: DiffusionBackbone = BASE,
    any_base: bool = False,
    language: CausalLMBackbone = LANGUAGE,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Write a whole model with sliders or edits merged into it; the dials are gone then.

    Args:
        slider: a slider or edit, or a list; NAME= before one calls it otherwise.
        out: folder of the new model.
        dial: where to merge it; a list for several sliders.
        backbone: the model of pictures.
        any_base: load sliders that were made for another base.
        language: the language model, for sliders of one.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision in which its weights are read; unless its files are in safetensors, which keep theirs, also
            that of the new model.
    """
    files = given(slider, "slider")
    one_each(dial, files)
    check_place(out, folder=True, new=True)
    model = language if formats.modality_of(*(file.path for file in files)) == "text" else backbone
    loaded = _load(files, model, any_base, device, dtype)
    positions = _positions(loaded, dial)
    total = sum((one.at(positions[one.name]) for one in loaded), Translation({}))
    say(*model.export(out, total).lines(), f"model   {out}")


def fetch(name: str) -> None:
    """Download a small language model and convert it, once; it is called by itself where one is needed.

    Args:
        name: of the model, such as smollm2.
    """
    say(f"model   {fetch_model(name)}")


def train() -> None:
    """Train a slider; `sliders train --help` lists the flags, which are those of Lightning's command line."""
    from sliders.training import cli as training

    training.main(sys.argv[2:])


def main() -> None:
    """Entry point of the `sliders` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1:2] == ["train"]:
        train()
        return
    hush_libraries()
    with in_one_line():
        commands = [train, preview, generate, evaluate, bake, compose, laws, explain, export, fetch, train_many, demo]
        named: dict[str, Any] = {"edit": edit_commands()}
        named |= {command.__name__.replace("_", "-"): command for command in commands}
        with unwrapped(), called_here():
            auto_cli(named, as_positional=True, args=with_files(sys.argv[1:]))


if __name__ == "__main__":
    main()
