"""The only file that changes an `nn.Module`, and changes it back.

`attach` runs finished sliders on a model; `Adapter` is a slider in training.  Both leave the model's own weights
alone and act on the outputs of its layers, so that letting go restores the model bit for bit, and dial 0 is the
model itself.  `bake` returns a changed copy of weights for whoever wants the slider without its dial.
"""

import collections
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Edit, Factored, Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Dial, Piecewise
from sliders.batch import Layout, declared, of_rows
from sliders.dials import Dials, StackedUpdate, as_edited
from sliders.errors import SliderError

_PEFT_NAME = "slider"
_BEFORE = "_before_edit"


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
    """The shape of a layer's weight as edits have it, the outputs first."""
    return tuple(layer_weights(model, name)[0].shape)


def layer_weights(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """A layer's weight as edits have it, the outputs first, and its bias, if it has one."""
    layer = _find(model, name, "the edit")
    bias = getattr(layer, "bias", None)
    return as_edited(layer, layer.get_parameter("weight").data), None if bias is None else bias.data


def _find(model: nn.Module, name: str, owner: str) -> nn.Module:
    """The layer of that name, the model's own also where an adapter in training wraps it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise SliderError(f"{owner} changes {name!r}, which this model does not have") from None
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def _editable(model: nn.Module, name: str, owner: str, shape: tuple[int, ...] | None = None) -> nn.Module:
    """The layer of that name, if an update (of that shape) can be put on it."""
    layer = _find(model, name, owner)
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


def is_attached(model: nn.Module) -> bool:
    """Whether sliders run on a model now, finished ones or one in training, or an edit is in its weights."""
    return any(
        isinstance(module, LoraLayer) or isinstance(own.get("forward"), StackedUpdate) or _BEFORE in own
        for module, own in ((module, vars(module)) for module in model.modules())
    )


@contextmanager
def _in_place_of(layer: nn.Module, update: StackedUpdate) -> Iterator[None]:
    """Let an update run where the layer's `forward` ran."""
    before = vars(layer).get("forward")
    layer.forward = update  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def _piecewise(dial: Dial) -> Piecewise:
    """The dial, if all of it can run side by side."""
    if not isinstance(dial, Piecewise):
        raise SliderError(
            f"a {type(dial).__name__} is no slider, hinge or share of an edit, whose pieces run side by side; "
            "run one position of it with baked(model, dial.at(position))"
        )
    return dial


def displacements(model: nn.Module, owner: str, edit: Factored) -> Iterator[tuple[str, LowRank]]:
    """What an edit adds to each of its layers as they are now; with the bias as one more column where it changes.

    Args:
        model: any module.
        owner: what to call the edit in messages.
        edit: in the monoid.

    Raises:
        SliderError: it does not fit the model's layers.
    """
    for module, element in edit.elements().items():
        layer = _editable(model, module, owner, element.shape)
        if isinstance(edit, Translation):
            yield module, edit[module]
            continue
        weight, bias = as_edited(layer, layer.get_parameter("weight").data), getattr(layer, "bias", None)
        yield module, element.displacement(weight, None if bias is None else bias.data)


def check_names(dials: Sequence[Piecewise]) -> None:
    """Of dials that go together.

    Raises:
        SliderError: two share one.
    """
    names = [dial.name for dial in dials]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SliderError(
            f"two sliders are called {min(twice)!r}; load one under another name: NAME=PATH instead of its path, in "
            "Python load(path, name=...)"
        )


@contextmanager
def attach(
    model: nn.Module, dials: Sequence[Dial], values: Mapping[str, float] | None = None, fold: bool = True
) -> Iterator[Dials]:
    """Run ``model`` with sliders, hinges or shares of edits on it; gives their dials, which start at ``values`` or 0.

    Each adds to the model's own weights what it adds to them alone, also where several change one layer or are nested:
    ``W + sum_i s_i (f_i(W) - W)``, whatever the order.  For one edit after the other, compose them with ``@`` first.
    Dials with a number for each row need to know the rows: a backbone says so itself, and whoever runs another module
    does it inside ``with rows_of(rows):``.

    Args:
        model: any module; its own weights are left alone.  It may be moved to another device or precision meanwhile.
        dials: sliders, hinges or shares of edits, each with a name of its own.
        values: where they start.
        fold: multiply dials that all rows share into a copy of the weights when they turn, so that any number of
            sliders costs as much as none; False keeps the factors alone, for where a second copy is too large.

    Raises:
        SliderError: two dials share a name, or one does not fit the model's layers.
    """
    shown = [_piecewise(dial) for dial in dials]
    check_names(shown)
    turned = Dials({dial.name: dial.pieces() for dial in shown})
    parts: dict[str, list[tuple[int, LowRank]]] = {}
    for index, (name, piece) in enumerate((dial.name, piece) for dial in shown for piece in dial.pieces()):
        for module, update in displacements(model, f"slider {name!r}", piece.edit):
            parts.setdefault(module, []).append((index, update))
    with ExitStack() as stack:
        for module, updates in parts.items():
            layer = _find(model, module, "the edit")
            stack.enter_context(_in_place_of(layer, StackedUpdate(turned, layer, updates, fold, module)))
        turned.set(values or {})
        yield turned


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
            _editable(model, name, "the slider")
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
        """The update at dial 1 as it is now, alpha folded in, in float32 on the CPU."""
        updates: dict[str, LowRank] = {}
        for name, layer in self._layers.items():
            down = layer.lora_A[_PEFT_NAME].get_parameter("weight").detach().float().cpu()
            up = layer.lora_B[_PEFT_NAME].get_parameter("weight").detach().float().cpu().flatten(1)
            shape = (up.shape[0], *down.shape[1:])
            updates[name] = LowRank(up * (self.alpha / self.rank), down.flatten(1).clone(), shape)
        return Translation(updates)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """A copy of the trained factors by module, for `load_state`."""
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
            layer = _find(model, name, "the edit")
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
