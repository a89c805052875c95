"""A slider in training: PEFT's LoRA layers with a dial for every row of a batch.

The model's own weights are left alone, and it is what it was, object by object, when the slider is taken out again.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.batch import Layout, declared, of_rows
from sliders.errors import SliderError
from sliders.runtime.layers import editable_layer

_PEFT_NAME = "slider"


def _restore_geometry(layer: LoraConv2d) -> None:
    """Give PEFT's ``A`` of a convolution the dilation and padding mode that it forgets."""
    base, forgetful = layer.get_base_layer(), layer.lora_A[_PEFT_NAME]
    assert isinstance(base, nn.Conv2d)
    assert isinstance(forgetful, nn.Conv2d)
    down = nn.Conv2d(
        forgetful.in_channels,
        forgetful.out_channels,
        base.kernel_size,  # pyright: ignore[reportArgumentType]
        base.stride,  # pyright: ignore[reportArgumentType]
        base.padding,  # pyright: ignore[reportArgumentType]
        base.dilation,  # pyright: ignore[reportArgumentType]
        bias=False,
        padding_mode=base.padding_mode,  # pyright: ignore[reportArgumentType]
        device="meta",  # nothing is drawn at random; the weight is PEFT's own
    )
    down.weight = forgetful.weight
    layer.lora_A[_PEFT_NAME] = down


class _Master:
    """A factor in float32, whatever precision its model is given: bfloat16 masters would lose small updates."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(value: Tensor) -> Tensor:
            new = fn(value)
            return new if new.dtype == value.dtype else value.to(new.device)

        return super()._apply(moved, recurse)  # pyright: ignore[reportAttributeAccessIssue]


class _MasterLinear(_Master, nn.Linear):
    pass


class _MasterConv2d(_Master, nn.Conv2d):
    pass


class Adapter:
    """A slider in training: PEFT's LoRA layers with a dial for every row of a batch.

    Freshly made it changes nothing, since ``B`` starts at 0.  Use it as a context, or call `remove`.  The factors
    follow the model to another device, and stay in float32.

    Args:
        model: gets LoRA layers in place; its own parameters should be frozen already.
        modules: names of the layers, as `select_modules` gives them.
        rank: of each layer's update.
        alpha: the update is ``alpha / rank * B @ A``.

    Raises:
        SliderError: there is no layer to adapt, or one of them is absent or of another kind.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], rank: int, alpha: float) -> None:
        self.model, self.modules, self.rank, self.alpha = model, tuple(modules), rank, alpha
        self._dial: Tensor | None = None
        self._again = False
        self._ran: dict[str, Layout | None] = {}  # what each layer was last run on
        if not self.modules:
            raise SliderError("the slider changes no layer; name at least one")
        for name in self.modules:
            editable_layer(model, name, "the slider")
        frozen = {name: p.requires_grad for name, p in model.named_parameters()}
        exactly = "|".join(map(re.escape, self.modules))  # PEFT takes a list for the ends of names
        transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in self.modules)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly, fan_in_fan_out=transposed)  # pyright: ignore[reportArgumentType]
        inject_adapter_in_model(config, model, adapter_name=_PEFT_NAME)
        self._frozen = frozen
        self._layers: dict[str, LoraLayer] = {}
        for name in self.modules:
            layer = model.get_submodule(name)
            assert isinstance(layer, LoraLayer)
            self._layers[name] = layer
            if isinstance(layer, LoraConv2d):
                _restore_geometry(layer)
            factors: list[nn.Module] = [layer.lora_A[_PEFT_NAME], layer.lora_B[_PEFT_NAME]]  # pyright: ignore[reportAssignmentType]
            for factor in factors:
                factor.float()
                kind: Any = _MasterConv2d if isinstance(factor, nn.Conv2d) else _MasterLinear
                factor.__class__ = kind
            factors[1].register_forward_hook(partial(self._scale, name))
        self._enable(False)

    def _scale(self, name: str, factor: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._dial is None:
            return output
        layout = self._ran.get(name) if self._again else declared()
        least = 4 if isinstance(factor, nn.Conv2d) else 2
        scale = of_rows(self._dial.to(output), output.shape, layout, name, least)
        self._ran[name] = layout
        return output * scale.view(-1, *[1] * (output.dim() - 1))

    def _enable(self, on: bool) -> None:
        for layer in self._layers.values():
            layer._disable_adapters = not on

    def _named_factors(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self._layers.items():
            for factor, of_layer in (("A", layer.lora_A), ("B", layer.lora_B)):
                yield f"{name}.{factor}", of_layer[_PEFT_NAME].get_parameter("weight")

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: every layer's ``A`` and ``B``."""
        for _, factor in self._named_factors():
            yield factor

    def touches(self, prefixes: Iterable[str]) -> bool:
        """Whether any adapted layer lies under one of these modules."""
        return any(name.split(".")[0] in set(prefixes) for name in self.modules)

    def is_identity(self) -> bool:
        """Whether every ``B`` is still 0, so that the slider changes nothing at any dial."""
        return not any(factor.any() for name, factor in self._named_factors() if name.endswith(".B"))

    @contextmanager
    def dial(self, positions: Tensor, again: bool = False) -> Iterator[None]:
        """Run the model with the slider on, row ``i`` of each batch at ``positions[i]``.

        Args:
            positions: ``[n]``; with more than one, whoever runs the model says what it is run on (`rows_of`).
            again: layers are run on what they were last run on, as when a backward pass computes them anew: out of
                whoever ran the model, and on an accelerator in another thread.
        """
        before, self._dial = (self._dial, self._again), positions.to(next(self.parameters()).device)
        self._again = again
        self._enable(True)
        try:
            yield
        finally:
            self._dial, self._again = before
            self._enable(self._dial is not None)

    @torch.no_grad()
    def update(self) -> Translation:
        """The update at dial 1 as it is now, alpha folded in, in float32 on the CPU.

        Of each layer ``B`` is ``[outputs, rank]`` and ``A`` ``[rank, inputs]``, of a convolution
        ``[rank, inputs * high * wide]``.
        """
        updates: dict[str, LowRank] = {}
        for name, layer in self._layers.items():
            down = layer.lora_A[_PEFT_NAME].get_parameter("weight").detach().float().cpu()
            up = layer.lora_B[_PEFT_NAME].get_parameter("weight").detach().float().cpu().flatten(1)
            shape = (up.shape[0], *down.shape[1:])
            updates[name] = LowRank(up * (self.alpha / self.rank), down.flatten(1).clone(), shape)
        return Translation(updates)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """A copy of the trained factors, ``<module>.A`` and ``<module>.B`` in PEFT's shapes, for `load_state`."""
        return {name: factor.detach().clone() for name, factor in self._named_factors()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for name, factor in self._named_factors():
            factor.copy_(state[name])

    def remove(self) -> None:
        """Take the LoRA layers out again; the model is what it was, object by object."""
        for name, layer in self._layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.get_base_layer())
        self._layers.clear()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._frozen[name])
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
