"""Which backbone a model is of: its class, from its own files, from a slider's file, or from what a user says.

A slider's file may be a stranger's.  A class is taken from it only if it is a backbone of this package, and a model
only if it has a name; a folder that it names is opened where this machine's user has used the same model there before.
"""

import importlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from sliders import formats
from sliders.algebra.slider import NamedDial
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.fingerprint import is_known
from sliders.errors import SliderError, one_line
from sliders.files import read_json
from sliders.formats import hinge, peft
from sliders.formats.metadata import components, unlike
from sliders.resources.fetch import FETCHED
from sliders.resources.shipped import MODELS, model_folder

PICTURES, PICTURES_XL, PIPELINE, LANGUAGE = (
    "sliders.backbones.unet.UNetBackbone",
    "sliders.backbones.sdxl.SDXLBackbone",
    "sliders.backbones.rehearsed.backbone.PipelineBackbone",
    "sliders.backbones.language.model.CausalLMBackbone",
)
DEFAULTS = {"image": "avatars", "text": "smollm2"}
"""The model of each modality where nothing else is said."""

_OURS = re.compile(r"sliders\.backbones(\.[a-z_]\w*)+\.[A-Z]\w*", re.ASCII)
_ON_A_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_INDEX, _CONFIG = "model_index.json", "config.json"


def class_path(model: str) -> str:
    """The class of a model's backbone, from its files.

    Args:
        model: a folder, a name, or what a hub has.

    Raises:
        SliderError: it is no pipeline of diffusers and no model of transformers, or is not there.
    """
    if model in FETCHED:
        return LANGUAGE
    folder = Path(model_folder(model))
    index, config = (folder / name if folder.exists() else _of_hub(model, name) for name in (_INDEX, _CONFIG))
    if index is not None and index.is_file():
        return _of_pipeline(read_json(index, "index of a pipeline"))
    if config is not None and config.is_file():
        return LANGUAGE
    raise SliderError(
        f"no base model at {model}: give the folder of a diffusers pipeline or of a transformers model, a hub name, "
        f"or {', '.join([*MODELS, *FETCHED])}"
    )


def _of_pipeline(parts: Mapping[str, Any]) -> str:
    """Stable Diffusion and SDXL have backbones of their own, for their text encoders; all else is rehearsed."""
    if parts.get("unet", [None])[0] is None:
        return PIPELINE
    return PICTURES_XL if "text_encoder_2" in parts else PICTURES


def _of_hub(model: str, name: str) -> Path | None:
    """A small file of a hub's model, if the model has it."""
    if not _ON_A_HUB.fullmatch(model):
        return None
    try:
        return Path(hf_hub_download(model, name))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise SliderError(f"cannot find out what {model} is: {one_line(error)}; is it a folder's name?") from error


def backbone_of(model: str, path: str | None = None, settings: str | None = None) -> AbstractBackbone:
    """A model's backbone, which is not loaded yet.

    Args:
        model: a folder, a name, or what a hub has.
        path: of its class; found from its files unless given.
        settings: what its constructor is told beside the model, as a slider's file says it.

    Raises:
        SliderError: see `class_path`; or the class is no backbone of this package, or has no such settings.
    """
    path = path or class_path(model)
    module, _, name = path.rpartition(".")
    found = None
    if _OURS.fullmatch(path):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            found = None
    if not (isinstance(found, type) and issubclass(found, AbstractBackbone)) or inspect.isabstract(found):
        raise SliderError(f"{path[:80]!r} is no backbone of this package; say with --backbone what {model[:80]} is")
    try:
        return found(model, **_plain(settings))
    except TypeError as error:
        raise SliderError(f"the settings {settings!r:.80} are none of a {name}: {one_line(error)}") from error


def _plain(settings: str | None) -> dict[str, Any]:
    """What a file says of its base's settings: a mapping of plain values.

    Raises:
        SliderError: it is something else.
    """
    try:
        said = json.loads(settings or "{}")
    except (ValueError, RecursionError) as error:
        raise SliderError(f"the settings {settings!r:.80} of the base are not JSON: {one_line(error)}") from error
    if not isinstance(said, dict) or not said.keys() <= {"height", "width", "call", "words"}:
        raise SliderError(f"the settings {settings!r:.80} of the base are not ones that a file may say")
    return said


