"""What a language model knows: questions with one right answer, and the likelihood it gives to that and to others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.batch import take
from sliders.concept import BETWEEN
from sliders.errors import SliderError


@dataclass(frozen=True)
class Facts:
    """A body of knowledge.

    Args:
        name: of it.
        questions: with ``{}`` for the subject; a training may use them.
        stem: how an answer begins, with ``{}`` for the subject.
        heldout_questions: other wordings, on which the knowledge is measured.
        heldout_stem: the same for answers.
        facts: from subject to answer.
    """

    name: str
    questions: list[str]
    stem: str
    heldout_questions: list[str]
    heldout_stem: str
    facts: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> "Facts":
        """Read a YAML file with these keys."""
        try:
            plain = yaml.safe_load(file.read_text(encoding="utf-8"))
            made = cls(**plain)
        except (OSError, TypeError, yaml.YAMLError) as error:
            raise SliderError(f"cannot read the facts {file}: {error}") from error
        if len(set(made.facts.values())) < 4:
            raise SliderError(f"{file}: give at least four facts with different answers")
        return made

    def others(self, subject: str, count: int, seed: int = 0) -> list[str]:
        """Wrong answers to one question: right ones of other subjects."""
        wrong = sorted(set(self.facts.values()) - {self.facts[subject]})
        return random.Random(f"{seed}/{self.name}/{subject}").sample(wrong, min(count, len(wrong)))


@dataclass(frozen=True)
class Known:
    """How well a body is known.

    Args:
        name: of the body.
        accuracy: share of questions whose right answer is the likeliest of the choices.
        chance: of guessing.
        error: the standard error of the accuracy.
        right: log-probability a token of the right answers.
        questions: how many.
    """

    name: str
    accuracy: float
    chance: float
    error: float
    right: float
    questions: int


@torch.no_grad()
def ask(
    backbone: CausalLMBackbone, body: Facts, choices: int = 4, subjects: Sequence[str] | None = None, batch: int = 48
) -> Known:
    """Choose between the right answer and wrong ones, by likelihood, for every held-out wording of every fact."""
    prefixes, answers = [], []
    subjects = list(body.facts) if subjects is None else list(subjects)
    for question in body.heldout_questions:
        for subject in subjects:
            before = backbone.render(BETWEEN + question.format(subject)) + body.heldout_stem.format(subject)
            options = [body.facts[subject], *body.others(subject, choices - 1)]
            prefixes += [before] * len(options)
            answers += [f" {option}" for option in options]
    conditioning = backbone.encode_plain(prefixes)
    state = backbone.responses(answers, 12, end=False)
    index = torch.arange(len(answers)).split(batch)
    scores = torch.cat([backbone.likelihood(take(state, i), take(conditioning, i)).sum(1) for i in index])
    per_token = scores / state["mask"].sum(1)
    found = scores.view(-1, min(choices, len(set(body.facts.values()))))
    hits = (found.argmax(1) == 0).float()
    return Known(
        name=body.name,
        accuracy=float(hits.mean()),
        chance=1 / found.shape[1],
        error=float((hits.mean() * (1 - hits.mean()) / len(hits)) ** 0.5),
        right=float(per_token.view_as(found)[:, 0].mean()),
        questions=len(hits),
    )
