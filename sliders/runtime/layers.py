"""A model's layers as edits see them: which there are, how they are found, and what an edit adds to each."""

import difflib
import re
from collections.abc import Iterator, Sequence

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Factored, Translation
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError


def editable_modules(model: nn.Module) -> list[str]:
    """Names of all layers that a low-rank update can be put on: linear and ordinary convolution layers."""
    return [name for name, module in model.named_modules() if _is_editable(module)]


def _is_editable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | Conv1D) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def select_modules(model: nn.Module, patterns: Sequence[str], candidates: Sequence[str] | None = None) -> list[str]:
    """Names of the layers that any of the regular expressions finds, in the model's order.

    Raises:
        SliderError: a pattern is malformed or matches nothing; the message names the nearest layers.
    """
    names = list(candidates) if candidates is not None else editable_modules(model)
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise SliderError(f"target {pattern!r} is not a regular expression: {error}") from error
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise SliderError(f"target {pattern!r} matches no layer of the model; the nearest are {', '.join(near)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def weight_shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a layer's weight as edits have it: ``(outputs, inputs)``, or ``(outputs, inputs, high, wide)``."""
    return tuple(layer_weights(model, name)[0].shape)


def layer_weights(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """A layer's weight as edits have it, ``[outputs, inputs]`` or ``[outputs, inputs, high, wide]``, and its bias
    ``[outputs]``, if it has one."""
    layer = find_layer(model, name, "the edit")
    bias = getattr(layer, "bias", None)
    return as_edited(layer, layer.get_parameter("weight").data), None if bias is None else bias.data


def find_layer(model: nn.Module, name: str, owner: str) -> nn.Module:
    """The layer of that name, the model's own also where an adapter in training wraps it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise SliderError(f"{owner} changes {name!r}, which this model does not have") from None
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def editable_layer(model: nn.Module, name: str, owner: str, shape: tuple[int, ...] | None = None) -> nn.Module:
    """The layer of that name, if an update (of that shape) can be put on it."""
    layer = find_layer(model, name, owner)
    weight = getattr(layer, "weight", None)
    has = None if weight is None else tuple(as_edited(layer, weight).shape)
    if shape is not None and has != tuple(shape):
        raise SliderError(f"{owner} changes {name!r} by {tuple(shape)}, but the layer there has {has}")
    if not _is_editable(layer):
        raise SliderError(
            f"{owner} changes {name!r}, a {type(layer).__name__}; "
            "only linear layers and 2d convolutions without groups can have a slider"
        )
    return layer


def displacements(model: nn.Module, owner: str, edit: Factored) -> Iterator[tuple[str, LowRank]]:
    """What an edit adds to each of its layers as they are now; with the bias as one more column where it changes.

    Yields the layer's name and the update: ``B`` ``[outputs, rank]`` and ``A`` ``[rank, inputs]``, of a convolution
    ``[rank, inputs * high * wide]``, with one more column where the bias changes.

    Args:
        model: any module.
        owner: what to call the edit in messages.
        edit: in the monoid.

    Raises:
        SliderError: it does not fit the model's layers.
    """
    for module, element in edit.elements().items():
        layer = editable_layer(model, module, owner, element.shape)
        if isinstance(edit, Translation):
            yield module, edit[module]
            continue
        weight, bias = as_edited(layer, layer.get_parameter("weight").data), getattr(layer, "bias", None)
        yield module, element.displacement(weight, None if bias is None else bias.data)


def as_edited(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight with the outputs first, as edits have it: GPT-2's `Conv1D` is a linear layer transposed."""
    return weight.T if isinstance(layer, Conv1D) else weight
