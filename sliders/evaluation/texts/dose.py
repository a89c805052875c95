"""What a dial does to a language model: to what it says, to its concept, and to text that has nothing to do with it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch, repeat, rows, take
from sliders.concept import BETWEEN, Concept, read_prompts
from sliders.errors import SliderError
from sliders.evaluation.texts.sampling import TextSampling, say_over_dial
from sliders.evaluation.texts.scores import SCORES, distinct, read, repetition
from sliders.report.drawing import dial_label
from sliders.runtime.dials import DialContext


@dataclass(frozen=True)
class TextDose:
    """What was measured over a dial; every list has one entry a dial.

    Args:
        concept: its name.
        dials: positions, ascending, 0 among them.
        prompts: the held-out messages; the same seeds at each dial.
        score: what the judge reads, of `SCORES`; empty if the concept names none.
        response: mean score.
        error: its standard error.
        spearman: rank correlation of dial and response (means).
        others: means of the other scores.
        log_odds: log-probability a token of the responses, as the base gives it under the positive prompts, less that
            under the negative ones; of the first 24 prompts.
        perplexity: of neutral text.
        divergence: mean Kullback-Leibler divergence from the base on neutral text, in nats a token.
        distinct: distinct bigrams over all bigrams.
        repetition: share of trigrams that a response has said before.
        texts: the responses, ``[dials][prompts]``.
    """

    concept: str
    dials: list[float]
    prompts: list[str]
    score: str
    response: list[float]
    error: list[float]
    spearman: float
    others: dict[str, list[float]]
    log_odds: list[float]
    perplexity: list[float]
    divergence: list[float]
    distinct: list[float]
    repetition: list[float]
    texts: list[list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def summary(self) -> dict[str, str]:
        """For a slider's metadata."""
        effect = {dial_label(d): round(r, 3) for d, r in zip(self.dials, self.response, strict=True)}
        perplexity = {dial_label(d): round(p, 2) for d, p in zip(self.dials, self.perplexity, strict=True)}
        read_off = {"measure": self.score, "prompts": len(self.prompts)}
        return {"sliders.effect": json.dumps({**read_off, "mean": effect, "perplexity": perplexity})}

    def table(self) -> Table:
        """The numbers, for a terminal."""
        title = f"{self.concept}: {self.score or 'log-odds'} on {len(self.prompts)} held-out prompts"
        table = Table(title=title, title_justify="left", caption=f"Spearman {self.spearman:.2f}")
        headings = ("dial", self.score or "-", "log-odds", "perplexity", "KL to base", "distinct-2", "repetition")
        for heading in headings:
            table.add_column(heading, justify="right")
        for k, dial in enumerate(self.dials):
            table.add_row(
                dial_label(dial),
                f"{self.response[k]:.2f} ± {self.error[k]:.2f}",
                f"{self.log_odds[k]:+.3f}",
                f"{self.perplexity[k]:.2f}",
                f"{self.divergence[k]:.3f}",
                f"{self.distinct[k]:.2f}",
                f"{self.repetition[k]:.3f}",
            )
        return table

    def samples(self, count: int = 2, dials: Sequence[float] = (-2, -1, 0, 1, 2)) -> Table:
        """Some responses side by side, for a terminal."""
        table = Table(title=f"{self.concept}: the same prompts and seeds", title_justify="left", show_lines=True)
        table.add_column("dial", justify="right")
        for prompt in self.prompts[:count]:
            table.add_column(prompt)
        for dial in dials:
            if dial in self.dials:
                table.add_row(dial_label(dial), *self.texts[self.dials.index(dial)][:count])
        return table


def heldout_messages(concept: Concept, count: int) -> list[str]:
    """The first ``count`` messages that the concept is measured on.

    Raises:
        SliderError: ``count`` is below 1, the concept has no or fewer held-out prompts, or there is no such score.
    """
    if count < 1:
        raise SliderError(f"--pictures (prompts of a probe or a report) is {count}; it must be at least 1")
    if concept.measure is None:
        raise SliderError(f"concept {concept.name!r} has no 'measure', which names the held-out prompts")
    if concept.measure.attribute:
        read(concept.measure.attribute, [])  # an unknown score should be known before anything is said
    messages = concept.heldout()
    if len(messages) < count:
        raise SliderError(f"concept {concept.name!r} is measured on {len(messages)} prompts, but {count} are asked for")
    return messages[:count]


