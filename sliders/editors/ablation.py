"""Directional ablation: a direction that no layer writes to the residual stream any more.

Arditi et al. 2406.11717, section 2.4: the direction is a difference of means, and every matrix that writes to the
residual stream loses it, ``W -> W - r r^T W``.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sliders.algebra.closed_forms import erase_output, onto
from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.base import Editor
from sliders.editors.contrast import ResponseSampling, after_blocks, answer, mean_difference, writers
from sliders.runtime.layers import weight_shape


@dataclass(frozen=True)
class Ablation(Editor[CausalLMBackbone]):
    """Directional ablation: the direction of a concept, taken out of all that the blocks write.

    The embedding keeps it: it is often the output layer as well (as in SmolLM2), where taking it out is another edit.
    So every token's own component along the direction stays what it is through all blocks, and nothing is added to it.

    Args:
        concept: its YAML file.
        block: after which the direction is read (the first is 0).
        responses: how the responses are made that it is read at.
    """

    of = CausalLMBackbone

    concept: Path
    block: int
    responses: ResponseSampling = field(default_factory=ResponseSampling)

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        read = after_blocks(backbone, [self.block])
        direction = mean_difference(backbone, answer(backbone, Concept.load(self.concept), self.responses, seed), read)
        return ablate(backbone, direction.T.cpu())

    def describe(self) -> str:
        return f"the direction of {self.concept.stem} after block {self.block}, written by no block"


def ablate(backbone: CausalLMBackbone, directions: Tensor) -> Affine:
    """Every layer that writes to the residual stream, without these directions ``[width, k]``."""
    names = [name for part in ("attention", "mlp") for name in writers(backbone, part).values()]
    projection = onto(directions)
    return Affine({name: erase_output(projection, None, weight_shape(backbone, name)) for name in names})
