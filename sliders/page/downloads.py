"""Sliders as files for the one who asked: what plain diffusers or PEFT loads.  An edit has a file of its own kind."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from sliders.algebra.compose import combine
from sliders.algebra.slider import Hinge, Interpolated, NamedDial, Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.errors import SliderError
from sliders.formats import diffusers, edit, hinge, peft
from sliders.formats.metadata import check_one_base, describe_composed
from sliders.page.edits import added, moved_biases, translation
from sliders.page.safety import clean_name
from sliders.report.drawing import dial_label


def composed(model: nn.Module, dials: Sequence[NamedDial], positions: Mapping[str, float]) -> Slider:
    """The exact sum of dials at their positions, which says what it is made of.

    Args:
        model: whose weights say what an edit adds to them.
        dials: sliders, hinges and edits, as `attach` sums them.
        positions: of each.

    Raises:
        SliderError: they were made for unlike bases, or an edit changes biases.
    """
    check_one_base(dials)
    parts = [(_as_sum(model, dial), positions[dial.name]) for dial in dials]
    said = {"how": "sum", "parts": [{"name": dial.name, "dial": positions[dial.name]} for dial in dials]}
    name = clean_name("_".join(f"{d.name}{dial_label(round(positions[d.name], 2))}" for d in dials), 60)
    return Slider(name, combine(parts), describe_composed(name, said, dials))


def _as_sum(model: nn.Module, dial: NamedDial) -> Slider | Hinge:
    """What stacks: a slider or a hinge, or what an edit adds to this model's weights."""
    if not isinstance(dial, Interpolated):
        return dial
    shifts = added(model, dial)
    if layers := moved_biases(shifts):
        raise SliderError(
            f"{dial.name} changes biases as well (of {len(layers)} layers, the first is {layers[0]}), and a LoRA file "
            "has none: set its dial to 0, or download the edit itself, whose file has them"
        )
    return Slider(dial.name, translation(shifts))


def write(dial: NamedDial, place: Path, language: CausalLMBackbone | None) -> Path:
    """Write a dial as one file: a slider of pictures and an edit as they are, others as a zip of their folder.

    Args:
        dial: to write.
        place: where, without an ending.
        language: the model that it is for; None for a model of pictures.
    """

    def one(slider: Slider, where: Path) -> None:
        if language is None:
            diffusers.save(slider, where)
        else:
            peft.save(slider, where, language.base_model, language.transposed)

    file = place.with_name(f"{place.name}.safetensors")
    if isinstance(dial, Interpolated):
        edit.save(dial.name, dial.edit, file, dict(dial.metadata))
        return file
    if isinstance(dial, Slider) and language is None:
        one(dial, file)
        return file
    if isinstance(dial, Hinge):
        hinge.save(dial, place, one, "" if language else ".safetensors")
    else:
        one(dial, place)
    return Path(shutil.make_archive(str(place), "zip", place))
