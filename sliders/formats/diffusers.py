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
from sliders.batch import widened
from sliders.errors import SliderError
from sliders.formats import naming, tensors
from sliders.formats.scaling import Scaling


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
    """Read a slider, ours or any LoRA in one of diffusers' layouts.

    Where the file says an alpha other than the rank (in its metadata or as ``.alpha`` keys), it is folded in here.
    Layers of the text encoder may have the names that they had before transformers 5, and all those of `naming`.

    Raises:
        SliderError: the file is missing, corrupt, or holds something else; an ``alpha_pattern`` has other keys than
            modules' names.
    """
    metadata, state = tensors.read(file)
    naming.check_layout(state, file)
    names = naming.to_peft(state, file)
    state = {names[key]: tensor for key, tensor in state.items()}
    tensors.check_finite(state, file)
    downs = {key.removesuffix(".lora_A.weight"): key for key in state if key.endswith(".lora_A.weight")}
    if not downs:
        raise SliderError(f"{file} holds no slider: no key ends in .lora_A.weight or .lora.down.weight (a LoRA's)")
    known = {f"{n}.{part}" for n in downs for part in ("lora_A.weight", "lora_B.weight", "alpha")}
    if foreign := sorted(set(state) - known):
        raise SliderError(f"{file} holds {foreign[0]!r}, which is not part of a LoRA in diffusers' layout")
    config = _read_config(metadata, file, naming.of_one_component(names))
    scalings: dict[str, Scaling] = {}
    updates: dict[str, LowRank] = {}
    for name, key in downs.items():
        component, _, module = name.partition(".")
        down, up = state[key], state.get(f"{name}.lora_B.weight")
        rank = len(down)
        if up is None or down.dim() < 2 or up.shape[1:] != (rank, *[1] * (down.dim() - 2)) or not rank:
            raise SliderError(f"{file}: {name!r} has no lora_B that fits its lora_A")
        try:
            if component not in scalings:
                where = f"{file}: lora_adapter_metadata: {component}."
                scalings[component] = Scaling(config.get(component, {}), where)
            scale = scalings[component](module, rank, state.get(f"{name}.alpha"))
        except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise SliderError(f"{file}: lora_adapter_metadata or alpha of {name!r} is malformed: {error}") from error
        shape = (len(up), *down.shape[1:])
        up, down = widened(up), widened(down)
        update = LowRank(up.flatten(1) * scale, down.reshape(rank, math.prod(shape[1:])), shape)
        updates[re.sub(r"^text_encoder\.text_model\.", "text_encoder.", name)] = update
    return Slider(metadata.get("sliders.name", file.stem), Translation(updates), metadata)


def _read_config(metadata: Mapping[str, str], file: Path, component: str | None) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each component, as the client wrote them into the metadata.

    Args:
        metadata: of the file.
        file: for errors.
        component: what the file is of, where its keys do not say.
    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError) as error:
        raise SliderError(f"{file}: its lora_adapter_metadata is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SliderError(f"{file}: its lora_adapter_metadata is not a mapping")
    parted: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        of, dot, what = key.partition(".")
        if dot:
            parted.setdefault(of, {})[what] = value
        elif component is not None:
            parted.setdefault(component, {})[key] = value
    return parted
