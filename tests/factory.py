"""Random updates and sliders, and the dense weights that they must agree with."""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider

Model = TypeVar("Model", bound=nn.Module)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same ones for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lowrank(shape: tuple[int, ...], rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> LowRank:
    """A random update, of about the size of an ordinary layer's weight."""
    inputs = torch.Size(shape[1:]).numel()
    up = normal(shape[0], rank, seed=2 * seed, dtype=dtype) / max(rank, 1) ** 0.5
    return LowRank(up, normal(rank, inputs, seed=2 * seed + 1, dtype=dtype) / inputs**0.5, shape)


def slider(model: nn.Module, ranks: Mapping[str, int], name: str = "s", seed: int = 0, scale: float = 0.5) -> Slider:
    """A random slider on some of a model's layers, of the rank given for each, in the model's precision."""
    updates = {}
    for i, (module, rank) in enumerate(ranks.items()):
        weight = model.get_submodule(module).get_parameter("weight")
        updates[module] = lowrank(tuple(weight.shape), rank, 1000 * seed + i).to(weight.dtype) * scale
    return Slider(name, Translation(updates))


def random_like(slider: Slider, seed: int = 0) -> Slider:
    """The control of a trained slider: random, and in every layer of its rank and norm."""
    generator, updates = torch.Generator().manual_seed(seed), {}
    for name, update in slider.update.items():
        up, down = (torch.randn(factor.shape, generator=generator) for factor in (update.B, update.A))
        random = LowRank(up, down, update.shape)
        updates[name] = random * float(update.norm() / random.norm())
    return Slider("random", Translation(updates))


def moved(model: Model, *updates: Translation) -> Model:
    """The oracle: a copy of the model with nothing attached and with the dense updates in its weights."""
    oracle = copy.deepcopy(model)
    for module in oracle.modules():
        module._forward_hooks.clear()
        vars(module).pop("forward", None)
    with torch.no_grad():
        for update in updates:
            for module, part in update.items():
                layer = oracle.get_submodule(module)
                dense = part.dense()
                layer.get_parameter("weight").add_(dense.T if isinstance(layer, Conv1D) else dense)
    return oracle
