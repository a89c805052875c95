"""Edited weights in place of a model's own, for a while, and what it had before."""

import collections
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sliders.algebra.edit import Edit
from sliders.errors import SliderError
from sliders.runtime.layers import as_edited, find_layer

_BEFORE = "_before_edit"


def is_edited(layer: nn.Module) -> bool:
    """Whether an edit is in the weights of a layer now."""
    return _BEFORE in vars(layer)


@contextmanager
def baked(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Run ``model`` with the edited weights themselves in place, as a merged checkpoint has them.

    The original tensors are put back at the end, not recomputed, since merging is not reversible in low precision.  A
    linear layer without a bias has one for as long as the edit makes one, and one that shares its weight with another
    module (an output layer with the embeddings) has its own for as long: the other module is left alone, as it is by
    a dial.
    """
    owners = collections.Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )
    with ExitStack() as stack:
        for name in edit.modules:
            layer = find_layer(model, name, "the edit")
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, nn.Parameter):
                raise SliderError(f"the edit changes {name!r}, which has no weight of its own")
            original, bias = weight.data, getattr(layer, "bias", None)
            edited, shifted = edit.apply_layer(name, as_edited(layer, original), None if bias is None else bias.data)
            stack.enter_context(_remembering(layer, {"weight": original, "bias": None if bias is None else bias.data}))
            edited = as_edited(layer, edited).contiguous()
            if owners[id(weight)] > 1:
                stack.callback(setattr, layer, "weight", weight)
                layer.weight = nn.Parameter(edited, requires_grad=False)
            else:
                stack.callback(setattr, weight, "data", original)
                weight.data = edited
            if shifted is not None:
                stack.callback(setattr, layer, "bias", bias)
                layer.bias = nn.Parameter(shifted, requires_grad=False)
        yield


@contextmanager
def _remembering(layer: nn.Module, own: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Let `base_tensors` find what a layer had before it was edited, the first time if several times."""
    if _BEFORE in vars(layer):
        yield
        return
    vars(layer)[_BEFORE] = own
    try:
        yield
    finally:
        del vars(layer)[_BEFORE]


def base_tensors(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's `state_dict` as they are without any slider, adapter or edit that is on it now."""
    layer = model.get_base_layer() if isinstance(model, LoraLayer) else model
    before = vars(layer).get(_BEFORE, {})
    buffers = {k: b for k, b in layer._buffers.items() if k not in layer._non_persistent_buffers_set}
    for name, tensor in {**layer._parameters, **buffers}.items():
        kept = before.get(name, tensor)
        if kept is not None:
            yield prefix + name, kept
    for name, child in layer.named_children():
        yield from base_tensors(child, f"{prefix}{name}.")
