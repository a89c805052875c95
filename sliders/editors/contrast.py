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

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.predictions import check_layers
from sliders.backbones.reading import check_directions, is_rounding
from sliders.batch import TensorBatch, widened
from sliders.concept import Concept
from sliders.errors import SliderError, check_at_least_1

Read = Callable[[TensorBatch, TensorBatch], Tensor]
"""From responses and what stands before them to states ``[n, layers, response, width]``."""


@dataclass(frozen=True)
class ResponseSampling:
    """How the responses are made.

    Args:
        tokens: of the longest, at least 1.
        batch: rows at a time, at least 1.
        messages: how many of the concept's messages are answered, at least 1; all unless given.

    Raises:
        SliderError: a number is below 1.
    """

    tokens: int = 24
    batch: int = 16
    messages: int | None = None

    def __post_init__(self) -> None:
        check_at_least_1("responses", self, "tokens", "batch", "messages")


@dataclass(frozen=True)
class Answers:
    """Responses, and the instructions under which their states are compared.

    Args:
        said: the responses, a row each.
        positives: prompts of each row, a list for each instruction.
        negatives: the same.
    """

    said: TensorBatch
    positives: list[list[str]]
    negatives: list[list[str]]


@dataclass(frozen=True)
class ContrastSide:
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
def answer(
    backbone: CausalLMBackbone, concept: Concept, how: ResponseSampling | None = None, seed: int = 0
) -> list[Answers]:
    """What the model as it is now answers to a concept's contexts, under its target.

    Raises:
        SliderError: it reads the concept's positives and negatives alike.
    """
    how = how or ResponseSampling()
    check_directions(backbone, concept.worded("text"))
    contexts = concept.worded("text").in_contexts()[: how.messages]
    found = []
    for start in range(0, len(contexts), how.batch):
        part = contexts[start : start + how.batch]
        seeds = range(seed + start, seed + start + len(part))
        said = backbone.respond(backbone.encode([target for target, _, _ in part]), seeds, how.tokens)
        sides = ([list(column) for column in zip(*(row[k] for row in part), strict=True)] for k in (1, 2))
        found.append(Answers(said, *sides))
    return found


@torch.no_grad()
def contrast(backbone: CausalLMBackbone, answers: Sequence[Answers], read: Read) -> Iterator[ContrastSide]:
    """The states of answers under each of their instructions."""
    for part in answers:
        for positive, side in ((True, part.positives), (False, part.negatives)):
            for prompts in side:
                states = widened(read(part.said, backbone.encode(prompts)))
                yield ContrastSide(positive, 1 / len(side), states.transpose(1, 2)[part.said["mask"]])


def mean_difference(backbone: CausalLMBackbone, answers: Sequence[Answers], read: Read) -> Tensor:
    """The mean over tokens of positive less negative states, ``[layers, width]``; see `contrast`.

    Raises:
        SliderError: there is no difference, but for rounding, in a layer.
    """
    total, size, count = torch.zeros(()), torch.zeros(()), 0.0
    for side in contrast(backbone, answers, read):
        share = side.share if side.positive else -side.share
        total = total.to(side.states) + share * side.states.sum(0)
        size = size.to(side.states) + abs(share) * side.states.abs().sum(0)
        count += max(share, 0.0) * len(side.states)
    if is_rounding(total.norm(dim=-1), size.norm(dim=-1), backbone.dtype).any():
        raise SliderError("there is no direction: the states under positives and negatives are the same up to rounding")
    return total / count


def after_blocks(backbone: CausalLMBackbone, blocks: Sequence[int]) -> Read:
    """The states after these blocks (the first is 0).

    Raises:
        SliderError: the model has no such block, or none is named.
    """
    layers = [block + 1 for block in blocks]
    check_layers(backbone.network, layers)
    return lambda said, asked: backbone.hidden(said, asked, layers)


class _Reached(Exception):
    """The layer has been read: what comes after it need not run."""


def at_layer(backbone: CausalLMBackbone, name: str, side: Literal["input", "output"]) -> Read:
    """What a layer reads or writes."""

    def read(said: TensorBatch, asked: TensorBatch) -> Tensor:
        backbone.network.check_together(asked)
        seen: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            seen.append(given[0] if side == "input" else out)
            raise _Reached

        hook = backbone.get_submodule(name).register_forward_hook(keep)
        try:
            with torch.compiler.set_stance("force_eager"):  # a compiled model does not see the hook
                backbone.log_probabilities(said, asked)
        except _Reached:
            pass
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
