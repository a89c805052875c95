"""The dials of attached sliders: where each stands, for all rows of a batch or for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from sliders.algebra.slider import Piece
from sliders.errors import SliderError

DialContext = Callable[[Tensor], AbstractContextManager[None]]
"""Sets the dial of the batches that follow, ``[1]``, or of each of their rows, ``[n]``; `Adapter.dial` is one."""


class Dials:
    """The dials of attached sliders: a matrix ``[pieces, 1 or n]`` that every layer reads, a row a piece of a dial.

    Setting them writes that matrix, and which of its rows are not 0, and nothing else.  A value may be a number, or a
    tensor ``[n]`` with one number for each row of the batches that follow (a strip over the dial is then one batch);
    then whoever runs the model says how many rows there are, with `sliders.batch.rows_of`, as backbones do.

    They stand on the CPU, and are copied to wherever a layer asks for them.
    """

    def __init__(self, pieces: Mapping[str, Sequence[Piece]]) -> None:
        self.names = tuple(pieces)
        self._pieces = pieces
        self._turn({name: torch.zeros(1, device="cpu") for name in self.names})

    def _turn(self, positions: Mapping[str, Tensor]) -> None:
        self._positions = dict(positions)
        shares = [positions[name].clamp(p.low, p.high) for name, pieces in self._pieces.items() for p in pieces]
        self.values = torch.stack(torch.broadcast_tensors(*shares)) if shares else torch.zeros(0, 1)
        self.moved = frozenset(self.values.any(1).nonzero()[:, 0].tolist())
        self._copies = {self.values.device: self.values}

    def on(self, device: torch.device) -> Tensor:
        """The matrix ``[pieces, 1 or n]`` on a layer's device."""
        copies = self._copies
        if device not in copies:
            copies[device] = self.values.to(device)
        return copies[device]

    def set(self, values: Mapping[str, float | Tensor]) -> None:
        """Turn the named dials; the others stay.

        Raises:
            SliderError: no such dial, or dials with unlike numbers of rows; then none is turned.
        """
        positions = dict(self._positions)
        for name, value in values.items():
            positions[name] = torch.atleast_1d(torch.as_tensor(value)).to(self[name], copy=True)
        widths = {name: tuple(position.shape) for name, position in positions.items() if position.shape != (1,)}
        if len(set(widths.values())) > 1 or any(len(width) > 1 for width in widths.values()):
            shapes = ", ".join(f"{name!r} has {width}" for name, width in widths.items())
            raise SliderError(f"dials have one number, or all as many as a batch has rows; {shapes}")
        self._turn(positions)

    @contextmanager
    def turned(self, values: Mapping[str, float | Tensor]) -> Iterator[None]:
        """Turn dials for a while; afterwards all are as they were."""
        before = self._positions
        try:
            self.set(values)
            yield
        finally:
            self._turn(before)

    def __getitem__(self, name: str) -> Tensor:
        """Where a dial stands: ``[1]``, or ``[n]`` if rows have their own."""
        if name not in self._positions:
            raise SliderError(f"no slider {name!r} is attached; attached are {', '.join(self.names)}")
        return self._positions[name]
