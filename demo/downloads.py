"""Sliders as files for the one who asked: what plain diffusers or PEFT loads."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo.safety import clean_name
from sliders.algebra.compose import combine
from sliders.algebra.slider import Hinge, Slider
from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.evaluation.plots import dial_label
from sliders.formats import diffusers, hinge, peft
from sliders.formats.metadata import check_one_base, describe_composed


def composed(dials: Sequence[Slider | Hinge], positions: Mapping[str, float]) -> Slider:
    """The exact sum of dials at their positions, which says what it is made of.

    Raises:
        SliderError: they were made for unlike bases.
    """
    check_one_base(dials)
    said = {"how": "sum", "parts": [{"name": dial.name, "dial": positions[dial.name]} for dial in dials]}
    name = clean_name("_".join(f"{d.name}{dial_label(round(positions[d.name], 2))}" for d in dials), 60)
    update = combine([(dial, positions[dial.name]) for dial in dials])
    return Slider(name, update, describe_composed(name, said, dials))


def write(dial: Slider | Hinge, place: Path, language: CausalLMBackbone | None) -> Path:
    """Write a dial as one file: a slider of pictures as it is, all others as a zip of the folder that they are.

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

    if isinstance(dial, Slider) and language is None:
        file = place.with_name(f"{place.name}.safetensors")
        one(dial, file)
        return file
    if isinstance(dial, Hinge):
        hinge.save(dial, place, one, "" if language else ".safetensors")
    else:
        one(dial, place)
    return Path(shutil.make_archive(str(place), "zip", place))
