"""Unified concept editing: what a diffusion model reads as one concept, it reads as another.

Gandikota et al. 2308.14761, eq. 7, on the keys and values of the cross-attention.  All these layers read the text's
vectors, and what is fitted does not depend on a layer's weight (`docs/derivations/uce.md`): one right factor for all.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sliders.algebra.closed_forms import redirect
from sliders.algebra.edit import Affine
from sliders.backbones.unet import UNetBackbone
from sliders.concept import read_prompts
from sliders.editors.base import Editor
from sliders.errors import SliderError
from sliders.runtime.layers import weight_shape


@dataclass(frozen=True)
class UCE(Editor[UNetBackbone]):
    """Unified concept editing: the cross-attention answers some concepts as it answers others.

    Which of a prompt's vectors count differs between versions of the published code.  In the present one, ``last``, it
    is that of the last token.  In the first, ``tail``, they are those from the last token to the end, which have all
    read it, paired from there on, and all of a preserved prompt.

    Args:
        replace: from each concept to what takes its place; an empty text erases it.
        contexts: prompts with {} for the concept, each giving vectors of its own; a list, or a text file.
        preserve: prompts that are answered as before; a list, or a text file.
        regularisation: lambda, of the squared change of the weights, above 0.
        erase_scale: alpha, of the concepts.
        preserve_scale: beta, of the preserved prompts.
        tokens: which vectors of a prompt count.
        targets: layers that read the text.
        draw: how many of the contexts are drawn for one fit; all unless given.

    Raises:
        SliderError: the regularisation is not above 0.
    """

    of = UNetBackbone

    replace: dict[str, str]
    contexts: list[str] | str = field(default_factory=lambda: ["{}"])
    preserve: list[str] | str = field(default_factory=list)
    regularisation: float = 0.5
    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    tokens: Literal["last", "tail"] = "last"
    targets: list[str] = field(default_factory=lambda: ["xattn-strict"])
    draw: int | None = None

    def __post_init__(self) -> None:
        if not self.regularisation > 0:
            raise SliderError(f"uce: regularisation is {self.regularisation:g}; it must be above 0")

    @torch.no_grad()
    def fit(self, backbone: UNetBackbone, seed: int = 0) -> Affine:
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for context in self._drawn(seed):
            for pair in self.replace.items():
                vectors = [self._vectors(backbone, context, concept) for concept in pair]
                if torch.equal(*vectors):
                    raise SliderError(
                        f"uce: in {context!r} the model reads {pair[0]!r} as {pair[1]!r} already; nothing is to change"
                    )
                for side, own in zip(sides, vectors, strict=True):
                    side.append(own[: min(map(len, vectors))])
        if not sides[0]:
            raise SliderError("uce: replace is empty; give at least one concept")
        concepts, targets = (self.erase_scale**0.5 * torch.cat(side).T for side in sides)
        penalty = self.regularisation * torch.eye(len(concepts)).to(concepts)
        for prompt in _listed(self.preserve):
            kept = self._vectors(backbone, "{}", prompt, whole=self.tokens == "tail")
            penalty += self.preserve_scale * kept.T @ kept
        elements = {}
        for module in backbone.select_targets(self.targets):
            shape = weight_shape(backbone, module)
            if shape[1:] != (len(concepts),):
                raise SliderError(f"uce: {module!r} does not read the text, whose vectors have {len(concepts)} entries")
            elements[module] = redirect(concepts, targets, penalty, shape).trim().to("cpu", torch.float32)
        return Affine(elements)

    def describe(self) -> str:
        return "; ".join(f"{old!r} read as {new!r}" for old, new in self.replace.items())

    def _drawn(self, seed: int) -> list[str]:
        """The contexts of one fit."""
        contexts = _listed(self.contexts)
        if wrong := [context for context in contexts if context.count("{}") != 1]:
            raise SliderError(f"uce: the context {wrong[0]!r} needs one {{}} for the concept")
        if self.draw is None:
            return contexts
        if not 0 < self.draw <= len(contexts):
            raise SliderError(f"uce: draw is {self.draw}, but there are {len(contexts)} contexts")
        return random.Random(seed).sample(contexts, self.draw)

    def _vectors(self, backbone: UNetBackbone, context: str, concept: str, whole: bool = False) -> Tensor:
        """What a prompt gives the cross-attention to read, of the tokens that count: ``[n, in]`` in float64."""
        vectors = backbone.encode([context.replace("{}", concept)])["prompt_embeds"][0].double()
        begin = context.partition("{}")[0] + concept
        last = len(backbone.pipeline.tokenizer(begin).input_ids) - 2  # before the end mark
        if last >= len(vectors):
            raise SliderError(f"uce: {begin[:60]!r} has more tokens than the text encoder reads")
        return vectors if whole else vectors[last:] if self.tokens == "tail" else vectors[last : last + 1]


def _listed(prompts: Sequence[str] | str) -> list[str]:
    return read_prompts(Path(prompts)) if isinstance(prompts, str) else list(prompts)
