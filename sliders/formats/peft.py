"""A folder that PEFT loads as it is: `PeftModel.from_pretrained(model, folder)`.

The update lies in the names ``base_model.model.<module>.lora_A.weight``; alpha is folded in, so that what is written
has alpha = rank in every module.  The safetensors' metadata says what the slider is, as it does for images.
"""

import collections
import json
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.batch import widened
from sliders.errors import SliderError
from sliders.files import read_json, replacing_folder
from sliders.formats import tensors
from sliders.formats.scaling import Scaling

_OURS, _THEIRS = "lm.", "base_model.model."
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""What PEFT initialises by taking something out of the base's own weights."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def is_for_language(update: Translation) -> bool:
    """Whether an update is of layers of a language model, which only a folder of PEFT's holds."""
    return any(name.startswith(_OURS) for name in update)


def save(slider: Slider, folder: Path, base: str, transposed: bool = False) -> None:
    """Write a slider of a language model; the folder appears whole or not at all.

    Args:
        slider: its modules are called ``lm.<module>``.
        folder: what `PeftModel.from_pretrained` is given; an earlier slider there is replaced.
        base: name or folder of the base model, for the configuration.
        transposed: the model's layers keep their weights transposed (GPT-2).
    """
    state: dict[str, Tensor] = {}
    for name, update in slider.update.items():
        if not name.startswith(_OURS) or len(update.shape) != 2:
            raise SliderError(f"slider {slider.name!r} changes {name!r}, which is no linear layer of a language model")
        place = _THEIRS + name.removeprefix(_OURS)
        state[f"{place}.lora_A.weight"] = update.A
        state[f"{place}.lora_B.weight"] = update.B
    if not state:
        raise SliderError(f"slider {slider.name!r} changes no layer, so that there is nothing to write")
    if folder.exists() and not (folder / CONFIG).exists():
        raise SliderError(f"{folder} is there and holds no slider; give another place or remove it")
    with replacing_folder(folder) as new:
        new.mkdir()
        metadata = {**slider.metadata, "sliders.name": slider.name}
        metadata["modelspec.implementation"] = "https://github.com/huggingface/peft"
        tensors.write(state, new / WEIGHTS, metadata)
        (new / CONFIG).write_text(json.dumps(_config(slider.update, base, transposed), indent=1) + "\n")
        for other in folder.iterdir() if folder.exists() else ():  # what else lies there, such as a README, stays
            if other.name not in (WEIGHTS, CONFIG):
                (shutil.copytree if other.is_dir() else shutil.copy2)(other, new / other.name)


def _config(update: Translation, base: str, transposed: bool) -> dict[str, Any]:
    """PEFT's configuration; patterns are whole names, since PEFT matches them at a name's end."""
    ranks = {name.removeprefix(_OURS): u.rank for name, u in update.items()}
    common = collections.Counter(ranks.values()).most_common(1)[0][0]
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
    }


def load(folder: Path) -> Slider:
    """Read a slider, ours or any plain LoRA that PEFT has written.

    Raises:
        SliderError: the folder holds no such thing; what is more than ``B A`` is refused by its name, and so is an
            ``alpha_pattern`` with other keys than modules' names.
    """
    file, described = folder / WEIGHTS, folder / CONFIG
    if not file.is_file() or not described.is_file():
        raise SliderError(f"no slider in {folder}: a PEFT folder has {CONFIG} and {WEIGHTS}")
    config = read_json(described, "configuration")
    metadata, state = tensors.read(file)
    tensors.check_finite(state, file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SliderError(f"{described} is not the configuration of a LoRA")
    more = {key: config.get(key) for key in ("use_dora", "alora_invocation_tokens")}
    more["bias"] = config.get("bias", "none") not in ("none", None)
    more["init_lora_weights"] = str(config.get("init_lora_weights")).lower().startswith(_MOVES_THE_BASE)
    if any(more.values()):
        key = next(key for key, wrong in more.items() if wrong)
        raise SliderError(f"{described}: with this {key!r} it is no low-rank update of the base's weights alone")
    scaling: Scaling | None = None
    updates: dict[str, LowRank] = {}
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        place = key.removesuffix(".lora_A.weight")
        name, up = place.removeprefix(_THEIRS), state.get(f"{place}.lora_B.weight")
        if up is None or down.dim() != 2 or up.dim() != 2 or up.shape[1] != len(down) or not len(down):
            raise SliderError(f"{file}: {place!r} has no lora_B that fits its lora_A")
        try:
            scaling = scaling or Scaling(config, f"{described}: ")
            scale = scaling(name, len(down))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise SliderError(f"{described}: lora_alpha or alpha_pattern is malformed: {error}") from error
        up, down = widened(up), widened(down)
        updates[_OURS + name] = LowRank(up * scale, down, (len(up), down.shape[1]))
    known = {f"{_THEIRS}{name.removeprefix(_OURS)}.lora_{part}.weight" for name in updates for part in "AB"}
    if foreign := sorted(set(state) - known):
        raise SliderError(f"{file} holds {foreign[0]!r}, which is not part of a LoRA of linear layers")
    if not updates:
        raise SliderError(f"{file} holds no pairs of lora_A and lora_B")
    return Slider(metadata.get("sliders.name", folder.resolve().name), Translation(updates), metadata)


def base_of(folder: Path) -> tuple[str, bool]:
    """The base model that a slider's configuration names, and whether its layers keep their weights transposed."""
    try:
        config = read_json(folder / CONFIG, "configuration")
        return str(config["base_model_name_or_path"]), bool(config.get("fan_in_fan_out", False))
    except (KeyError, TypeError, AttributeError) as error:
        raise SliderError(f"{folder / CONFIG} does not name a base model: {error}") from error
