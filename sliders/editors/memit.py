"""Mass editing of a transformer's memory: many facts at once, spread over blocks (Meng et al. 2210.07229)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sliders.algebra.closed_forms import memit_gains
from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.base import Editor
from sliders.editors.contrast import writer
from sliders.editors.search import ValueSearch
from sliders.errors import SliderError
from sliders.language.covariance import Covariance
from sliders.language.facts import read_rewrites
from sliders.language.recall import keys, run, written
from sliders.runtime.baking import baked


@dataclass(frozen=True)
class MEMIT(Editor[CausalLMBackbone]):
    """Mass editing of memory: feed-forward parts share what the facts' subjects shall add to the last block's state.

    Args:
        facts: YAML file of relations, as `Relation` has them.
        blocks: where, ascending (the first is 0); one is enough.
        subjects: whose facts are changed; all of the file unless given.
        weight: lambda, of the covariance against one key.
        search: for what is to be added to the state after the last block.
        covariance: of what the layers read.
    """

    of = CausalLMBackbone

    facts: Path
    blocks: list[int]
    subjects: list[str] | None = None
    weight: float = 1.0
    search: ValueSearch = field(default_factory=lambda: ValueSearch(limit=0.75))
    covariance: Covariance = field(default_factory=Covariance)

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        """Algorithm 1: each block takes its share of what is still missing, with the blocks before it edited."""
        if not self.blocks or self.blocks != sorted(set(self.blocks)):
            raise SliderError(f"memit: blocks are {self.blocks}; give at least one, in ascending order")
        facts, last = read_rewrites(self.facts, self.subjects), self.blocks[-1]
        layers = [writer(backbone, block) for block in self.blocks]
        covariance = self.covariance.fit(backbone, layers)
        asked = [self.search.asked(backbone, fact, seed) for fact in facts]

        @torch.no_grad()
        def states() -> Tensor:
            """At the subjects' last tokens after the last block, ``[width, facts]``, means over the prompts."""
            return torch.stack([a.at_subject(run(backbone, a.prompts, last)[0]).double().mean(0) for a in asked], 1)

        wanted = states()
        for k, fact in enumerate(facts):
            size = float(wanted[:, k].norm())
            wanted[:, k] += self.search.move(backbone, layers[-1], fact, None, size, seed)
        edit = Affine({})
        for k, layer in enumerate(layers):
            with baked(backbone, edit):
                missing = (wanted - states()) / (len(layers) - k)
                read = keys(backbone, [layer], asked)[layer]
            penalty = self.weight * covariance[layer].to(read)
            edit = Affine({**edit, layer: written(backbone, layer, read, memit_gains(read, penalty), missing)})
        return edit

    def describe(self) -> str:
        facts = read_rewrites(self.facts, self.subjects)
        first = facts[0]
        said = f"{first.prompt.format(first.subject)} {first.new} (was {first.old})"
        return f"{said}, and {len(facts) - 1} more, at blocks {', '.join(map(str, self.blocks))}"
