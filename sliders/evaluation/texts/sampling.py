"""How texts are sampled: over a dial, and by the formula itself."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.sampling import PromptSteering
from sliders.backbones.reading import check_directions
from sliders.batch import TensorBatch, join, take
from sliders.concept import BETWEEN, Concept
from sliders.evaluation.texts.settings import TextSampling
from sliders.runtime.dials import DialContext


@torch.no_grad()
def say_over_dial(
    backbone: CausalLMBackbone, turn: DialContext, prompts: Sequence[str], dials: Sequence[float], how: TextSampling
) -> list[TensorBatch]:
    """Responses to all prompts at every position of a dial, with the same seeds: a state of all prompts each."""
    conditioning = backbone.encode(prompts)
    seeds = list(range(how.first_seed, how.first_seed + len(prompts)))
    states = []
    for dial in dials:
        parts = []
        for index in torch.arange(len(prompts)).split(how.batch):
            with turn(torch.full((len(index),), dial, device=backbone.device)):
                chosen = [seeds[i] for i in index.tolist()]
                parts.append(backbone.respond(take(conditioning, index), chosen, how.tokens, how.temperature))
        states.append(join(parts))
    return states


@torch.no_grad()
def say_with_oracle(
    backbone: CausalLMBackbone, concept: Concept, messages: Sequence[str], amounts: Sequence[float], how: TextSampling
) -> list[TensorBatch]:
    """Responses by the formula itself at sampling time, without any slider, at each amount (dial times eta)."""

    def asked(instruction: str, part: Sequence[str]) -> TensorBatch:
        return backbone.encode([instruction + BETWEEN + message for message in part])

    check_directions(backbone, replace(concept, contexts=list(messages)))
    states = []
    for amount in amounts:
        parts = []
        for start in range(0, len(messages), how.batch):
            part = messages[start : start + how.batch]
            steering = PromptSteering(
                [asked(p, part) for p in concept.positives],
                [asked(n, part) for n in concept.negatives],
                torch.full((len(part),), amount, device=backbone.device),
            )
            seeds = range(how.first_seed + start, how.first_seed + start + len(part))
            parts.append(backbone.respond(asked(concept.target, part), seeds, how.tokens, how.temperature, steering))
        states.append(join(parts))
    return states
