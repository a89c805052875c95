"""Tensors that say they are on an accelerator and compute on the CPU: device errors are found on any machine.

The ``meta`` device finds them too, but runs nothing that depends on what a tensor holds, which is most of what the
commands do.  Here a wrapper says ``pretend:0``, every operation on wrappers is computed on the CPU, and whatever an
accelerator refuses is refused: operands on two devices, and numpy.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from sliders.backbones import placement

NAME = "pretend"
TRAINER = {
    "accelerator": {"class_path": "tests.pretend.PretendedAccelerator"},
    "strategy": {"class_path": "tests.pretend.OnPretended"},
}
"""Of a training's configuration."""
_INDEXING = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._unsafe_index.Tensor"}
_COPYING = {"aten.copy_.default", "aten._to_copy.default"}


@cache
def register() -> None:
    """Tell torch of the device; there is no way back."""
    _setup_privateuseone_for_python_backend(NAME)


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class Pretended(Tensor):
    """A tensor that says it is on `NAME`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in given if isinstance(leaf, Pretended)]
    name, asked = str(func), kwargs.get("device")
    here = bool(there) if asked is None else torch.device(asked).type == NAME
    if asked is not None and here:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if there and name not in _COPYING:
        others = [leaf for leaf in given if not isinstance(leaf, Pretended) and leaf.dim() > 0]
        if others and not (name in _INDEXING and isinstance(args[0], Pretended)):  # whose indices may be on the CPU
            raise Mixed(f"{name}: tensors on {NAME} and on {others[0].device}, {tuple(others[0].shape)}")
    if name == "aten._fused_sdp_choice.default":
        return 0  # the one that any device has
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    known = {id(_held(leaf)): leaf for leaf in given}  # what was changed in place is itself

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            return x
        return known[id(x)] if id(x) in known else Pretended(x) if here else x

    return tree_map(wrapped, out)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Pretended) else x


class _Factories(TorchDispatchMode):
    """Makes what is asked for on the device there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """What is not dispatched: tensors made of plain numbers, lists as an index, and where a tensor lies in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Pretended):
            return args[0].cpu().tolist()
        if func in (Tensor.data_ptr, Tensor.untyped_storage) and isinstance(args[0], Pretended):
            return func(args[0].held)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Pretended):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            args = (args[0], index, *args[2:])
        if func in (torch.tensor, torch.as_tensor) and (device := kwargs.get("device")) is not None:
            return func(*args, **{**kwargs, "device": None}).to(device)
        return func(*args, **kwargs)


class PretendedAccelerator(CPUAccelerator):
    """Has nothing to set up."""

    def setup_device(self, device: torch.device) -> None:
        pass


class OnPretended(SingleDeviceStrategy):
    """Trains there."""

    def __init__(self, accelerator: Any = None) -> None:
        super().__init__(torch.device(NAME, 0), accelerator)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """A machine whose best device is `NAME`."""
    register()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(placement, "present", return_value=[f"{NAME}:0", "cpu"]),
            mock.patch.object(placement, "_DEVICE", re.compile(rf"auto|cpu|{NAME}:0")),
            _Factories(),
            _Constants(),
        ):
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
