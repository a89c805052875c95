"""The names that diffusers' LoRA files have had, read by diffusers' own converters.

``<layer>.lora.down.weight`` is what its example scripts write today, ``<layer>.processor.to_q_lora.down.weight`` what
they wrote first, for a UNet alone without ``unet.`` in front; text encoders have ``lora_linear_layer``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sliders.errors import SliderError

_A_UNET_ALONE = ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding")
_KOHYA = re.compile(r"lora_(unet|te\d?|transformer|prior|llm_adapter)_")
_OF_CLONEOFSIMO = re.compile(r"(unet|text_encoder):\d+:(up|down)")


def check_layout(keys: Iterable[str], file: Path) -> None:
    """Say which other program's layout a file has.

    Raises:
        SliderError: it is kohya's or cloneofsimo's.
    """
    for key in keys:
        if _KOHYA.match(key):
            raise SliderError(
                f"{file} is a LoRA in kohya's layout ({key!r}), which is not read yet; give one in diffusers' layout, "
                "with keys such as unet.<layer>.lora_A.weight"
            )
        if _OF_CLONEOFSIMO.match(key):
            raise SliderError(f"{file} is a LoRA in cloneofsimo's layout ({key!r}), which is not read here")


def to_peft(keys: Iterable[str], file: Path) -> dict[str, str]:
    """From the names that tensors of a LoRA have in a file to those with ``lora_A``, ``lora_B`` and ``alpha``.

    Raises:
        SliderError: two tensors would get one name.
    """
    keys = list(keys)
    alphas = [key for key in keys if key.endswith(".alpha")]
    factors = [key for key in keys if not key.endswith(".alpha")]
    renamed = _converted(factors)
    modules = {_module(old): new.rpartition(".lora_")[0] for old, new in renamed.items() if ".lora_" in new}
    renamed |= {key: f"{modules.get(_module(key), key.removesuffix('.alpha'))}.alpha" for key in alphas}
    if len(set(renamed.values())) < len(keys):
        lost = next(key for key in keys if list(renamed.values()).count(renamed.get(key, "")) != 1)
        raise SliderError(f"{file} has two names for one tensor of a layer, one of them {lost!r}; leave one out")
    return renamed


def of_one_component(names: Iterable[str]) -> str | None:
    """The component that all tensors of a file belong to, where their names in the file do not say so."""
    return "unet" if all(name.partition(".")[0] in _A_UNET_ALONE for name in names) else None


def _module(key: str) -> str:
    """The part of a tensor's name in the file that its alpha shares with it."""
    return re.sub(r"(\.lora|\.lora_linear_layer)?(\.(down|up)\.weight|\.alpha|\.lora_[AB]\.weight)$", "", key)


def _converted(keys: Sequence[str]) -> dict[str, str]:
    """The new names of factors, component by component; a name that gets lost is not among them."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        component = key.partition(".")[0]
        parts.setdefault("" if component in _A_UNET_ALONE else component, []).append(key)
    renamed: dict[str, str] = {}
    for component, own in parts.items():
        inner = {key.removeprefix(f"{component}."): key for key in own}
        converted = _of_text(inner) if component.startswith("text_encoder") else _of_unet(inner)
        renamed |= {old: f"{component or 'unet'}.{new}" for new, old in converted.items()}
    return renamed


def _of_unet(keys: Mapping[str, str]) -> dict[str, str]:
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    return convert_unet_state_dict_to_peft(dict(keys))


def _of_text(keys: Mapping[str, str]) -> dict[str, str]:
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft

    if all(".lora_A." in key or ".lora_B." in key for key in keys):
        return dict(keys)
    try:
        return convert_state_dict_to_peft(convert_state_dict_to_diffusers(dict(keys)))
    except ValueError:  # none of diffusers' layouts; what it is is said where it is not found to be a factor
        return dict(keys)
