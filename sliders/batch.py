"""Batches of named tensors: what a backbone's states and conditionings are to everyone else.

A `TensorBatch` maps names to tensors that share their first dimension, the rows.  Which names there are is the
backbone's own business; the rest of the package only picks, joins and repeats rows.

How many rows a model is run on is said by whoever runs it, with `rows_of`: a layer deep inside cannot know, since some
models lay the tokens of all rows behind one another.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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


def digest(*batches: TensorBatch) -> str:
    """A hash of names, precisions, shapes and content."""
    made = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            made.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def widened(values: Tensor) -> Tensor:
    """The same in float32 at least: what is compared, summed up or fitted, whatever the model's precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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


@dataclass(frozen=True)
class Layout:
    """What a model is run on; see `rows_of`."""

    rows: int
    tokens: int | None = None
    index: tuple[int, ...] | None = None

    def each(self, values: Tensor) -> Tensor:
        """One of ``values`` ``[n, ...]`` for each row that is run."""
        every = tile(values, self.rows)
        return every if self.index is None else every[list(self.index)]


class _Running(threading.local):
    """What the model that runs in this thread is run on; an attribute, so that compiled graphs are guarded by it."""

    layout: Layout | None = None


_running = _Running()


@contextmanager
def rows_of(rows: int, tokens: int | None = None, index: Sequence[int] | None = None) -> Iterator[None]:
    """Say what a model is run on, for as long as it runs: sliders whose dials differ by row must know.

    The rows lie in the first dimension of what the model's layers see, or, with ``tokens``, also in one with their
    tokens, ``[rows * tokens, ...]``, a row's tokens behind one another.

    Args:
        rows: of the batch; a multiple of the number of dials if it is the same rows several times over, as in
            classifier-free guidance.
        tokens: of each row, where the model is one of sequences.
        index: which of the rows are run, where they are run in parts.
    """
    before, _running.layout = _running.layout, Layout(rows, tokens, None if index is None else tuple(index))
    try:
        yield
    finally:
        _running.layout = before


def declared() -> Layout | None:
    """What `rows_of` said, in this thread."""
    return _running.layout


def of_rows(values: Tensor, shape: torch.Size, layout: Layout | None, layer: str, least: int = 2) -> Tensor:
    """One value for each entry of a layer's first dimension: ``[1, ...]``, or ``[shape[0], ...]``.

    Args:
        values: ``[n, ...]``, one for each row; ``[1, ...]`` for all rows.
        shape: of what the layer sees or gives.
        layout: what the model is run on.
        layer: its name, for messages.
        least: dimensions that the shape has at least if one of them holds rows.

    Raises:
        SliderError: it is open which row an entry belongs to.
    """
    if len(values) == 1:
        return values
    if layout is None:
        raise SliderError(
            f"dials differ by row, but nobody said how many rows {layer!r} is run on; run the model inside "
            "'with sliders.rows_of(rows):', with tokens=... for a language model"
        )
    every = layout.each(values)
    if len(shape) >= least:
        if len(shape) == 2 and layout.tokens is not None:  # a sequence without its rows: of all of them, or of a few
            every = every.repeat_interleave(layout.tokens, 0)
        if shape[0] == len(every):
            return every
    known = f"{len(layout.each(values))} rows" + ("" if layout.tokens is None else f" of {layout.tokens} tokens")
    raise SliderError(
        f"dials differ by row, but {layer!r} sees {tuple(shape)} of {known}, so that it is open whose they are; give "
        "all rows one dial, or leave this layer out of the slider"
    )
