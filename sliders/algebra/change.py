"""What an update does to one layer: taken from two checkpoints or from factors, and split from noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.algebra.spectra import Spectrum, entropy, intruders, left_vectors, rank_of, rounding_norm
from sliders.errors import SliderError

_GRAM = 1e-7
"""Relative to the largest, singular values from a Gram matrix are rounding below this."""


@dataclass(frozen=True, eq=False)
class Change:
    """An update of one layer.

    Args:
        module: of the layer.
        shape: of its weight, ``(out, in)`` or ``(out, channels, height, width)``.
        update: what stands out of noise, in float64: ``(out, in)`` unfolded, or ``(out, in + 1)`` where the bias
            changes as well.
        spectrum: of the whole update, noise and all.
        weight: before the update, unfolded ``[out, in]``; None where the base is not known.
        bias: before the update ``[out]``; None for a layer without one.
    """

    module: str
    shape: tuple[int, ...]
    update: LowRank
    spectrum: Spectrum
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def width(self) -> int:
        """Inputs of the layer, the bias not counted."""
        return torch.Size(self.shape[1:]).numel()

    @property
    def moves_bias(self) -> bool:
        """Whether the bias changes."""
        return self.update.A.shape[1] > self.width

    @property
    def of_weight(self) -> LowRank:
        """What is added to the weight alone, ``(out, in)``."""
        return LowRank(self.update.B, self.update.A[:, : self.width], (self.shape[0], self.width))

    @property
    def of_bias(self) -> Tensor:
        """What is added to the bias, ``[out]``."""
        if not self.moves_bias:
            return self.update.B.new_zeros(self.shape[0])
        return self.update.B @ self.update.A[:, self.width]

    @property
    def bias_alone(self) -> bool:
        """Whether the weight stays: everything is in the bias."""
        return self.moves_bias and float(self.of_weight.norm()) <= 1e-6 * float(self.update.norm())

    def element(self) -> Element:
        """The change as an edit of this layer, a translation."""
        return Element.of(self.shape, shift=self.update)


def of_factors(module: str, update: LowRank, weight: Tensor | None = None, bias: Tensor | None = None) -> Change:
    """From an update's factors: its rank is exact, unless it has all that the shape allows, as fine-tuning gives.

    Args:
        module: of the layer.
        update: ``(out, in)`` or a convolution's, without or with the bias as one more column (`Element.displacement`).
        weight: before the update, of the layer's shape, where it is known.
        bias: the same.

    Raises:
        SliderError: the update is of another shape than the weight.
    """
    shape = tuple(update.shape if weight is None else weight.shape)
    if update.A.shape[1] - torch.Size(shape[1:]).numel() not in (0, 1) or update.shape[0] != shape[0]:
        raise SliderError(f"{module!r}: the update is {tuple(update.shape)}, but the base's weight is {shape}")
    wide = update.unfolded().to(torch.float64)
    values = wide.svd()[1][: min(wide.shape)]
    values = torch.cat([values, values.new_zeros(min(wide.shape) - len(values))])
    rounding = float(values[0]) * torch.finfo(update.B.dtype).eps * max(wide.shape)
    spectrum = rank_of(values, (wide.shape[0], wide.shape[1]), rounding)
    flat = None if weight is None else weight.flatten(1)
    return Change(module, shape, wide.compress(spectrum.rank), spectrum, flat, bias)


def between(
    module: str, before: Tensor, after: Tensor, bias: Tensor | None = None, bias_after: Tensor | None = None
) -> Change:
    """From a layer's weight in two checkpoints; how exactly they are stored says what is noise.

    Args:
        module: of the layer.
        before, after: of one shape, ``(out, in)`` or a convolution's.
        bias, bias_after: where the layer has one; one that only appears afterwards was 0.

    Raises:
        SliderError: the shapes differ.
    """
    if before.shape != after.shape:
        raise SliderError(f"{module!r} is {tuple(before.shape)} in one and {tuple(after.shape)} in the other")
    old, new = before.flatten(1), after.flatten(1)
    if bias_after is not None and not (bias is not None and torch.equal(bias, bias_after)):
        old = torch.cat([old, torch.zeros_like(bias_after)[:, None] if bias is None else bias[:, None]], 1)
        new = torch.cat([new, bias_after[:, None]], 1)
    dense = new.double() - old.double()
    tall = dense.shape[0] > dense.shape[1]
    vectors, values = left_vectors(dense.T if tall else dense)
    rounding = max(rounding_norm(new), _GRAM * float(values[0]))
    spectrum = rank_of(values, (dense.shape[0], dense.shape[1]), rounding)
    top = vectors[:, : spectrum.rank]
    update = LowRank(*((dense @ top, top.T) if tall else (top, top.T @ dense)), tuple(dense.shape))
    return Change(module, tuple(before.shape), update, spectrum, before.flatten(1), bias)


@dataclass(frozen=True)
class Effect:
    """What an update does to the spectrum of one weight.

    Args:
        module: of the layer.
        rank: of the update.
        relative: its Frobenius norm over the weight's.
        entropy: spectral entropy of the update, in nats.
        before, after: the weight's.
        intruders: singular vectors among the first ten that the weight did not have before (`spectra.intruders`).
    """

    module: str
    rank: int
    relative: float
    entropy: float
    before: float
    after: float
    intruders: int


def effect(change: Change) -> Effect:
    """Of a change whose base is known."""
    assert change.weight is not None
    weight = change.weight.double()
    vectors, values = left_vectors(weight)
    moved, changed = left_vectors(weight + change.of_weight.dense())
    return Effect(
        change.module,
        change.update.rank,
        change.spectrum.norm / max(float(values.norm()), 1e-30),
        entropy(change.spectrum.values),
        entropy(values),
        entropy(changed),
        intruders(vectors, moved),
    )
