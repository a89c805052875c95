"""Models as their libraries load them, where every weight is one that a file holds.

The libraries fill what a file lacks with random numbers, leave out what they do not know, and say so in a warning at
most.  Here both are errors.  What a library itself declares to be of no matter (tied weights, old buffers) stays so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError

from sliders.errors import SliderError, one_line
from sliders.files import read_json
from sliders.formats.skeleton import model_class

_SHOWN = 3


def check_weights(found: Mapping[str, Any], place: object) -> None:
    """Refuse weights that are not those of the model.

    Args:
        found: a library's loading info: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys``.
        place: the file or the folder, for the message.

    Raises:
        SliderError: some are missing, or more than the model's, or of another shape.
    """
    unlike = [(key, tuple(stored), tuple(needed)) for key, stored, needed in found.get("mismatched_keys") or ()]
    names = {
        "lack": sorted(found.get("missing_keys") or ()),
        "hold, beside the model's own,": sorted(found.get("unexpected_keys") or ()),
        "have in another shape": [f"{key} {stored} instead of {needed}" for key, stored, needed in sorted(unlike)],
    }
    wrong = [f"{verb} {_some(keys)}" for verb, keys in names.items() if keys]
    if wrong or found.get("error_msgs"):
        said = "; they ".join(wrong) or one_line(found["error_msgs"][0])
        raise SliderError(f"the weights in {place} are not those of its model: they {said}")


def _some(keys: list[str]) -> str:
    rest = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def load_model(kind: Any, place: str | Path, **how: Any) -> Any:
    """``kind.from_pretrained(place, **how)``, for a model class of diffusers or transformers, with every weight.

    Raises:
        SliderError: it cannot be loaded, or see `check_weights`.
    """
    where = Path(str(place), how.get("subfolder", ""))
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        how["ignore_mismatched_sizes"] = True  # so that they are told by name, as the rest is
    try:
        loaded: Any = kind.from_pretrained(place, output_loading_info=True, **how)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = one_line(error).partition(" If you want to instead")[0]  # diffusers' advice to fill in random weights
        raise SliderError(f"cannot load the model in {where}: {said}") from error
    check_weights(loaded[1], where)
    return loaded[0]


def load_pipeline(folder: Path, without: Mapping[str, Any], dtype: Mapping[str, Any], variant: str | None) -> Any:
    """A diffusers pipeline with every weight.

    Args:
        folder: of the pipeline.
        without: what it is given in place of parts that are not to be loaded.
        dtype: of each part, or under ``default``.
        variant: of the files, for the parts that have it.

    Raises:
        SliderError: see `load_model`.
    """
    said: Any = DiffusionPipeline.load_config(folder)
    parts: dict[str, Any] = {}
    for name, kind in said.items():
        if name not in without and isinstance(kind, list | tuple) and (of := model_class(*kind)) is not None:
            how = {"dtype": dtype.get(name, dtype["default"]), "variant": _variant_of(folder / name, variant)}
            parts[name] = load_model(of, folder, subfolder=name, **how)
    empty = {name: None for name, kind in said.items() if isinstance(kind, list | tuple) and set(kind) == {None}}
    given = {**empty, **parts, **without}  # what it was saved without, such as a third text encoder, must be said again
    try:
        return DiffusionPipeline.from_pretrained(folder, **given, dtype=dtype, variant=variant)
    except (OSError, ValueError, ImportError) as error:
        raise SliderError(f"cannot load the base model {folder}: {one_line(error)}") from error


def save_pipeline(pipeline: Any, folder: Path, encoders: Sequence[str]) -> None:
    """Write a diffusers pipeline, in any precision, so that it comes up in one however it is opened.

    transformers would read its encoders as they are stored, and diffusers the rest in float32.

    Args:
        pipeline: of diffusers.
        folder: where it is written.
        encoders: its parts that are of transformers.
    """
    pipeline.save_pretrained(folder)
    for name in encoders:
        config = folder / name / "config.json"
        config.write_text(json.dumps({**read_json(config), "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _variant_of(folder: Path, variant: str | None) -> str | None:
    """The variant, where this part has it; as diffusers does, others are loaded without."""
    return variant if variant and any(folder.glob(f"*.{variant}*")) else None
