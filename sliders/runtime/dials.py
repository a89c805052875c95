"""Dials of attached sliders, and the run of one layer with the updates of all of them.

Nothing here changes a module: `attach` puts a `StackedUpdate` where a layer's `forward` was, and takes it away.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Piece
from sliders.batch import declared, of_rows
from sliders.errors import SliderError
from sliders.runtime.layers import as_edited

DialContext = Callable[[Tensor], AbstractContextManager[None]]
"""Sets the dial of the batches that follow, ``[1]``, or of each of their rows, ``[n]``; `Adapter.dial` is one."""


class Dials:
    """The dials of attached sliders: numbers in one matrix that every layer reads, a row for each piece of a dial.

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


class StackedUpdate:
    """Runs in place of one layer's `forward`, and adds the updates of all sliders on it, whatever their number.

    Dials that all rows share are multiplied into a weight of its own, once after they have turned, so that the layer
    costs what it costs without sliders.  Where rows have their own dials, where a low precision would round small
    updates away, where the weight is being trained, and where something else already runs in place of the layer, the
    stacked factors run beside it: two products.
    """

    def __init__(
        self, dials: Dials, layer: nn.Module, parts: Sequence[tuple[int, LowRank]], fold: bool, name: str
    ) -> None:
        self.dials, self.layer, self.plain, self.name = dials, layer, layer.forward, name
        plain = type(layer).forward in (nn.Linear.forward, nn.Conv2d.forward, Conv1D.forward) and not _is_taken(layer)
        self._may_fold = fold and plain
        self._updates = [update for _, update in parts]
        self.owners = [k for k, update in parts for _ in range(update.rank)]
        self._follow(layer.get_parameter("weight"))

    def _follow(self, weight: Tensor) -> None:
        """Bring the factors to where the layer's weight is now, in a precision that does not round them away."""
        self.fold = self._may_fold and weight.dtype in (torch.float32, torch.float64)
        self._at = weight.device, weight.dtype
        # half precision could round small factors away, or overflow between the two
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        place: dict[str, Any] = {"device": weight.device, "dtype": dtype}
        width = torch.Size(as_edited(self.layer, weight).shape[1:]).numel()
        down = torch.cat([update.A[:, :width].to(**place) for update in self._updates])
        self.constant = _bias_column(self._updates, width, down)
        self.up = torch.cat([update.B.to(**place) for update in self._updates], 1)
        self.owner = torch.tensor(self.owners, device=weight.device)
        self.down = down if weight.dim() == 2 else down.view(-1, *weight.shape[1:])
        if weight.dim() == 4 and _is_channels_last(weight):
            self.down = self.down.contiguous(memory_format=torch.channels_last)  # so that folding copies nothing
        self._folded: tuple[Tensor, Tensor, int, Tensor | None] | None = None  # the weight and what it was made of
        self._memory: Tensor | None = None  # for the next one, while no gradient can need the present one

    @torch.compiler.disable  # a compiled graph would be made anew for every layer and every dial
    def __call__(self, input: Tensor) -> Tensor:
        if not self.dials.moved:
            return self.plain(input)
        weight = self.layer.get_parameter("weight")
        if (weight.device, weight.dtype) != self._at:
            self._follow(weight)
        if self.fold and self.dials.values.shape[1] == 1 and not (weight.requires_grad and torch.is_grad_enabled()):
            return self._run_folded(input, weight)
        return self._run_beside(input)

    def _run_beside(self, input: Tensor) -> Tensor:
        output, scale = self.plain(input), self.dials.on(self.up.device)[self.owner]
        scale = scale.to(self.up).T  # [1 or n, ranks]
        input = input.to(self.up.dtype)
        if isinstance(self.layer, nn.Conv2d):  # with the layer's own padding mode and dilation
            hidden = self.layer._conv_forward(input, self.down, self.constant)
            update = F.conv2d(hidden * self._spread(scale, hidden, -3), self.up[:, :, None, None])
        else:
            hidden = F.linear(input, self.down, self.constant)
            update = F.linear(hidden * self._spread(scale, hidden, -1), self.up)
        return (output + update).to(output.dtype)

    def _spread(self, scale: Tensor, hidden: Tensor, channel: int) -> Tensor:
        """Shape ``[1 or n, ranks]`` to multiply ``hidden``, whose ranks lie in dimension ``channel``."""
        scale = of_rows(scale, hidden.shape, declared(), self.name, 1 - channel)
        shape = [len(scale)] + [1] * (hidden.dim() - 1)
        shape[channel] = scale.shape[1]
        return scale.view(shape)

    def _run_folded(self, input: Tensor, weight: Tensor) -> Tensor:
        scale = self.dials.on(weight.device)[self.owner, 0].to(weight)
        folded = self._fold(weight, scale)
        if folded is None:
            return self.plain(input)
        if torch.is_grad_enabled():
            self._memory = None
        bias: Tensor | None = getattr(self.layer, "bias", None)
        if self.constant is not None:
            shift = self.up @ (scale * self.constant)
            bias = shift if bias is None else bias + shift
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(input, folded, bias)
        return F.linear(input, folded, bias)

    def _fold(self, weight: Tensor, scale: Tensor) -> Tensor | None:
        """The weight, outputs first, with the sliders at their dials in it; None where all of its own stand at 0."""
        if self._folded is not None:
            values, source, version, folded = self._folded
            if values is self.dials.values and source.data_ptr() == weight.data_ptr() and version == weight._version:
                return folded
        with torch.inference_mode(False), torch.no_grad():
            folded, used = None, [k for k, owner in enumerate(self.owners) if owner in self.dials.moved]
            if used:
                up, down, own = self.up * scale, self.down, as_edited(self.layer, weight)
                if len(used) < len(self.owners):  # 0 times an infinite factor would not be 0
                    up, down = up[:, used], down[used]
                last = own.dim() == 4 and _is_channels_last(own)
                if last:  # keep the layer's memory format
                    down, own = down.permute(0, 2, 3, 1), own.permute(0, 2, 3, 1)
                self._memory = torch.addmm(own.flatten(1), up, down.flatten(1), out=self._memory)
                folded = self._memory.view(own.shape)
                folded = folded.permute(0, 3, 1, 2) if last else folded
        # the alias of the weight keeps its memory from being given to another one that would look the same
        self._folded = (self.dials.values, weight.detach(), weight._version, folded)
        return folded


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _is_taken(layer: nn.Module) -> bool:
    """Whether something else already runs in place of the layer's own `forward`."""
    return "forward" in vars(layer)


def _bias_column(updates: Sequence[LowRank], width: int, like: Tensor) -> Tensor | None:
    """What the updates read beside the ``width`` inputs, the layer's constant 1: ``[ranks]``, None if none does."""
    columns = [update.A[:, width:] for update in updates]
    if not any(column.shape[1] for column in columns):
        return None
    return torch.cat([F.pad(column, (0, 1 - column.shape[1]))[:, 0].to(like) for column in columns])
