"""Whether facts were rewritten: the new answer above the old one, in other words too, and other subjects as before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import take
from sliders.language.facts import Rewrite


@dataclass(frozen=True)
class Rewritten:
    """What a model says of facts, as CounterFact scores it (2202.05262, section 3.3); shares are between 0 and 1.

    Args:
        facts: how many.
        efficacy: share of facts whose new answer is likelier than the old one.
        margin: mean of P(new) - P(old) over the facts.
        paraphrase: the same share over the paraphrases.
        neighbourhood: share of other subjects whose own answer is likelier than the new one.
        said: share of facts whose new answer begins with the likeliest token.
    """

    facts: int
    efficacy: float
    margin: float
    paraphrase: float
    neighbourhood: float
    said: float

    @property
    def score(self) -> float:
        """The harmonic mean of the three shares (S of the papers)."""
        shares = (self.efficacy, self.paraphrase, self.neighbourhood)
        return 3 / sum(1 / share for share in shares) if all(shares) else 0.0


@torch.no_grad()
def rate_rewrites(backbone: CausalLMBackbone, facts: Sequence[Rewrite], batch: int = 24) -> Rewritten:
    """Ask a model, as it is now, for all facts, their paraphrases and their neighbours."""
    asked: dict[str, list[tuple[str, str, str]]] = {"fact": [], "paraphrase": [], "neighbour": []}
    for fact in facts:
        asked["fact"].append((fact.prompt.format(fact.subject), fact.new, fact.old))
        asked["paraphrase"] += [(p.format(fact.subject), fact.new, fact.old) for p in fact.paraphrases]
        asked["neighbour"] += [(fact.prompt.format(s), own, fact.new) for s, own in fact.neighbours.items()]
    first, second, top = _compare(backbone, [question for part in asked.values() for question in part], batch)
    sizes = [len(part) for part in asked.values()]
    wins = [part.float().mean() if len(part) else torch.tensor(1.0) for part in (first > second).split(sizes)]
    margin = (first.exp() - second.exp())[: len(facts)].mean()
    return Rewritten(
        len(facts), float(wins[0]), float(margin), float(wins[1]), float(wins[2]), float(top[: len(facts)].mean())
    )


def _compare(
    backbone: CausalLMBackbone, questions: Sequence[tuple[str, str, str]], batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``(prompt, one, other)``: log-probabilities a token of both, and whether the first begins likeliest."""
    prompts = backbone.encode_plain([prompt for prompt, _, _ in questions])
    index = torch.arange(len(questions)).split(batch)
    likely, top = [], torch.zeros(0)
    for side in (2, 1):
        said = backbone.responses([f" {question[side]}" for question in questions], 8, end=False)
        found, first = [], []
        for part in index:
            state = take(said, part)
            whole = backbone.log_probabilities(state, take(prompts, part))
            own = whole.gather(-1, state["tokens"][..., None])[..., 0] * state["mask"]
            found.append((own.sum(1) / state["mask"].sum(1)).cpu())
            first.append((whole[:, 0].argmax(-1) == state["tokens"][:, 0]).float().cpu())
        likely.append(torch.cat(found))
        top = torch.cat(first)
    return likely[1], likely[0], top
