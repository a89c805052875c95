"""One safetensors file that diffusers loads as it is: `pipe.load_lora_weights(file)`.

Keys are ``<component>.<module>.lora_A.weight`` and ``lora_B.weight``.  Alpha is folded into ``lora_B`` when a slider
leaves training, and folded in again nowhere: what is written has alpha = rank in every module, so that a client that
ignores alpha turns the same dial.  What the metadata says of the slider is in `sliders.formats.metadata`.
"""

import collections
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.errors import SliderError
from sliders.formats import tensors

_PEFT_ALPHA = 8
"""What PEFT takes where its configuration is there and says no alpha."""


def _client_config(update: Translation) -> dict[str, Any]:
    """PEFT's configuration of each component, flattened as diffusers reads it from the metadata."""
    config: dict[str, Any] = {}
    for component in sorted({name.split(".")[0] for name in update}):
        ranks = {name.partition(".")[2]: u.rank for name, u in update.items() if name.split(".")[0] == component}
        common = collections.Counter(ranks.values()).most_common(1)[0][0]
        other = {name: rank for name, rank in ranks.items() if rank != common}
        config |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.rank_pattern": other,
            f"{component}.alpha_pattern": other,
            f"{component}.target_modules": sorted(ranks),
        }
    return config


def save(slider: Slider, file: Path) -> None:
    """Write a slider; the file appears whole or not at all.

    Raises:
        SliderError: it changes nothing.
    """
    state: dict[str, Tensor] = {}
    for name, update in slider.update.items():
        state[f"{name}.lora_A.weight"] = update.A.reshape(-1, *update.shape[1:])
        tail = [1] * (len(update.shape) - 2)
        state[f"{name}.lora_B.weight"] = update.B.reshape(*update.B.shape, *tail)
    if not state:
        raise SliderError(f"slider {slider.name!r} changes no layer, so that there is nothing to write")
    metadata = {**slider.metadata, "sliders.name": slider.name}
    metadata["lora_adapter_metadata"] = json.dumps(_client_config(slider.update))
    metadata["modelspec.implementation"] = "https://github.com/huggingface/diffusers"
    tensors.write(state, file, metadata)


def load(file: Path) -> Slider:
    """Read a slider, ours or any LoRA in diffusers' layout.

    Where the file says an alpha other than the rank (in its metadata or as ``.alpha`` keys), it is folded in here.
    Layers of the text encoder may have the names that they had before transformers 5.

    Raises:
        SliderError: the file is missing, corrupt, or holds something else.
    """
    metadata, state = tensors.read(file)
    downs = {key.removesuffix(".lora_A.weight"): key for key in state if key.endswith(".lora_A.weight")}
    if not downs:
        raise SliderError(f"{file} holds no slider: no key ends in .lora_A.weight (diffusers' LoRA layout)")
    known = {f"{n}.{part}" for n in downs for part in ("lora_A.weight", "lora_B.weight", "alpha")}
    if foreign := sorted(set(state) - known):
        raise SliderError(f"{file} holds {foreign[0]!r}, which is not part of a LoRA in diffusers' layout")
    config = _read_config(metadata, file)
    updates: dict[str, LowRank] = {}
    for name, key in downs.items():
        down, up = state[key], state.get(f"{name}.lora_B.weight")
        rank = len(down)
        if up is None or down.dim() < 2 or up.shape[1:] != (rank, *[1] * (down.dim() - 2)) or not rank:
            raise SliderError(f"{file}: {name!r} has no lora_B that fits its lora_A")
        try:
            scale = _scale(config, name, rank, state.get(f"{name}.alpha"))
        except (AttributeError, TypeError, ValueError, RuntimeError, re.error) as error:
            raise SliderError(f"{file}: lora_adapter_metadata or alpha of {name!r} is malformed: {error}") from error
        shape = (len(up), *down.shape[1:])
        up, down = tensors.widened(up), tensors.widened(down)
        update = LowRank(up.flatten(1) * scale, down.reshape(rank, math.prod(shape[1:])), shape)
        updates[re.sub(r"^text_encoder\.text_model\.", "text_encoder.", name)] = update
    return Slider(metadata.get("sliders.name", file.stem), Translation(updates), metadata)


def _read_config(metadata: Mapping[str, str], file: Path) -> dict[str, Any]:
    """PEFT's configurations of all components, as the client wrote them into the metadata."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise SliderError(f"{file}: its lora_adapter_metadata is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SliderError(f"{file}: its lora_adapter_metadata is not a mapping")
    return config


def _scale(config: Mapping[str, Any], name: str, rank: int, alpha: Tensor | None) -> float:
    """By what PEFT multiplies a module's ``B A``: alpha / rank, or alpha / sqrt(rank) with ``use_rslora``.

    Alpha is the module's own where there is one; otherwise that of the first pattern which matches the end of the
    module's name, and otherwise the component's.
    """
    component, _, module = name.partition(".")
    said = {key.partition(".")[2]: value for key, value in config.items() if key.startswith(f"{component}.")}
    patterns = said.get("alpha_pattern") or {}
    matching = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    common = said.get("lora_alpha", _PEFT_ALPHA) if said else rank
    value = float([*matching, common][0] if alpha is None else alpha)
    return value / (math.sqrt(rank) if said.get("use_rslora") else rank)
