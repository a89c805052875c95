"""`sliders generate`: what a model makes with sliders at their dials."""

from pathlib import Path

from sliders.backbones.precision import Precision
from sliders.cli.defaults import Backbone, one_each, some
from sliders.evaluation.pictures.settings import Sampling
from sliders.evaluation.texts.settings import TextSampling
from sliders.resources.paths import Source


def generate(
    prompt: str | list[str],
    slider: Path | list[Path] | None = None,
    dial: float | list[float] = 1.0,
    seed: int | list[int] = 0,
    base: Source | None = None,
    sampling: Sampling | None = None,
    speaking: TextSampling | None = None,
    out: Path | None = None,
    any_base: bool = False,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Make pictures or responses with sliders at their dials, beside the base's of the same seeds.

    Args:
        prompt: one, or a list; a row of the grid each.  Of a language model, the user's message.
        slider: a slider file, or NAME=FILE to call it otherwise, or a list; none shows the base alone.
        dial: where to turn it; a list for several sliders.
        seed: of the noise, one or a list; a pair of columns each.
        base: name, folder or hub id of the model; the one that the sliders say they were made on unless given, and
            avatars where there is no slider.
        sampling: of pictures: steps, guidance, batch.
        speaking: length and temperature of responses.
        out: of pictures: the file to write; grid.png unless given.
        any_base: load sliders that were made for another base.
        backbone: the model as a class with settings, in place of the base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    from sliders.cli.opening import load, model_for, positions, read, settings_for
    from sliders.formats.given import given
    from sliders.media.base import medium_of

    prompts, seeds = some("prompt", prompt), some("--seed", seed)
    one_each(dial, files := given(slider, "--slider"))
    dials = read(files)
    model = model_for(files, dials, base, backbone, device, dtype)
    medium = medium_of(model)
    settings = settings_for(medium, model, sampling=sampling, speaking=speaking, out=out)
    place = medium.place(out)
    load(model, dials, any_base)
    medium.generate(model, prompts, seeds, dials, positions(dials, dial), settings, place)
