"""Edits beside sliders: what an edit adds to this page's model, wherever that alone is asked."""

import math

from torch import nn

from sliders.algebra.edit import Affine, Factored, Translation
from sliders.algebra.element import Element
from sliders.algebra.laws import commutes, order_gap
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Interpolated, NamedDial
from sliders.runtime.layers import displacements, layer_weights


def added(model: nn.Module, dial: NamedDial, position: float = 1.0) -> Affine:
    """What a dial adds to each of the model's layers at a position, on the CPU; biases too, whatever weights become.

    Raises:
        SliderError: an edit does not fit the model.
    """
    if not isinstance(dial, Interpolated):
        return Affine(dial.at(position).elements())
    parts = displacements(model, dial.name, dial.edit)
    return Affine(
        {module: Element.of(dial.edit[module].shape, shift=part.to("cpu") * position) for module, part in parts}
    )


def translation(shifts: Affine) -> Translation:
    """What is added to the weights alone, as a slider has it."""
    return Translation(
        {
            module: LowRank(shift.shift.B, shift.shift.A[:, : math.prod(shift.shape[1:])], shift.shape)
            for module, shift in shifts.items()
        }
    )


def moved_biases(shifts: Affine) -> list[str]:
    """The layers whose bias it changes."""
    return [m for m, part in shifts.items() if part.has_bias and (part.shift.B @ part.shift.A[:, -1]).any()]


def gap_of_orders(model: nn.Module, f: Factored, g: Factored) -> float:
    """By how much it matters which of two edits is done first, relative to the smaller, at the model's own weights."""
    if isinstance(f, Translation) and isinstance(g, Translation):
        return commutes(f, g).value
    layers = {module: layer_weights(model, module) for module in dict.fromkeys([*f.modules, *g.modules])}
    weights = {module: weight.float() for module, (weight, _) in layers.items()}
    return order_gap(f, g, weights, {module: bias.float() for module, (_, bias) in layers.items() if bias is not None})
