"""LEACE: what a linear layer reads or writes, without what a linear readout can find of a concept.

Belrose et al. 2306.03819, theorem 4.3, fitted by their package and folded into the layer.  The place is a layer's own
input or output, where that is exact.  After a block it would not be: the residual stream is a sum of what many layers
wrote, and is read through a norm, which is not linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from sliders.algebra.closed_forms import erase_input, erase_output
from sliders.algebra.edit import Affine
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.base import Editor
from sliders.editors.contrast import Answers, ResponseSampling, answer, at_layer, contrast
from sliders.errors import SliderError
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape


@dataclass(frozen=True)
class LEACE(Editor[CausalLMBackbone]):
    """Least-squares concept erasure: no linear readout of a layer tells under which instruction it runs.

    Args:
        concept: its YAML file; the two sides are its positives and its negatives.
        layers: regular expressions or groups of layers; each is fitted with those before it erased already.
        side: of the layer, input or output, where the concept is erased.
        shrinkage: of the covariance towards a multiple of the identity, by the amount that its sampling error asks for.
        svd_tol: singular values of the whitened cross-covariance up to this are taken for noise.
        responses: how the responses are made that the states are read at.
    """

    of = CausalLMBackbone

    concept: Path
    layers: list[str]
    side: Literal["input", "output"] = "output"
    shrinkage: bool = True
    svd_tol: float = 0.01
    responses: ResponseSampling = field(default_factory=ResponseSampling)

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        answers = answer(backbone, Concept.load(self.concept), self.responses, seed)
        found: dict[str, Element] = {}
        for name in backbone.select_targets(self.layers):
            with baked(backbone, Affine(found)):
                found[name] = self._fit_layer(backbone, answers, name)
        return Affine(found)

    def describe(self) -> str:
        return f"{self.concept.stem} erased from the {self.side} of {', '.join(self.layers)}"

    def _fit_layer(self, backbone: CausalLMBackbone, answers: Sequence[Answers], name: str) -> Element:
        try:
            from concept_erasure import LeaceFitter
        except ImportError:
            raise SliderError("leace needs a package more: pip install 'concept-sliders[editors]'") from None
        shape = weight_shape(backbone, name)
        width = shape[1] if self.side == "input" else shape[0]
        fitter = LeaceFitter(
            width,
            1,
            constrain_cov_trace=False,  # it would give up the projection
            dtype=torch.float64,
            shrinkage=self.shrinkage,
            svd_tol=self.svd_tol,
        )
        for part in contrast(backbone, answers, at_layer(backbone, name, self.side)):
            states = part.states[:, 0].double().cpu()
            fitter.update(states, torch.full((len(states),), float(part.positive), dtype=torch.float64))
        eraser = fitter.eraser
        if not eraser.proj_left.any():
            raise SliderError(
                f"leace: the {self.side} of {name!r} says nothing of {self.concept.stem!r}; try another layer"
            )
        projection = LowRank(eraser.proj_left, eraser.proj_right, (width, width))
        erase = erase_input if self.side == "input" else erase_output
        return erase(projection, fitter.mean_x, shape).to(torch.float32)
