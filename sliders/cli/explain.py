"""`sliders explain`: what did this update change?"""

from pathlib import Path

from sliders.algebra.slider import Hinge, NamedDial, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.placement import Precision
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.console import say
from sliders.errors import SliderError
from sliders.files import check_place
from sliders.formats import peft
from sliders.formats.checkpoint import Checkpoint, differences, is_checkpoint
from sliders.formats.given import Given, given
from sliders.formats.metadata import check_base
from sliders.resources.fetch import FETCHED, fetch
from sliders.resources.paths import Source
from sliders.resources.shipped import model_folder
from sliders.runtime.attach import check_names
from sliders.studies.explain.study import Effort, changes_of, study


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
        base: folder or name of the model before the update; what the update's file names unless given.  Without one
            its kind and its place in the weights cannot be judged.
        library: known sliders to compare the update with; NAME= before one calls it otherwise.
        run: load the base and ask it what the update reads and writes.
        words: at most so many are tried.
        out: folder for what is written.
        any_base: explain an update that was made for another base.
        device: to run on: cpu, cuda, one such as cuda:1, mps, or auto for the best; the model's own unless given.
        dtype: precision of its weights: float32, bfloat16, float16, or auto; the model's own unless given.
    """
    (one,) = given(update, "update")
    check_place(out, folder=True)
    update = one.path
    if is_checkpoint(update):
        if base is None:
            raise SliderError(f"{update} is a whole model; give the one before the update with --base")
        dial, before = None, _checkpoint(base)
        changes, others = differences(before, Checkpoint(update))
    else:
        dial, others = one.load(), {}
        before = _base_of(update, dial, base)
        changes = changes_of(dial, before.layer if before else None)
    known = [_library(file) for file in given(library, "--library")]
    check_names(known)
    backbone = _backbone(before) if run and before else None
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


def _checkpoint(base: Path | str) -> Checkpoint:
    """The base's weights, of a folder or of a model that is fetched."""
    folder = fetch(str(base)) if str(base) in FETCHED else Path(model_folder(str(base)))
    if not is_checkpoint(folder):
        raise SliderError(f"{base} is no folder of a diffusers pipeline or a transformers model; give one with --base")
    return Checkpoint(folder)


def _base_of(update: Path, dial: NamedDial, base: Path | str | None) -> Checkpoint | None:
    """The base that was given, or the one that the file names if it is there."""
    if base is not None:
        return _checkpoint(base)
    named = dial.metadata.get("sliders.base_model", "")
    if not named and update.is_dir() and not isinstance(dial, Hinge):
        named = peft.base_of(update)[0]
    there = bool(named) and (named in FETCHED or is_checkpoint(Path(model_folder(named))))
    return _checkpoint(named) if there else None


def _library(file: Given) -> Slider:
    dial = file.load()
    if not isinstance(dial, Slider):
        raise SliderError(f"{file.path} in --library is no slider; only sliders have one update to compare with")
    return dial


def _backbone(before: Checkpoint) -> AbstractBackbone:
    """The model that a checkpoint is of."""
    if not before.pictures:
        return CausalLMBackbone(str(before.folder))
    family = SDXLBackbone if any(name.startswith("text_encoder_2.") for name in before) else UNetBackbone
    return family(str(before.folder))
