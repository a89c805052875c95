"""`sliders evaluate`: what a slider does, measured on held-out prompts."""

from pathlib import Path

from sliders.backbones.precision import Precision
from sliders.cli.defaults import JUDGE, Backbone, listed
from sliders.evaluation.pictures.settings import Sampling
from sliders.evaluation.texts.settings import TextSampling
from sliders.resources.paths import Source


def evaluate(
    slider: Path,
    base: Source | None = None,
    concept: Path | None = None,
    judge: Source | Path | None = JUDGE,
    dials: float | list[float] | None = None,
    pictures: int = 64,
    sampling: Sampling | None = None,
    speaking: TextSampling | None = None,
    oracle: bool = False,
    eta: float | None = None,
    out: Path | None = None,
    any_base: bool = False,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Measure a slider on held-out prompts: effect, drift, straightness; JSON, a table and plots.

    Args:
        slider: the slider's file; the folder of one for a language model; or NAME= before either.
        base: name, folder or hub id of the model; the one that the slider says it was made on unless given.
        backbone: the model as a class with settings, in place of the base.
        concept: a concept's YAML file, where the slider's own metadata does not say or something else is asked.
        judge: of pictures: file of the attribute judge, or its name.
        dials: positions; 0 is added where it is missing.
        pictures: held-out scenes (of language: prompts) at each position.
        sampling: how pictures are sampled.
        speaking: how a language model answers.
        oracle: of pictures: measure the training-free oracle on the same scenes.
        eta: of pictures: the oracle's; the slider's own unless given.
        out: folder for what is written; unless given ``evaluation`` in the slider's run folder, or NAME_evaluation
            beside a slider that is in none.
        any_base: load a slider that was made for another base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    from sliders.cli.opening import load, model_for, read, settings_for
    from sliders.concept import Concept
    from sliders.files import check_place
    from sliders.formats.given import given
    from sliders.media.base import medium_of

    positions = sorted({0.0, *(listed(dials) if dials is not None else [-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2])})
    what = Concept.load(concept) if concept else None
    files = given(slider, "slider")
    check_place(folder := out or _folder(files[0].path), folder=True)
    (loaded,) = read(files)
    model = model_for(files, [loaded], base, backbone, device, dtype)
    medium = medium_of(model)
    settings = settings_for(medium, model, sampling=sampling, speaking=speaking, oracle=oracle, eta=eta)
    load(model, [loaded], any_base)
    medium.evaluate(model, loaded, what, positions, pictures, settings, folder, judge, oracle, eta)


def _folder(slider: Path) -> Path:
    """Where the evaluation of a slider is written: in its run's folder, or beside it under its own name."""
    if (slider.parent / "config.yaml").is_file():
        return slider.parent / "evaluation"
    place = slider.resolve()
    return slider.parent / f"{place.name if place.is_dir() else place.stem}_evaluation"
