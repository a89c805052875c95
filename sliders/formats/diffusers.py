"""One safetensors file that diffusers loads as it is: `pipe.load_lora_weights(file)`.

Keys are ``<component>.<module>.lora_A.weight`` and ``lora_B.weight``.  Alpha is folded into ``lora_B`` when a slider
leaves training, and folded in again nowhere: what is written has alpha = rank in every module, so that a client that
ignores alpha turns the same dial.  Metadata under ``sliders.*`` says what the slider is, on which base, and how it
was measured; ``modelspec.*`` says so in the words of the ModelSpec standard.
"""

import collections
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.concept import Concept
from sliders.errors import SliderError

SCHEMA_VERSION = "1"


def describe(
    concept: Concept,
    base_model: str,
    fingerprint: str,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    eta: float,
    training: Mapping[str, Any],
) -> dict[str, str]:
    """A slider's metadata: what it is and how it was made."""
    return {
        "sliders.schema_version": SCHEMA_VERSION,
        "sliders.name": concept.name,
        "sliders.concept": json.dumps(concept.to_dict()),
        "sliders.base_model": base_model,
        "sliders.base_fingerprint": fingerprint,
        "sliders.rank": str(rank),
        "sliders.alpha": str(alpha),
        "sliders.targets": json.dumps(list(targets)),
        "sliders.eta": str(eta),
        "sliders.training": json.dumps(dict(training)),
        "sliders.dial_range": "[-2, 2]",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": concept.name,
        "modelspec.architecture": "lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.date": datetime.date.today().isoformat(),
        "modelspec.description": f"{' / '.join(concept.positives)} (+) against {' / '.join(concept.negatives)} (-)",
        "modelspec.usage_hint": "weight 1 and -1 are the useful ends; -2 to 2 is the range it was trained for",
    }


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
    """Write a slider; the file appears whole or not at all."""
    state: dict[str, Tensor] = {}
    for name, update in slider.update.items():
        state[f"{name}.lora_A.weight"] = update.A.reshape(-1, *update.shape[1:]).contiguous()
        tail = [1] * (len(update.shape) - 2)
        state[f"{name}.lora_B.weight"] = update.B.reshape(*update.B.shape, *tail).contiguous()
    metadata = {**slider.metadata, "format": "pt", "lora_adapter_metadata": json.dumps(_client_config(slider.update))}
    metadata["sliders.name"] = slider.name
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    save_file(state, temporary, metadata)
    temporary.replace(file)


def load(file: Path) -> Slider:
    """Read a slider, ours or any LoRA in diffusers' layout.

    Where the file says an alpha other than the rank (in its metadata or as ``.alpha`` keys), it is folded in here.

    Raises:
        SliderError: the file is missing, corrupt, or holds something else.
    """
    if not file.is_file():
        raise SliderError(f"no slider file at {file}")
    try:
        with safe_open(file, "pt") as f:
            metadata = dict(f.metadata() or {})
            state = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118  (a safe_open is not iterable)
    except (SafetensorError, OSError) as error:
        raise SliderError(f"{file} is not a readable safetensors file: {error}") from error
    downs = {key.removesuffix(".lora_A.weight"): key for key in state if key.endswith(".lora_A.weight")}
    if not downs:
        raise SliderError(f"{file} holds no slider: no key ends in .lora_A.weight (diffusers' LoRA layout)")
    known = {f"{n}.{part}" for n in downs for part in ("lora_A.weight", "lora_B.weight", "alpha")}
    if foreign := sorted(set(state) - known):
        raise SliderError(f"{file} holds {foreign[0]!r}, which is not part of a LoRA in diffusers' layout")
    alphas = _alphas(metadata, file)
    updates: dict[str, LowRank] = {}
    for name, key in downs.items():
        down, up = state[key], state.get(f"{name}.lora_B.weight")
        if up is None or up.shape[1] != down.shape[0]:
            raise SliderError(f"{file}: {name!r} has no lora_B that fits its lora_A")
        rank = len(down)
        alpha = float(state[f"{name}.alpha"]) if f"{name}.alpha" in state else alphas(name, rank)
        shape = (len(up), *down.shape[1:])
        updates[name] = LowRank(up.flatten(1) * (alpha / rank), down.reshape(rank, math.prod(shape[1:])), shape)
    return Slider(metadata.get("sliders.name", file.stem), Translation(updates), metadata)


def _alphas(metadata: Mapping[str, str], file: Path) -> Any:
    """From a module's name and rank to the alpha that the client configuration in the metadata gives it."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise SliderError(f"{file}: its lora_adapter_metadata is not JSON: {error}") from error

    def alpha(name: str, rank: int) -> float:
        component, _, module = name.partition(".")
        pattern = config.get(f"{component}.alpha_pattern") or {}
        return float(pattern.get(module, config.get(f"{component}.lora_alpha", rank)))

    return alpha


def concept_of(slider: Slider) -> Concept:
    """The concept that a slider was trained on.

    Raises:
        SliderError: the file does not say (it was not made by this package).
    """
    if "sliders.concept" not in slider.metadata:
        raise SliderError(f"slider {slider.name!r} does not say which concept it was trained on")
    return Concept.from_dict(json.loads(slider.metadata["sliders.concept"]), f"slider {slider.name!r}")


def check_base(slider: Slider, fingerprint: str, base_model: str) -> None:
    """Refuse a slider that was made for another base.

    Raises:
        SliderError: both fingerprints are known and differ.
    """
    wanted = slider.metadata.get("sliders.base_fingerprint")
    if wanted is not None and wanted != fingerprint:
        raise SliderError(
            f"slider {slider.name!r} was made for {slider.metadata.get('sliders.base_model')} (fingerprint {wanted}), "
            f"but {base_model} has fingerprint {fingerprint}; --any-base loads it all the same"
        )
