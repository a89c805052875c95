"""Which layers of a denoiser a slider can be on, whatever the family calls them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from sliders.backbones.targets import TargetGroup

_BLOCK = r"^(transformer(_2)?|unet)\.(\w*(blocks|layers)\.\d+|mid_block)\.(.*\.)?"
_TEXT = (r"\.add_[qkv]_proj$", r"\.to_add_out$", r"\.to_\w+_t$")
_NOT = (r"\.experts\.", r"(norm|mod|modulation|adaLN)\w*\.", r"time_emb", r"token_refiner\.")
_FORWARD = r"(ff|ffn|feed_forward|img_mlp|txt_mlp|proj_mlp|proj_out|ff_\w+)(\.|$)"
_ATTENTION = r"(attn|attention)\d?\."

PATTERNS: Mapping[str, TargetGroup] = {
    "attn": TargetGroup((_BLOCK + _ATTENTION,), _NOT),
    "attn-picture": TargetGroup((_BLOCK + _ATTENTION,), (*_NOT, *_TEXT)),
    "xattn": TargetGroup((_BLOCK + r"attn2\.",), _NOT),
    "xattn-strict": TargetGroup((_BLOCK + r"attn2\.to_[kv]$",), _NOT),
    "mlp": TargetGroup((_BLOCK + _FORWARD,), _NOT),
    "full": TargetGroup((_BLOCK,), _NOT),
}
"""Sets of layers that all families have, or some; `groups` leaves out what a model has not."""


def groups(names: Sequence[str]) -> dict[str, TargetGroup]:
    """The sets that a model has, without those that are empty or the same as one before.

    Args:
        names: of the layers that a slider can be on.
    """
    joint = any(re.search(pattern, name) for pattern in _TEXT for name in names)  # no attention looks at the text alone
    kept: dict[tuple[str, ...], str] = {}
    for key, group in PATTERNS.items():
        if joint and key.startswith("xattn"):
            continue
        chosen = tuple(name for name in names if group.has(name))
        if chosen:
            kept.setdefault(chosen, key)
    return {key: PATTERNS[key] for key in kept.values()}


@dataclass
class LayerUse:
    """What a prediction of a few rows showed of the layers.

    Args:
        ran: names of the layers that ran.
        rowless: of those whose first dimension was not the rows, with what they saw.
    """

    ran: set[str] = field(default_factory=set)
    rowless: dict[str, str] = field(default_factory=dict)


@contextmanager
def watched(model: nn.Module, names: Sequence[str], rows: int) -> Iterator[LayerUse]:
    """Look at what layers see while a model runs.

    Args:
        model: that has the layers.
        names: of the layers.
        rows: that the model is run on.
    """
    use = LayerUse()

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        use.ran.add(name)
        shape = inputs[0].shape if inputs and isinstance(inputs[0], Tensor) else ()
        if len(shape) < 2 or shape[0] != rows:
            use.rowless[name] = f"of {rows} rows it sees {tuple(shape)}, so that it is open whose they are"

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(look, name)) for name in names]
    try:
        yield use
    finally:
        for hook in hooks:
            hook.remove()
