"""What a language model knows: questions with one right answer, and the likelihood it gives to that and to others."""

import json
import math
import random
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import take
from sliders.concept import BETWEEN, read_prompts
from sliders.errors import SliderError
from sliders.evaluation.texts.dose import on_neutral_text
from sliders.evaluation.texts.sampling import TextSampling
from sliders.evaluation.texts.scores import repetition
from sliders.files import read_yaml, write_text
from sliders.runtime.dials import DialContext


@dataclass(frozen=True)
class Facts:
    """A body of knowledge.

    Args:
        name: of it.
        questions: with ``{}`` for the subject; a training may use them.
        heldout_questions: other wordings, on which the knowledge is measured.
        heldout_stem: how an answer to these begins, with ``{}`` for the subject.
        facts: from subject to answer.
    """

    name: str
    questions: list[str]
    heldout_questions: list[str]
    heldout_stem: str
    facts: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> "Facts":
        """Read a YAML file with these keys."""
        try:
            made = cls(**read_yaml(file, "facts"))
        except TypeError as error:
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
        chance: of guessing among them.
        error: the standard error of the accuracy.
        said: share of questions whose right answer is in what the model says, taking the likeliest tokens.
        right: log-probability a token of the right answers.
        questions: how many.
    """

    name: str
    accuracy: float
    chance: float
    error: float
    said: float
    right: float
    questions: int


@torch.no_grad()
def ask(
    backbone: CausalLMBackbone,
    body: Facts,
    choices: int = 4,
    subjects: Sequence[str] | None = None,
    tokens: int = 24,
    batch: int = 48,
) -> Known:
    """Every held-out wording of every fact: the model answers it, and chooses between right and wrong by likelihood."""
    prefixes, answers, questions, right = [], [], [], []
    subjects = list(body.facts) if subjects is None else list(subjects)
    for question in body.heldout_questions:
        for subject in subjects:
            before = backbone.render(BETWEEN + question.format(subject)) + body.heldout_stem.format(subject)
            options = [body.facts[subject], *body.others(subject, choices - 1)]
            prefixes += [before] * len(options)
            questions.append(BETWEEN + question.format(subject))
            right.append(body.facts[subject])
            answers += [f" {option}" for option in options]
    conditioning = backbone.encode_plain(prefixes)
    state = backbone.responses(answers, 12, end=False)
    index = torch.arange(len(answers)).split(batch)
    scores = torch.cat([backbone.likelihood(take(state, i), take(conditioning, i)).sum(1) for i in index])
    per_token = scores / state["mask"].sum(1)
    found = scores.view(-1, min(choices, len(set(body.facts.values()))))
    hits = (found.argmax(1) == 0).float()
    asked = backbone.encode(questions)
    texts: list[str] = []
    for i in torch.arange(len(questions)).split(batch):
        texts += backbone.text(backbone.respond(take(asked, i), [0] * len(i), tokens, temperature=0))
    said = [re.search(rf"\b{re.escape(answer)}\b", text) is not None for answer, text in zip(right, texts, strict=True)]
    return Known(
        name=body.name,
        accuracy=float(hits.mean()),
        chance=1 / found.shape[1],
        error=float((hits.mean() * (1 - hits.mean()) / len(hits)) ** 0.5),
        said=sum(said) / len(said),
        right=float(per_token.view_as(found)[:, 0].mean()),
        questions=len(hits),
    )


@dataclass(frozen=True)
class Erased:
    """A model before (dial 0) and after an erasure (dial 1).

    Args:
        known: what it knows of each body, before and after.
        perplexity: of neutral text.
        divergence: from the base on neutral text, after, in nats a token.
        fluency: perplexity of its own answers about the first body, as the base gives it.
        repetition: of these answers.
        answers: ``(question, before, after)``.
    """

    known: list[tuple[Known, Known]]
    perplexity: tuple[float, float]
    divergence: float
    fluency: tuple[float, float]
    repetition: tuple[float, float]
    answers: list[tuple[str, str, str]]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title="before and after", title_justify="left")
        for heading in ("", "before", "after", "chance"):
            table.add_column(heading, justify="left" if not heading else "right")
        for before, after in self.known:
            table.add_row(f"{before.name}: the right answer is said", f"{before.said:.2f}", f"{after.said:.2f}", "0")
            shown = (f"{k.accuracy:.2f} ± {k.error:.2f}" for k in (before, after))
            table.add_row(f"{before.name}: it is the likeliest of four", *shown, f"{before.chance:.2f}")
        rows = (
            ("perplexity of neutral text", self.perplexity),
            ("perplexity of its answers, by the base", self.fluency),
            ("repetition in its answers", self.repetition),
        )
        for name, (before, after) in rows:
            table.add_row(name, f"{before:.2f}", f"{after:.2f}", "")
        return table


@torch.no_grad()
def evaluate_erasure(
    backbone: CausalLMBackbone,
    turn: DialContext,
    bodies: Sequence[Facts],
    how: TextSampling,
    answers: int = 24,
) -> Erased:
    """Ask about all bodies and let the model answer questions about the first, at dials 0 and 1.

    Args:
        backbone: the model.
        turn: sets the dial.
        bodies: the first is the one that was erased.
        how: these answers are sampled; what `ask` counts takes the likeliest tokens.
        answers: how many at most.
    """

    def turned(dial: float, rows: int) -> AbstractContextManager[None]:
        return turn(torch.full((rows,), dial, device=backbone.device))

    known = []
    for body in bodies:
        with turned(0.0, 1):
            before = ask(backbone, body)
        with turned(1.0, 1):
            known.append((before, ask(backbone, body)))
    perplexity, divergence = on_neutral_text(backbone, turn, [0.0, 1.0], read_prompts(how.neutral))
    subjects = list(bodies[0].facts)[:answers]
    wordings = bodies[0].heldout_questions
    questions = [wordings[k % len(wordings)].format(s) for k, s in enumerate(subjects)]
    asked = backbone.encode([BETWEEN + question for question in questions])
    seeds = range(how.first_seed, how.first_seed + len(questions))
    texts, fluency = [], []
    for dial in (0.0, 1.0):
        with turned(dial, len(questions)):
            said = backbone.respond(asked, seeds, how.tokens, how.temperature)
        texts.append(backbone.text(said))
        fluency.append(math.exp(-float(backbone.likelihood(said, asked).sum() / said["mask"].sum())))
    return Erased(
        known=known,
        perplexity=(perplexity[0], perplexity[1]),
        divergence=divergence[1],
        fluency=(fluency[0], fluency[1]),
        repetition=(repetition(texts[0]), repetition(texts[1])),
        answers=list(zip(questions, *texts, strict=True)),
    )


def write_erasure_report(erased: Erased, folder: Path) -> None:
    """Write `erasure.json` and `answers.md`."""
    write_text(folder / "erasure.json", json.dumps(asdict(erased), indent=1))
    lines = [f"- **{question}**\n  - before: {one}\n  - after: {two}" for question, one, two in erased.answers]
    write_text(folder / "answers.md", "\n".join(lines) + "\n")
