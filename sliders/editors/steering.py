"""Steering vectors: what a prompt adds to the hidden states, added without the prompt.

The vector of a block is the mean difference of its hidden states under positive and under negative instructions, at
the tokens of the same responses (contrastive activation addition, Rimsky et al. 2312.06681; "reading vectors" of Zou
et al. 2310.01405).  Added to what the block's last layer writes, it is a translation of that layer's bias.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sliders.algebra.edit import Affine
from sliders.algebra.elements import steer_output
from sliders.attach import weight_shape
from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.base import Editor
from sliders.errors import SliderError


def writes(backbone: CausalLMBackbone, block: int) -> str:
    """The layer that a block's feed-forward part ends with, whose output goes into the residual stream."""
    names = [name for name in backbone.select_targets(["mlp"]) if re.search(rf"\.{block}\.", name)]
    if not names:
        raise SliderError(f"{backbone.base_model} has no block {block} with a feed-forward part in reach of sliders")
    return names[-1]


@dataclass(frozen=True)
class SteeringVector(Editor[CausalLMBackbone]):
    """The mean difference that a concept's instructions make to hidden states, added without them.

    Args:
        concept: its YAML file; its contexts are the messages that are answered.
        blocks: where the vector is added, each block's own (the first is 0).
        tokens: of the responses, which the base gives under the target.
        batch: rows at a time.
    """

    of = CausalLMBackbone

    concept: Path
    blocks: list[int]
    tokens: int = 24
    batch: int = 16

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        return fit_steering(backbone, Concept.load(self.concept), self.blocks, self.tokens, seed, self.batch)

    def describe(self) -> str:
        return f"steering vector of {self.concept.stem} after blocks {', '.join(map(str, self.blocks))}"


@torch.no_grad()
def fit_steering(
    backbone: CausalLMBackbone,
    concept: Concept,
    blocks: Sequence[int],
    tokens: int = 24,
    seed: int = 0,
    batch: int = 16,
) -> Affine:
    """The steering vector of a concept, added after each of these blocks (the first is 0).

    Args:
        backbone: any `CausalLMBackbone`; its own choice of predictions does not matter.
        concept: its contexts are the messages that are answered.
        blocks: where the vector is added, each block's own.
        tokens: of the responses, which the base gives under the target.
        seed: of the responses.
        batch: rows at a time.
    """
    words, layers = concept.worded("text"), {block: writes(backbone, block) for block in blocks}
    sums: dict[str, torch.Tensor] = {}
    count = torch.zeros((), device=backbone.device)
    contexts = words.in_contexts()
    for start in range(0, len(contexts), batch):
        part = contexts[start : start + batch]
        seeds = range(seed + start, seed + start + len(part))
        said = backbone.respond(backbone.encode([target for target, _, _ in part]), seeds, tokens)
        count += said["mask"].sum()
        for side, sign in ((1, 1.0), (2, -1.0)):
            instructions = len(part[0][side])
            for k in range(instructions):
                states = backbone.hidden(said, backbone.encode([c[side][k] for c in part]), [b + 1 for b in layers])
                share = (states * said["mask"][:, None, :, None]).sum((0, 2)) * sign / instructions
                for row, name in enumerate(layers.values()):
                    sums[name] = sums.get(name, torch.zeros_like(share[row])) + share[row]
    shapes = {name: weight_shape(backbone, name) for name in sums}
    return Affine({name: steer_output((total / count).cpu(), shapes[name]) for name, total in sums.items()})
