"""The run of one layer with the updates of all sliders on it.

Nothing here changes a module: `attach` puts a `DialedForward` where a layer's `forward` was, and takes it away.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.lowrank import LowRank
from sliders.batch import declared, of_rows
from sliders.runtime.dials import Dials
from sliders.runtime.layers import as_edited


class DialedForward:
    """Runs in place of one layer's `forward`, and adds the updates of all sliders on it, whatever their number.

    Dials that all rows share are multiplied into a weight of its own, once after they have turned, so that the layer
    costs what it costs without sliders.  Where rows have their own dials, where a low precision would round small
    updates away, where the weight is being trained, and where something else already runs in place of the layer, the
    stacked factors run beside it: two products.

    The factors of all updates are one matrix each, ``up`` ``[outputs, ranks]`` and ``down`` ``[ranks, inputs]`` (of a
    convolution ``[ranks, inputs, high, wide]``), with ``owner`` int64 ``[ranks]``, the piece of a dial that each is of.
    They follow the layer to another device or precision when it is next run, made anew of what was given
    (`docs/adr/0019-factors-follow-when-they-run.md`).

    Args:
        dials: of all attached sliders.
        layer: that it runs in place of.
        parts: updates of the layer, each with the number of its piece among those of the dials.
        fold: whether shared dials may be multiplied into a weight of its own.
        name: of the layer, for messages.
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
