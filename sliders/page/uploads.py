"""Sliders and edits that strangers send: one safetensors file, of which only numbers and a few words are believed."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sliders import formats
from sliders.algebra.slider import Hinge, Interpolated, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.formats import peft
from sliders.formats.metadata import differs
from sliders.page.safety import clean_name, clean_text
from sliders.runtime.attach import attach

_BELIEVED = (
    "sliders.effect", "sliders.dial_range", "sliders.base_model", "sliders.base_fingerprint", "sliders.eta",
    "sliders.modality", "modelspec.description",
)  # fmt: skip
_LANGUAGE = "base_model.model."


def read(file: Path) -> Slider | Interpolated:
    """The slider or the edit in an uploaded file.

    Raises:
        SliderError: in words for the one who uploaded it, without this machine's paths.
    """
    name = clean_text(file.name)
    try:
        with safe_open(file, "pt") as opened:
            keys, metadata = list(opened.keys()), dict(opened.metadata() or {})
            ranks = {key: opened.get_slice(key).get_shape()[0] for key in keys if key.endswith(".lora_A.weight")}
    except (SafetensorError, OSError, IndexError):
        raise SliderError(
            f"{name} cannot be read: it is cut off, damaged, or something else with the ending .safetensors"
        ) from None
    called = clean_name(metadata.get("sliders.name") or file.stem)
    adapter = any(key.startswith(_LANGUAGE) for key in keys)
    try:
        dial = _read_adapter(file, metadata, ranks) if adapter else formats.load_dial(file, called)
    except SliderError as error:
        raise SliderError(str(error).replace(str(file), name)) from None
    assert not isinstance(dial, Hinge)  # which is a folder
    return replace(dial, name=called, metadata=_believed(metadata))


def _read_adapter(file: Path, metadata: Mapping[str, str], ranks: Mapping[str, int]) -> Slider:
    """The weights of a PEFT folder alone: readable where alpha is folded in, as this package does."""
    if "sliders.name" not in metadata:
        raise SliderError(
            f"{file} is the adapter of a language model, whose strength stands in a second file "
            "(adapter_config.json) that cannot be sent here. Only adapters that this package wrote say it themselves."
        )
    pattern = {f"^{re.escape(key.removeprefix(_LANGUAGE)[: -len('.lora_A.weight')])}": r for key, r in ranks.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / peft.WEIGHTS).symlink_to(file.resolve())
        (folder / peft.CONFIG).write_text(json.dumps({"peft_type": "LORA", "alpha_pattern": pattern}))
        try:
            return peft.load(folder)
        except SliderError as error:
            said = str(error).replace(str(folder / peft.WEIGHTS), str(file))
            raise SliderError(said.replace(str(folder / peft.CONFIG), str(file))) from None


def _believed(metadata: Mapping[str, str]) -> dict[str, str]:
    """What may be kept: a concept, too, may name files of this machine, and then they would be read."""
    kept = {key: clean_text(metadata[key], 4000) for key in _BELIEVED if key in metadata}
    try:
        said = json.loads(metadata["sliders.concept"])
        words = {key: said[key] for key in ("name", "target", "positives", "negatives", "modality") if key in said}
        kept["sliders.concept"] = json.dumps(Concept.from_metadata(words, "an upload").to_dict())
    except (KeyError, ValueError, TypeError, AttributeError, SliderError):
        pass
    return kept


def check(dial: Slider | Interpolated, backbone: AbstractBackbone) -> None:
    """Refuse a slider or an edit that was made for another model, or whose layers this one does not have.

    Raises:
        SliderError: in words for the one who uploaded it.
    """
    if differs(dial.metadata, backbone):
        base = clean_text(dial.metadata.get("sliders.base_model", "another model"))
        raise SliderError(f"{dial.name} was made for another model ({base}); it would mean nothing to this one")
    try:
        with attach(backbone, [dial]):
            pass
    except SliderError as error:
        raise SliderError(f"{dial.name} does not fit this page's model: {error}") from None
