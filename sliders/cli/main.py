"""The `sliders` command: look at a concept before training, generate, evaluate, bake, fetch."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.table import Table

from sliders import formats
from sliders.algebra.edit import Translation
from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone, DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.placement import Precision
from sliders.cli import text as cli_text
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
from sliders.evaluation.pictures.dose import DoseResponse, dose_response
from sliders.evaluation.pictures.report import (
    STRIP_ROWS,
    dose_response_figure,
    evaluate_dial,
    heldout_prompts,
    load_judge,
    write_report,
)
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, sample_oracle, scenes
from sliders.evaluation.texts.sampling import Speaking
from sliders.files import check_place, replacing
from sliders.formats.given import Given, given
from sliders.formats.metadata import check_base, concept_of, number_of
from sliders.report.drawing import dial_label, grid, save_figure, strip
from sliders.resources.fetch import fetch as fetch_model
from sliders.resources.paths import Source, called_here
from sliders.resources.shipped import with_files
from sliders.runtime.attach import attach, check_names

# What a dial may move beside its concept, in mean probability of any other attribute: at the dial's ends, and at twice.
DRIFT_AT_1, DRIFT_AT_2 = 0.08, 0.12


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


def _check_picture(out: Path) -> None:
    """Refuse a file whose ending is that of no kind of picture, and a place that cannot be written."""
    known = Image.registered_extensions()
    if known.get(out.suffix.lower()) not in Image.SAVE:
        raise SliderError(f"--out is {out}; give a file that ends as a picture's does, such as .png")
    check_place(out)


def _positions(sliders: Sequence[NamedDial], dial: float | list[float]) -> dict[str, float]:
    """A position for every slider; one number turns them all.

    Raises:
        SliderError: two have one name, or there are several numbers, but not one for each.
    """
    check_names(sliders)
    return {slider.name: at for slider, at in zip(sliders, one_each(dial, sliders), strict=True)}


def suggest_eta(amounts: Sequence[float], dose: DoseResponse) -> tuple[float | None, str]:
    """The eta to train with, from the oracle's response over amounts (dial times eta), and the reason.

    Of the amounts whose drift at the dial's ends and at twice these is within bounds, the smallest that reaches nine
    tenths of the best effect.
    """
    amounts = list(amounts)

    def drift(amount: float) -> float:
        return max(dose.drift[amounts.index(a)].change for a in (amount, -amount))

    def effect(amount: float) -> float:
        return dose.response[amounts.index(amount)] - dose.response[amounts.index(-amount)]

    usable = [a for a in amounts if a > 0 and 2 * a in amounts]
    within = [a for a in usable if drift(a) <= DRIFT_AT_1 and drift(2 * a) <= DRIFT_AT_2]
    if not within:
        bounds = f"{DRIFT_AT_1} at dial 1 and {DRIFT_AT_2} at dial 2"
        return None, f"at no eta does the drift stay within {bounds}; try other positives and negatives"
    best = max(effect(a) for a in within)
    if best <= 0:
        return None, f"the effect is {best:.2f} at best: the judge's value does not rise with the dial"
    eta = next(a for a in within if effect(a) >= 0.9 * best)
    drifts = f"drift {drift(eta):.3f} there and {drift(2 * eta):.3f} at twice"
    return eta, f"effect {effect(eta):.2f} between dials -1 and 1, {drifts}"


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
    what = Concept.load(concept).worded("text" if text else "image")
    out = out or Path("runs") / "preview" / what.name
    check_place(out, folder=True)
    one_side = sorted(listed(amounts) or ([0.5, 1, 2, 3] if text else [0.5, 1, 2, 3, 4, 6, 8]))
    if one_side[0] <= 0:
        raise SliderError(f"--amounts has {one_side[0]:g}; give amounts above 0, each is sampled on both sides")
    both = [-a for a in reversed(one_side)] + [0.0, *one_side]
    if text:
        language.place(device, dtype)
        language.load()
        cli_text.preview(language, what, both, pictures, speaking or Speaking(), out)
        return
    backbone.place(device, dtype)
    backbone.load()
    wanted = scenes(heldout_prompts(what), pictures)
    reader = load_judge(judge, what) if judge is not None and what.measure is not None else None
    made = sample_oracle(backbone, what, 1.0, wanted, both, sampling)
    prompts = [s.prompt for s in wanted[:STRIP_ROWS]]
    with replacing(out / "strip.png") as new:
        strip(made[:, :STRIP_ROWS], both, prompts, f"{what.name}: the oracle over dial x eta").save(new)
    if reader is not None and what.measure is not None:
        dose = dose_response(reader, what.measure, made, both)
        table = Table("dial x eta", f"{dose.attribute} = {dose.value}", "worst drift", "of", title=what.name)
        for amount, mean, error, drift in zip(both, dose.response, dose.error, dose.drift, strict=True):
            other = f"{drift.attribute} = {drift.value}" if drift.attribute else ""
            table.add_row(dial_label(amount), f"{mean:.2f} ± {error:.2f}", f"{drift.change:.3f}", other)
        eta, reason = suggest_eta(both, dose)
        say(table, f"suggested eta: {'none' if eta is None else f'{eta:g}'} ({reason})")
        save_figure(dose_response_figure(f"{what.name}: the oracle", {"oracle": dose}), out / "dose_response.png")
    say(f"strip   {out / 'strip.png'}")


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
    if not text:
        _check_picture(out)
    one_each(dial, files := given(slider, "--slider"))
    used = language if text else backbone
    loaded = _load(files, used, any_base, device, dtype)
    positions = _positions(loaded, dial)
    if text:
        cli_text.generate(language, prompts, loaded, positions, seeds, speaking or Speaking(tokens=96))
        return
    wanted = [Scene(text, number) for number in seeds for text in prompts]
    pictures = sample(backbone, wanted, sampling).unflatten(0, (len(seeds), len(prompts)))
    columns = [f"seed {number}" for number in seeds]
    if loaded:
        with attach(backbone, loaded, positions):
            turned = sample(backbone, wanted, sampling).unflatten(0, (len(seeds), len(prompts)))
        pictures = torch.stack([pictures, turned], 1).flatten(0, 1)
        columns = [label for number in seeds for label in (f"seed {number}: base", "turned")]
    title = "  ".join(f"{name} {dial_label(p)}" for name, p in positions.items())
    with replacing(out) as new:
        grid(pictures, columns, prompts, title).save(new)
    say(f"grid    {out}")


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
    if formats.all_of_language([file.path for file in files]):
        spoken = _load(files, language, any_base, device, dtype)[0]
        cli_text.evaluate(language, spoken, what, positions, pictures, speaking or Speaking(), folder)
        return
    loaded = _load(files, backbone, any_base, device, dtype)[0]
    what = (what or concept_of(loaded)).worded("image")
    reader = load_judge(judge, what) if judge else None
    strength = eta if eta is not None else number_of(loaded, "sliders.eta", 1.0)
    with attach(backbone, [loaded]) as attached:
        evaluation = evaluate_dial(
            backbone,
            lambda values: attached.turned({loaded.name: values}),
            what,
            judge=reader,
            eta=strength,
            dials=positions,
            pictures=pictures,
            how=sampling or Sampling(),
            with_oracle=oracle,
        )
    write_report(evaluation, folder, loaded.name)
    say(*([evaluation.table()] if evaluation.dose else []), f"report  {folder}")


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
    model = language if formats.all_of_language([file.path for file in files]) else backbone
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
