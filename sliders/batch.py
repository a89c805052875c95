"""Batches of named tensors: what a backbone's states and conditionings are to everyone else.

A `TensorBatch` maps names to tensors that share their first dimension, the rows.  Which names there are is the
backbone's own business; the rest of the package only picks, joins and repeats rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sliders.errors import SliderError

TensorBatch = dict[str, Tensor]


def rows(batch: TensorBatch) -> int:
    """How many rows a batch has."""
    return len(next(iter(batch.values())))


def take(batch: TensorBatch, index: Tensor) -> TensorBatch:
    """The rows at ``index`` (int64 ``[n]``), in that order; a row may be taken more than once."""
    return {name: value[index.to(value.device)] for name, value in batch.items()}


def join(batches: Sequence[TensorBatch]) -> TensorBatch:
    """One batch with the rows of all, in order."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def repeat(batch: TensorBatch, times: int) -> TensorBatch:
    """The whole batch ``times`` times over: rows 0..n-1, 0..n-1, ..."""
    return {name: value.repeat(times, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def move(batch: TensorBatch, device: torch.device | str) -> TensorBatch:
    """The same batch on another device."""
    return {name: value.to(device) for name, value in batch.items()}


def tile(values: Tensor, count: int) -> Tensor:
    """``values`` ``[n, ...]`` for ``count`` rows, as often over as they go into it.

    Raises:
        SliderError: ``count`` is no multiple of n, so that it is open which row a value belongs to.
    """
    if count % len(values):
        raise SliderError(f"{len(values)} values, one a row, do not fit a batch of {count} rows; give as many as rows")
    return values.repeat(count // len(values), *[1] * (values.dim() - 1))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape ``values`` ``[n]`` so that it multiplies the rows of ``like`` ``[k * n, ...]``.

    Where ``like`` has k times as many rows (classifier-free guidance runs every row twice), the values are tiled.
    """
    return tile(values, len(like)).to(like).view(-1, *[1] * (like.dim() - 1))
