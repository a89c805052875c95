"""`sliders laws`: measure which laws a set of sliders obeys."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sliders.backbones.precision import Precision
from sliders.cli.defaults import Backbone, listed
from sliders.errors import SliderError
from sliders.evaluation.pictures.settings import Sampling
from sliders.evaluation.texts.settings import TextSampling
from sliders.resources.paths import Source

if TYPE_CHECKING:
    from sliders.algebra.slider import NamedDial, Slider
    from sliders.backbones.placement import Placement
    from sliders.evaluation.base_states import BaseStates
    from sliders.report.html_page import Report


def laws(
    slider: Path | list[Path],
    level: Literal["weights", "fitting", "behaviour"] = "behaviour",
    twin: Path | list[Path] | None = None,
    base: Source | None = None,
    prompts: str | list[str] | None = None,
    scenes: int = 12,
    sampling: Sampling | None = None,
    speaking: TextSampling | None = None,
    seeds: int = 2,
    steps: int | None = None,
    out: Path = Path("runs/laws"),
    any_base: bool = False,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Measure which laws sliders obey: JSON, tables, and one page with pictures that says what each shows.

    ``weights`` follows exactly from the factors.  ``behaviour`` compares predictions at states that the base visits:
    interaction of pairs, how straight each dial is, the distance to the formula itself, and whether interference was
    predicted.  ``fitting`` trains each pair in both orders, by the configurations beside the sliders' files.

    Args:
        slider: slider files or hinges of one base; NAME= before one calls it otherwise.
        level: of the laws.
        twin: for behaviour: each slider trained with another seed, in the same order; they are the null.
        base: name, folder or hub id of the model; the one that the sliders say they were made on unless given.
        prompts: of the scenes, for language the user's messages; those that the sliders' concepts are measured on
            unless given.
        scenes: how many; intervals are over them.
        sampling: how pictures are sampled whose states are compared.
        speaking: how the responses are sampled whose states are compared.
        seeds: for fitting: trainings of each order; the null needs two.
        steps: for fitting: of each training; those of the configuration unless given.
        out: folder for `laws.json`, `laws.html` and what is trained.
        any_base: load sliders that were made for another base.
        backbone: the model as a class with settings, in place of the base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    from sliders.cli.opening import load, model_for, read, settings_for
    from sliders.console import say
    from sliders.files import check_place
    from sliders.formats.given import given
    from sliders.media.base import medium_of
    from sliders.studies.laws import study
    from sliders.studies.scenes import states_for

    check_place(out, folder=True)
    files, others = given(slider, "slider"), given(twin, "--twin")
    dials, twins = read(files), [file.load() for file in others]
    if twins and len(twins) != len(dials):
        raise SliderError(f"--twin has {len(twins)} files for {len(dials)} sliders; give one each, in the same order")
    model = model_for([*files, *others], [*dials, *twins], base, backbone, device, dtype)
    settings = settings_for(medium_of(model), model, sampling=sampling, speaking=speaking)
    load(model, [*dials, *twins], any_base)
    if level == "weights":
        report = study.weights(model, dials)
    else:
        states = states_for(model, dials, scenes, listed(prompts) or None, settings)
        if level == "behaviour":
            report = study.behaviour(states, dials, dict(zip((dial.name for dial in dials), twins, strict=False)))
        else:
            where = None if device is None and dtype is None else model.placement
            report = _fitting(states, [file.path for file in files], dials, out, seeds, steps, where)
    report.write(out)
    say(*[section.table() for section in report.sections if section.rows], f"report  {out / 'laws.html'}")


def _fitting(
    states: "BaseStates",
    files: Sequence[Path],
    dials: "Sequence[NamedDial]",
    out: Path,
    seeds: int,
    steps: int | None,
    where: "Placement | None",
) -> "Report":
    from sliders.algebra.slider import Slider
    from sliders.studies.laws import study
    from sliders.studies.laws.refitting import config_of, fit_again

    sliders = [dial for dial in dials if isinstance(dial, Slider)]
    if len(sliders) != len(dials) or len(sliders) < 2:
        raise SliderError("--level fitting trains pairs of sliders anew; give at least two, and no hinge")
    configs = {slider.name: config_of(path) for slider, path in zip(sliders, files, strict=True)}

    def fit(name: str, seed: int, first: "Slider | None") -> "Slider":
        called = f"{name}_seed{seed}" if first is None else f"{name}_on_{first.name.partition('_seed')[0]}_seed{seed}"
        return fit_again(configs[name], out / "fits", called, seed, first, steps, where)

    return study.fitting(states, sliders, fit, seeds)
