"""A GGUF file that llama.cpp loads beside the model: ``--lora-scaled slider.gguf 1.5``, where the number is the dial.

Its tensors have the names of `gguf`'s own table.  llama.cpp turns pairs of neighbouring entries where transformers
turns halves, so that for its architecture ``llama`` the outputs of queries and keys are in another order.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.errors import SliderError
from sliders.files import replacing

_ARCHITECTURES: Mapping[str, tuple[str, bool]] = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "gemma": ("gemma", False),
}
"""For transformers' model types llama.cpp's architecture, and whether it reorders queries and keys."""


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows ``[heads * width, ...]`` with each head's two halves in turn, as llama.cpp has queries and keys."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def save(slider: Slider, file: Path, config: Mapping[str, Any]) -> None:
    """Write a slider of a language model; the file appears whole or not at all.

    Args:
        slider: its modules are called ``lm.<module>``.
        file: to write.
        config: the base model's configuration, as transformers has it: ``model_type``, ``num_hidden_layers``,
            ``num_attention_heads``, ``num_key_value_heads``.

    Raises:
        SliderError: llama.cpp has no such architecture or layer, or this file does not know how it orders them.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, Keys, get_tensor_name_map

    kind = str(config["model_type"])
    if kind not in _ARCHITECTURES:
        raise SliderError(f"no GGUF for a model of type {kind!r}; there are {', '.join(_ARCHITECTURES)}")
    architecture, reorders = _ARCHITECTURES[kind]
    number = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    table = get_tensor_name_map(number, int(config["num_hidden_layers"]))
    heads = {"q": int(config["num_attention_heads"]), "k": int(config["num_key_value_heads"])}
    with replacing(file) as new:
        writer = GGUFWriter(new, architecture)
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, 0.0)  # taken as it is, without alpha / rank
        writer.add_name(slider.name)
        for key, value in slider.metadata.items():
            writer.add_string(key, value)
        for module, update in slider.update.items():
            name = table.get_name(f"{module.removeprefix('lm.')}.weight", try_suffixes=(".weight",))
            if name is None or len(update.shape) != 2:
                raise SliderError(
                    f"slider {slider.name!r} changes {module!r}, which llama.cpp's {architecture} has not"
                )
            which = re.search(r"\.attn_([qk])\.", name)
            up = interleaved(update.B, heads[which[1]]) if reorders and which else update.B
            writer.add_tensor(f"{name}.lora_a", update.A.float().contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", up.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