@dataclass(frozen=True)
class Named:
    """The base that a dial's file names.

    Args:
        dial: what the dial is called.
        model: a folder, a name, or what a hub has; empty where it does not say.
        path: of the backbone's class; None where it does not say.
        settings: of the backbone, as text; None where it does not say.
        fingerprint: of what the dial is on; empty where it does not say.
    """

    dial: str
    model: str
    path: str | None
    settings: str | None
    fingerprint: str

    def usable(self) -> bool:
        """Whether the model may be opened without a word of the user: see the top of this file."""
        if self.model in (*MODELS, *FETCHED):
            return True
        if not Path(self.model).exists() and _ON_A_HUB.fullmatch(self.model):
            return True
        return is_known(Path(self.model), components(self.fingerprint))

    def refusal(self) -> SliderError:
        """Why it is not opened, and what to do instead."""
        if not self.model:
            return SliderError(f"slider {self.dial!r} does not say which model it was made on; give it with --base")
        place = self.model[:200]
        return SliderError(f"slider {self.dial!r} was made on {place}; give --base {place} to use that model")


def named_by(dial: NamedDial, path: Path) -> Named:
    """The base that the file or the folder of a dial names."""
    said, side = dial.metadata, hinge.sides(path)[1] if hinge.is_hinge(path) else path
    model = said.get("sliders.base_model") or (peft.base_of(side)[0] if side.is_dir() else "")
    name = next((name for name, place in MODELS.items() if place == model), model)
    kind, settings = said.get("sliders.base_class"), said.get("sliders.base_settings")
    return Named(dial.name, name, kind, settings, said.get("sliders.base_fingerprint", ""))


def choose(
    dials: Sequence[NamedDial],
    paths: Sequence[Path],
    base: str | None = None,
    backbone: object = None,
    otherwise: str = DEFAULTS["image"],
) -> AbstractBackbone:
    """The backbone for dials, which is not loaded yet.

    Args:
        dials: all of one base; there may be none.
        paths: of their files or folders.
        base: the model that the user says instead of theirs.
        backbone: what the user says with all its settings.
        otherwise: the model where there are no dials and nothing is said.

    Raises:
        SliderError: the dials are of several media or bases, none is said or it must not be opened, or the one that the
            user says makes another medium.
    """
    if base is not None and backbone is not None:
        raise SliderError("--base and --backbone both say which model; give one of them")
    if backbone is not None and not isinstance(backbone, AbstractBackbone):
        raise SliderError(f"--backbone is a {type(backbone).__name__}, which is no backbone")
    modality = formats.modality_of(*paths) if paths else None
    if backbone is None:
        named = [named_by(dial, path) for dial, path in zip(dials, paths, strict=True)]
        backbone = _said(base, named) if base is not None else _shared(named) if named else backbone_of(otherwise)
    if modality is not None and modality != backbone.modality:
        raise SliderError(
            f"{paths[0]} is a slider for the modality {modality}, and {backbone.base_model} is a model of the modality "
            f"{backbone.modality}; give the base that the slider was made on, or none"
        )
    return backbone


def _said(base: str, named: Sequence[Named]) -> AbstractBackbone:
    """The user's; of a hub's model, a dial knows the class without asking."""
    if named and named[0].model == base:
        return backbone_of(base, named[0].path, named[0].settings)
    return backbone_of(base)


def _shared(named: Sequence[Named]) -> AbstractBackbone:
    """The one base of dials that say what theirs is."""
    first, *rest = named
    for other in rest:
        alike = first.fingerprint and other.fingerprint and not unlike(first.fingerprint, other.fingerprint)
        if other.model != first.model and not alike:
            raise SliderError(
                f"sliders {first.dial!r} and {other.dial!r} were made on {first.model or 'an unknown model'} and "
                f"{other.model or 'an unknown model'}; give the one to use with --base"
            )
    found = next((one for one in named if one.model and one.usable()), None)
    if found is None:
        raise first.refusal()
    return backbone_of(found.model, found.path, found.settings)
