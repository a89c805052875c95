"""A dial's file, in the layout of its model's own library."""

from pathlib import Path

from sliders.algebra.slider import Hinge, Interpolated, NamedDial
from sliders.backbones.language.loading import place_of
from sliders.errors import SliderError
from sliders.formats import edit, peft
from sliders.formats.dial_files import save_as


def save(dial: NamedDial, path: Path | str) -> None:
    """Write a slider, a hinge or an edit, for `load` and for whoever else reads its layout.

    Args:
        dial: what to write.
        path: a ``.safetensors`` file, which diffusers loads, for a slider of pictures and for an edit; a folder, which
            PEFT loads, for a slider of a language model; a folder for a hinge.

    Raises:
        SliderError: it changes nothing, ``path`` has another ending than its layout asks for, or a language model's
            slider does not say which base it is for.
    """
    place = Path(path)
    if isinstance(dial, Interpolated):
        edit.save(dial.name, dial.edit, place, dict(dial.metadata))
        return
    sides = (dial.left, dial.right) if isinstance(dial, Hinge) else (dial,)
    if not any(peft.is_for_language(side.update) for side in sides):
        save_as(dial, place, None)
        return
    base = dial.metadata.get("sliders.base_model")
    if base is None:
        raise SliderError(
            f"slider {dial.name!r} does not say which language model it is for, which its folder must; put the model's "
            "name or folder into its metadata as sliders.base_model"
        )
    save_as(dial, place, (place_of(base), False))
