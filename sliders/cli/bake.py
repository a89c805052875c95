"""`sliders bake`: a model with sliders merged into it."""

from pathlib import Path

from sliders.backbones.precision import Precision
from sliders.cli.defaults import Backbone, one_each
from sliders.resources.paths import Source


def bake(
    slider: Path | list[Path],
    out: Path,
    dial: float | list[float] = 1.0,
    base: Source | None = None,
    any_base: bool = False,
    backbone: Backbone | None = None,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Write a whole model with sliders or edits merged into it; the dials are gone then.

    Args:
        slider: a slider or edit, or a list; NAME= before one calls it otherwise.
        out: folder of the new model.
        dial: where to merge it; a list for several sliders.
        base: name, folder or hub id of the model; the one that the slider says it was made on unless given.
        backbone: the model as a class with settings, in place of the base.
        any_base: load sliders that were made for another base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision in which its weights are read; unless its files are in safetensors, which keep theirs, also
            that of the new model.
    """
    from sliders.algebra.edit import Translation
    from sliders.cli.opening import load, model_for, positions, read
    from sliders.console import say
    from sliders.files import check_place
    from sliders.formats.given import given

    files = given(slider, "slider")
    one_each(dial, files)
    check_place(out, folder=True, new=True)
    dials = read(files)
    model = model_for(files, dials, base, backbone, device, dtype)
    load(model, dials, any_base)
    at = positions(dials, dial)
    total = sum((one.at(at[one.name]) for one in dials), Translation({}))
    say(*model.export(out, total).lines(), f"model   {out}")
