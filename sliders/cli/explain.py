"""`sliders explain`: what did this update change?"""

from pathlib import Path
from typing import TYPE_CHECKING

from sliders.backbones.precision import Precision
from sliders.errors import SliderError
from sliders.resources.paths import Source

if TYPE_CHECKING:
    from sliders.algebra.slider import NamedDial, Slider
    from sliders.formats.checkpoint import Checkpoint
    from sliders.formats.given import Given


def explain(
    update: Path,
    base: Source | Path | None = None,
    library: Path | list[Path] | None = None,
    run: bool = True,
    words: int = 400,
    out: Path = Path("runs/explain"),
    any_base: bool = False,
    device: str | None = None,
    dtype: Precision | None = None,
) -> None:
    """Find out what an update changed: its kind, rank, place, nearest sliders, and what it reads and writes.

    What the file says of its own making is not looked at.  Writes `explain.json` and `explain.html`, a page with
    pictures that says what each shows.

    Args:
        update: a slider, an edit, a PEFT folder, or the folder of a whole model to compare with the base.
        base: folder or name of the model before the update; unless given what the update's file names, if that has a
            name or was used here before.  Without one its kind and its place in the weights cannot be judged.
        library: known sliders to compare the update with; NAME= before one calls it otherwise.
        run: load the base and ask it what the update reads and writes.
        words: at most so many are tried.
        out: folder for what is written.
        any_base: explain an update that was made for another base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    from sliders.backbones.choice import backbone_of
    from sliders.console import say
    from sliders.files import check_place
    from sliders.formats.checkpoint import Checkpoint, differences, is_checkpoint
    from sliders.formats.given import given
    from sliders.formats.metadata import check_base
    from sliders.runtime.attach import check_names
    from sliders.studies.explain.study import Effort, changes_of, study

    (one,) = given(update, "update")
    check_place(out, folder=True)
    update = one.path
    if is_checkpoint(update):
        if base is None:
            raise SliderError(f"{update} is a whole model; give the one before the update with --base")
        dial, before = None, _checkpoint(str(base))
        changes, others = differences(before, Checkpoint(update))
    else:
        dial, others = one.load(), {}
        before = _base_of(update, dial, None if base is None else str(base))
        changes = changes_of(dial, before.layer if before else None)
    known = [_library(file) for file in given(library, "--library")]
    check_names(known)
    backbone = backbone_of(str(before.folder)) if run and before else None
    if backbone is not None:
        backbone.place(device, dtype)
        backbone.load()
        if dial is not None and not any_base:
            check_base(dial, backbone)
    where = f"compared with {before.folder}" if before else "whose base is not known"
    title, note = f"What {update.name} changed", f"{len(changes)} layers of {update}, {where}."
    made = study(title, note, changes, known, backbone, Effort(words), others)
    made.write(out)
    say(*[section.table() for section in made.sections if section.rows], f"report  {out / 'explain.html'}")


def _checkpoint(base: str) -> "Checkpoint":
    """The base's weights, of a folder or of a model that is fetched."""
    from sliders.formats.checkpoint import Checkpoint, is_checkpoint
    from sliders.resources.fetch import FETCHED, fetch
    from sliders.resources.shipped import model_folder

    folder = fetch(base) if base in FETCHED else Path(model_folder(base))
    if not is_checkpoint(folder):
        raise SliderError(f"{base} is no folder of a diffusers pipeline or a transformers model; give one with --base")
    return Checkpoint(folder)


def _base_of(update: Path, dial: "NamedDial", base: str | None) -> "Checkpoint | None":
    """The base that was given, or the one that the file names if it is there and may be opened."""
    from sliders.backbones.choice import named_by
    from sliders.formats.checkpoint import is_checkpoint
    from sliders.resources.fetch import FETCHED
    from sliders.resources.shipped import model_folder

    if base is not None:
        return _checkpoint(base)
    named = named_by(dial, update)
    there = named.model in FETCHED or (bool(named.model) and is_checkpoint(Path(model_folder(named.model))))
    if there and not named.usable():
        raise named.refusal()
    return _checkpoint(named.model) if there else None


def _library(file: "Given") -> "Slider":
    from sliders.algebra.slider import Slider

    dial = file.load()
    if not isinstance(dial, Slider):
        raise SliderError(f"{file.path} in --library is no slider; only sliders have one update to compare with")
    return dial
