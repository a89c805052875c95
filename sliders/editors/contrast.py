"""What a concept's instructions do to a language model's states: the data that directions are fitted to.

The same responses are read under positive and under negative instructions, so that what differs is not in their words
(contrastive activation addition, Rimsky et al. 2312.06681; "reading vectors" of Zou et al. 2310.01405).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.batch import TensorBatch
from sliders.concept import Concept
from sliders.errors import SliderError

Read = Callable[[TensorBatch, TensorBatch], Tensor]
"""From responses and what stands before them to states ``[n, layers, response, width]``."""


@dataclass(frozen=True)
class Saying:
    """How the responses are made.

    Args:
        tokens: of the longest.
        batch: rows at a time.
        messages: how many of the concept's messages are answered; all unless given.
    """

    tokens: int = 24
    batch: int = 16
    messages: int | None = None


@dataclass(frozen=True)
class Side:
    """States under one instruction.

    Args:
        positive: of which side the instruction is.
        share: one over the number of instructions on its side.
        states: of all tokens of some responses, ``[tokens, layers, width]``.
    """

    positive: bool
    share: float
    states: Tensor


@torch.no_grad()
def contrast(
    backbone: CausalLMBackbone, concept: Concept, read: Read, how: Saying | None = None, seed: int = 0
) -> Iterator[Side]:
    """The states of a concept's contexts under each of its instructions; the base responds under the target.

    Args:
        backbone: any; its own choice of predictions does not matter.
        concept: its contexts are the messages that are answered.
        read: which states.
        how: the responses are made.
        seed: of the responses.
    """
    words, how = concept.worded("text"), how or Saying()
    contexts = words.in_contexts()[: how.messages]
    for start in range(0, len(contexts), how.batch):
        part = contexts[start : start + how.batch]
        seeds = range(seed + start, seed + start + len(part))
        said = backbone.respond(backbone.encode([target for target, _, _ in part]), seeds, how.tokens)
        for side in (1, 2):
            instructions = len(part[0][side])
            for k in range(instructions):
                states = read(said, backbone.encode([context[side][k] for context in part]))
                yield Side(side == 1, 1 / instructions, states.transpose(1, 2)[said["mask"]])


def mean_difference(
    backbone: CausalLMBackbone, concept: Concept, read: Read, how: Saying | None = None, seed: int = 0
) -> Tensor:
    """The mean over tokens of positive less negative states, ``[layers, width]``; see `contrast`."""
    total, count = torch.zeros(()), 0.0
    for side in contrast(backbone, concept, read, how, seed):
        share = side.share if side.positive else -side.share
        total = total.to(side.states) + share * side.states.sum(0)
        count += max(share, 0.0) * len(side.states)
    return total / count


def after_blocks(backbone: CausalLMBackbone, blocks: Sequence[int]) -> Read:
    """The states after these blocks (the first is 0)."""
    return lambda said, asked: backbone.hidden(said, asked, [block + 1 for block in blocks])


def at_layer(backbone: CausalLMBackbone, name: str, side: Literal["input", "output"]) -> Read:
    """What a layer reads or writes."""

    def read(said: TensorBatch, asked: TensorBatch) -> Tensor:
        seen: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            seen.append(given[0] if side == "input" else out)

        hook = backbone.get_submodule(name).register_forward_hook(keep)
        try:
            backbone.log_probabilities(said, asked)
        finally:
            hook.remove()
        return seen[0][:, None, -said["tokens"].shape[1] :]

    return read


def writers(backbone: CausalLMBackbone, part: str) -> dict[int, str]:
    """Of each block the layer that its ``attention`` or ``mlp`` ends with, whose output joins the residual stream."""
    names = backbone.select_targets([part])
    return {int(found[1]): name for name in names if (found := re.search(r"\.(\d+)\.", name))}


def writer(backbone: CausalLMBackbone, block: int) -> str:
    """The layer that a block ends with.

    Raises:
        SliderError: there is no such block.
    """
    names = writers(backbone, "mlp")
    if block not in names:
        raise SliderError(f"{backbone.base_model} has no block {block} with a feed-forward part in reach of sliders")
    return names[block]
