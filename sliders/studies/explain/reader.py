"""What asks a model of one family what an update reads and writes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from sliders.algebra.change import Change
from sliders.algebra.explain import Inputs
from sliders.backbones.base import AbstractBackbone

Model = TypeVar("Model", bound=AbstractBackbone)


@dataclass(frozen=True)
class Ranking:
    """Things, and a number for each, the largest first.

    Args:
        title: what they are.
        says: in a sentence, what the number is.
        entries: names and numbers.
    """

    title: str
    says: str
    entries: tuple[tuple[str, float], ...]


class Reader(ABC, Generic[Model]):
    """Words, prompts and tokens that an update of a family's models responds to and promotes."""

    of: ClassVar[type[AbstractBackbone]]
    """The family: the class that stands for ``Model``."""

    @abstractmethod
    def rankings(
        self, backbone: Model, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
    ) -> list[Ranking]:
        """What the changes of layers, all of them out of noise, respond to and promote."""

    def vocabulary(self, backbone: Model, known: Sequence[str]) -> list[str]:
        """Words that the model has beside those known from prompts; none unless its vocabulary is small."""
        return []

    def inputs(self, backbone: Model, modules: Sequence[str], words: Sequence[str]) -> Mapping[str, Inputs]:
        """What layers read at each of the words, of those for which it can be asked."""
        return {}


def ranked(title: str, says: str, found: Iterable[tuple[str, float]], keep: int = 40) -> Ranking:
    """The first of them; of one name the largest counts."""
    best: dict[str, float] = {}
    for name, value in sorted(found, key=lambda item: -item[1]):
        best.setdefault(name, value)
    return Ranking(title, says, tuple(best.items())[:keep])


def spread(prompts: Sequence[str], most: int) -> Sequence[str]:
    """So many of them, from the first to the last."""
    return prompts[:: max(len(prompts) // most, 1)][:most]


def moved(change: Change, x: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the answers to inputs ``x [..., in]`` the update changes ``[...]``, and the change ``[..., out]``."""
    assert change.weight is not None
    bias = None if change.bias is None else change.bias.to(x)
    answered = F.linear(x, change.weight.to(x), bias)
    part = change.of_weight.to(x)
    made = F.linear(F.linear(x, part.A), part.B, change.of_bias.to(x))
    return made.square().sum(-1) / answered.square().sum(-1).clamp_min(1e-12), made
