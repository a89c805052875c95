"""Any file of a dial, whatever its layout: read, told apart, written like others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sliders.algebra.slider import Hinge, NamedDial, Slider
from sliders.errors import SliderError
from sliders.formats import diffusers, edit, hinge, peft
from sliders.formats.metadata import check_name


def load(path: Path, name: str | None = None) -> Slider:
    """Read a slider: a PEFT folder, or a safetensors file in diffusers' layout.

    Args:
        path: of the folder or the file.
        name: what to call it; what the file says unless given.

    Raises:
        SliderError: it is neither, or its name cannot be one.
    """
    found = peft.load(path) if path.is_dir() else diffusers.load(path)
    return replace(found, name=_called(found, path, name))


def load_dial(path: Path | str, name: str | None = None) -> NamedDial:
    """Read a slider, a hinge or an edit.

    Args:
        path: of its file or folder.
        name: what to call it; what the file says unless given.

    Raises:
        SliderError: it is none of these, or its name cannot be one.
    """
    path = Path(path)
    if edit.is_edit(path):
        found = edit.load(path)
    elif hinge.is_hinge(path):
        called, left, right = hinge.sides(path)
        found = Hinge(called, load(left), load(right))
    else:
        return load(path, name)
    return replace(found, name=_called(found, path, name))


def _called(found: NamedDial, path: Path, name: str | None) -> str:
    """The name that was given, or the file's, which may be a stranger's and name a place of this machine."""
    if name is None:
        check_name(found.name, f"{path} cannot be called as it says; load it as NAME={path}: its name")
    return found.name if name is None else name


def modality_of(*paths: Path) -> str:
    """What the models make that these files are for, ``image`` or ``text``: all of them for one kind.

    A PEFT folder, and a hinge of them, is for a language model, and an edit for what it says.

    Raises:
        SliderError: some are for models of pictures and some for language models, one is not there, or there are none.
    """
    if not paths:
        raise SliderError("the list of sliders is empty; give at least one")
    if missing := [path for path in paths if not path.exists()]:
        raise SliderError(f"no slider file at {missing[0]}")
    found = {_modality_of(path) for path in paths}
    if len(found) > 1:
        raise SliderError("sliders of pictures and of language change different models; give those of one kind")
    return found.pop()


def _modality_of(path: Path) -> str:
    if edit.is_edit(path):
        return edit.modality(path)
    folder = hinge.sides(path)[1] if hinge.is_hinge(path) else path
    return "text" if folder.is_dir() else "image"


def save_like(made: Slider | Hinge, out: Path, parts: list[Path]) -> None:
    """Write a slider, or both sides of a hinge, in the layout of the files that it was made from.

    Args:
        made: what to write.
        out: a ``.safetensors`` file for pictures; a folder for language, and for a hinge.
        parts: of one kind; of language models the first PEFT folder among them says what the base is.

    Raises:
        SliderError: the parts are of two kinds, none of them says what the base is, or ``out`` has another name than
            its layout asks for.
    """
    text = modality_of(*parts) == "text"
    _check_ending(made, out, text)
    save_as(made, out, _base_of(parts) if text else None)


def save_as(made: Slider | Hinge, out: Path, base: tuple[str, bool] | None) -> None:
    """Write a slider, or both sides of a hinge, in the layout of one medium.

    Args:
        made: what to write.
        out: a ``.safetensors`` file for pictures; a folder for language, and for a hinge.
        base: of language models the base's name or folder, and whether its layers keep their weights transposed; None
            for pictures.

    Raises:
        SliderError: it changes nothing, or ``out`` has another ending than its layout asks for.
    """
    _check_ending(made, out, base is not None)

    def write(slider: Slider, place: Path) -> None:
        if base is None:
            diffusers.save(slider, place)
        else:
            peft.save(slider, place, *base)

    if isinstance(made, Hinge):
        hinge.save(made, out, write, "" if base else ".safetensors")
    else:
        write(made, out)


def _check_ending(made: Slider | Hinge, out: Path, text: bool) -> None:
    whole_folder = text or isinstance(made, Hinge)
    if (out.suffix == ".safetensors") == whole_folder:
        what = "a hinge is a folder with two sliders" if isinstance(made, Hinge) else "a language model's is a folder"
        raise SliderError(f"--out is {out}, but {what if whole_folder else 'this slider is one .safetensors file'}")


def _base_of(parts: Sequence[Path]) -> tuple[str, bool]:
    """The base of language models' sliders, as the first PEFT folder among them or their sides has it.

    Raises:
        SliderError: there is no such folder.
    """
    sides = [side for part in parts for side in (hinge.sides(part)[1:] if hinge.is_hinge(part) else (part,))]
    folder = next((side for side in sides if side.is_dir()), None)
    if folder is None:
        raise SliderError(
            f"none of {', '.join(map(str, parts))} is a PEFT folder, whose configuration names the base; give at least "
            "one, such as `sliders edit --lora true` writes"
        )
    return peft.base_of(folder)
