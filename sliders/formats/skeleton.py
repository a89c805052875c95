"""Models without weights, from their configuration: what their layers are called and what kind they are."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sliders.errors import SliderError, one_line

INDEX = "model_index.json"


def skeletons(folder: Path) -> dict[str, nn.Module | None]:
    """The parts of a pipeline by name, or a language model as ``lm``, on the meta device.

    Parts whose class neither diffusers nor transformers has are None.

    Raises:
        SliderError: a configuration is missing, malformed, or of a model that the libraries do not know.
    """
    try:
        if not (folder / INDEX).is_file():
            with torch.device("meta"):
                return {"lm": AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))}
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        kinds = {name: kind for name, kind in said.items() if isinstance(kind, list) and (folder / name).is_dir()}
        return {name: _part(folder / name, *kind) for name, kind in kinds.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise SliderError(f"{folder} does not say which model it holds: {one_line(error)}") from error


def model_class(library: str | None, name: str | None) -> Any:
    """The class of a pipeline's part, where it is one of diffusers or transformers with weights; otherwise None."""
    if library not in ("diffusers", "transformers") or name is None:
        return None
    found = getattr(importlib.import_module(library), name, None)
    return found if isinstance(found, type) and issubclass(found, ModelMixin | PreTrainedModel) else None


def _part(folder: Path, library: str | None, name: str | None) -> nn.Module | None:
    kind: Any = model_class(library, name)
    if kind is None:
        return None
    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # of diffusers
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))
