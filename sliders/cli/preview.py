"""`sliders preview`: what a concept's slider can become, before any training."""

from pathlib import Path

from sliders.backbones.precision import Precision
from sliders.cli.defaults import JUDGE, Backbone, listed
from sliders.errors import SliderError
from sliders.evaluation.pictures.settings import Sampling
from sliders.evaluation.texts.settings import TextSampling
from sliders.resources.paths import Source


def preview(
    concept: Path,
    base: Source | None = None,
    judge: Source | Path | None = JUDGE,
    amounts: float | list[float] | None = None,
    pictures: int = 32,
    sampling: Sampling | None = None,
    speaking: TextSampling | None = None,
    out: Path | None = None,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Show what a concept's slider can become, without training: its direction added at sampling time.

    Args:
        concept: the concept's YAML file.
        base: name, folder or hub id of the model; avatars, or smollm2 for a concept of text, unless given.
        judge: of pictures: file of the attribute judge, or its name.
        amounts: dial times eta, above 0; each is sampled on both sides.
        pictures: held-out scenes (of language: prompts) at each amount.
        sampling: how pictures are sampled.
        speaking: how a language model answers.
        out: folder for the strip, the plot and the numbers; runs/preview/NAME unless given.
        backbone: the model as a class with settings, in place of the base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    from sliders.backbones.choice import DEFAULTS, choose
    from sliders.cli.opening import settings_for
    from sliders.concept import Concept
    from sliders.files import check_place
    from sliders.media.base import medium_of

    said = Concept.load(concept)
    model = choose([], [], base, backbone, DEFAULTS[said.modality])
    medium, what = medium_of(model), said.worded(model.modality)
    settings = settings_for(medium, model, sampling=sampling, speaking=speaking)
    out = out or Path("runs") / "preview" / what.name
    check_place(out, folder=True)
    one_side = sorted(listed(amounts) or medium.amounts)
    if one_side[0] <= 0:
        raise SliderError(f"--amounts has {one_side[0]:g}; give amounts above 0, each is sampled on both sides")
    both = [-a for a in reversed(one_side)] + [0.0, *one_side]
    model.place(device, dtype)
    model.load()
    medium.preview(model, what, both, pictures, settings, out, judge)
