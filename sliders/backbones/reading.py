"""What a model reads of prompts: where it cuts them, and which it cannot tell apart."""

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch, digest
from sliders.concept import Concept
from sliders.errors import SliderError, SliderWarning

_SHOWN = 80  # characters of a prompt in a message


def short(prompt: str) -> str:
    """A prompt in a message of one line."""
    return repr(prompt if len(prompt) <= _SHOWN else prompt[: _SHOWN - 3] + "...")


def check_read(backbone: AbstractBackbone, prompts: Sequence[str]) -> None:
    """Of prompts that a model is trained on.

    Raises:
        SliderError: the model does not read the whole of one.
    """
    for prompt, why in backbone.unread(prompts).items():
        raise SliderError(f"the prompt {short(prompt)} {why}; shorten it")


def warn_unread(backbone: AbstractBackbone, prompts: Sequence[str]) -> None:
    """Warn of each prompt that the model does not read the whole of, once in a process."""
    for prompt, why in backbone.unread(prompts).items():
        warnings.warn(f"the prompt {short(prompt)} {why}", SliderWarning, stacklevel=2)


def check_told_apart(concept: Concept, seen: Mapping[str, TensorBatch]) -> None:
    """Refuse a concept whose positives and negatives are one and the same to the model, in any of its contexts.

    What counts is what the model conditions on, of which it predicts the same bit by bit, and not how it is written.

    Args:
        concept: in the words for the model.
        seen: the conditioning of each of its prompts, a row each.

    Raises:
        SliderError: there is no direction; it names the prompts.
    """
    known = {prompt: digest(conditioning) for prompt, conditioning in seen.items()}
    for target, positives, negatives in concept.in_contexts():
        shares: dict[str, Fraction] = {}
        for prompts, sign in ((positives, 1), (negatives, -1)):
            for prompt in prompts:
                shares[known[prompt]] = shares.get(known[prompt], Fraction()) + Fraction(sign, len(prompts))
        if not any(shares.values()):
            each = " and ".join(", ".join(map(short, prompts)) for prompts in (positives, negatives))
            raise SliderError(
                f"concept {concept.name!r}: there is no direction, since the model reads {each} alike "
                f"(at the target {short(target)}); choose positives and negatives that differ in more than that"
            )


def check_directions(backbone: AbstractBackbone, concept: Concept) -> None:
    """`check_told_apart` for a concept whose prompts are not encoded yet.

    Raises:
        SliderError: there is no direction.
    """
    prompts = {prompt for _, *sides in concept.in_contexts() for side in sides for prompt in side}
    with torch.no_grad():
        check_told_apart(concept, {prompt: backbone.encode([prompt]) for prompt in sorted(prompts)})


def is_rounding(change: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether changes are no more than what is lost in computing what they are changes of.

    Args:
        change: norms, ``[...]``.
        size: norms of what has changed, the same shape.
        dtype: that it was computed in.
    """
    return change <= size * max(torch.finfo(dtype).eps / 2, 2e-6)
