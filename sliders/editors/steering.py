"""Steering vectors: what a prompt adds to the hidden states, added without the prompt.

The vector of a block is the mean difference of its hidden states under positive and under negative instructions.  Added
to what the block's last layer writes, it is a translation of that layer's bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.base import Editor
from sliders.editors.contrast import ResponseSampling, after_blocks, answer, mean_difference, writer
from sliders.runtime.layers import weight_shape


@dataclass(frozen=True)
class SteeringVector(Editor[CausalLMBackbone]):
    """The mean difference that a concept's instructions make to hidden states, added without them.

    Args:
        concept: its YAML file.
        blocks: where the vector is added, each block's own (the first is 0).
        responses: how the responses are made that the states are read at.
    """

    of = CausalLMBackbone

    concept: Path
    blocks: list[int]
    responses: ResponseSampling = field(default_factory=ResponseSampling)

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        return fit_steering(backbone, Concept.load(self.concept), self.blocks, self.responses, seed)

    def describe(self) -> str:
        return f"the vector of {self.concept.stem} added after blocks {', '.join(map(str, self.blocks))}"


def fit_steering(
    backbone: CausalLMBackbone,
    concept: Concept,
    blocks: Sequence[int],
    how: ResponseSampling | None = None,
    seed: int = 0,
) -> Affine:
    """The steering vector of a concept, added after each of these blocks (the first is 0).

    Raises:
        SliderError: there is no such block, or none is named.
    """
    names, read = [writer(backbone, block) for block in blocks], after_blocks(backbone, blocks)
    vectors = mean_difference(backbone, answer(backbone, concept, how, seed), read).cpu()
    return Affine({n: steer_output(v, weight_shape(backbone, n)) for n, v in zip(names, vectors, strict=True)})