@torch.no_grad()
def log_odds(backbone: CausalLMBackbone, concept: Concept, messages: Sequence[str], said: TensorBatch) -> Tensor:
    """Of each response, a token: positive over negative prompts, by the model as it is now; ``[n]``."""

    def likelihood(instruction: str) -> Tensor:
        conditioning = backbone.encode([instruction + BETWEEN + message for message in messages])
        parts = torch.arange(rows(said)).split(16)
        total = torch.cat([backbone.likelihood(take(said, p), take(conditioning, p)).sum(1) for p in parts])
        return total / said["mask"].sum(1)

    sides = [
        torch.stack([likelihood(text) for text in side]).mean(0) for side in (concept.positives, concept.negatives)
    ]
    return sides[0] - sides[1]


@torch.no_grad()
def on_neutral_text(
    backbone: CausalLMBackbone, turn: DialContext, dials: Sequence[float], texts: Sequence[str], tokens: int = 64
) -> tuple[list[float], list[float]]:
    """Perplexity, and divergence from the base in nats a token, of neutral texts at each dial."""
    state = backbone.responses(texts, tokens, end=False)
    plain = backbone.encode_plain([""])
    loss, divergence = torch.zeros(len(dials)), torch.zeros(len(dials))
    for index in torch.arange(len(texts)).split(6):
        part = take(state, index)
        conditioning, mask = repeat(plain, len(index)), part["mask"].float()
        base = backbone.log_probabilities(part, conditioning)
        for k, dial in enumerate(dials):
            with turn(torch.full((len(index),), dial, device=backbone.device)):
                turned = backbone.log_probabilities(part, conditioning)
            own = turned.gather(-1, part["tokens"][..., None])[..., 0]
            loss[k] -= (own * mask).sum().cpu()
            divergence[k] += ((base.exp() * (base - turned)).sum(-1) * mask).sum().cpu()
    count = state["mask"].sum().item()
    return [math.exp(x / count) for x in loss.tolist()], [x / count for x in divergence.tolist()]


def evaluate_text(
    backbone: CausalLMBackbone,
    turn: DialContext,
    concept: Concept,
    dials: Sequence[float],
    prompts: int = 64,
    how: TextSampling | None = None,
) -> TextDose:
    """Let the model answer held-out messages over the dial, under the concept's target, and read what it says."""
    how, dials = how or TextSampling(), [float(d) for d in dials]
    messages = heldout_messages(concept, prompts)
    states = say_over_dial(backbone, turn, [concept.target + BETWEEN + m for m in messages], dials, how)
    texts = [backbone.text(state) for state in states]
    perplexity, divergence = on_neutral_text(backbone, turn, dials, read_prompts(how.neutral))
    few = torch.arange(min(len(messages), 24))
    odds = [float(log_odds(backbone, concept, messages[: len(few)], take(said, few)).mean()) for said in states]
    score = concept.measure.attribute if concept.measure else ""
    scored = torch.stack([read(score, said) for said in texts]) if score else torch.tensor(odds)[:, None]
    response = scored.mean(1)
    constant = float(response.max() - response.min()) < 1e-6  # rounding
    return TextDose(
        concept=concept.name,
        dials=dials,
        prompts=messages,
        score=score,
        response=response.tolist(),
        error=(scored.std(1) / scored.shape[1] ** 0.5).tolist() if scored.shape[1] > 1 else [0.0] * len(dials),
        spearman=0.0 if constant else float(spearmanr(dials, response.tolist()).statistic),  # pyright: ignore[reportAttributeAccessIssue]
        others={name: [float(read(name, said).mean()) for said in texts] for name in SCORES if name != score},
        log_odds=odds,
        perplexity=perplexity,
        divergence=divergence,
        distinct=[distinct(said) for said in texts],
        repetition=[repetition(said) for said in texts],
        texts=texts,
    )
