"""Rank-one model editing: one fact of a language model is replaced by another (Meng et al. 2202.05262)."""

from dataclasses import dataclass, field
from pathlib import Path

from sliders.algebra.closed_forms import rome_gains
from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.base import Editor
from sliders.editors.contrast import writer
from sliders.editors.search import ValueSearch
from sliders.language.covariance import Covariance
from sliders.language.facts import Rewrite, read_rewrites
from sliders.language.recall import keys, outputs, written


@dataclass(frozen=True)
class ROME(Editor[CausalLMBackbone]):
    """Rank-one model editing: the last layer of one feed-forward part answers a subject's key with another value.

    Args:
        facts: YAML file of relations, as `Relation` has them.
        subject: whose fact is changed.
        block: where (the first is 0).
        search: for the value.
        covariance: of what the layer reads.
    """

    of = CausalLMBackbone

    facts: Path
    subject: str
    block: int
    search: ValueSearch = field(default_factory=ValueSearch)
    covariance: Covariance = field(default_factory=Covariance)

    @property
    def fact(self) -> Rewrite:
        """What is changed into what."""
        return read_rewrites(self.facts, [self.subject])[0]

    def fit(self, backbone: CausalLMBackbone, seed: int = 0) -> Affine:
        fact, layer = self.fact, writer(backbone, self.block)
        covariance = self.covariance.fit(backbone, [layer])[layer]
        key = keys(backbone, [layer], [self.search.asked(backbone, fact, seed)])[layer]
        start = outputs(backbone, layer, key)[:, 0]
        move = self.search.move(backbone, layer, fact, start, float(start.norm()), seed)
        return Affine({layer: written(backbone, layer, key, rome_gains(key, covariance.to(key)), move[:, None])})

    def describe(self) -> str:
        fact = self.fact
        return f"{fact.prompt.format(fact.subject)} {fact.new} (was {fact.old}), at block {self.block}"
