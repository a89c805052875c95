"""Facts to be changed in a language model: what it says now, what it shall say, and what must stay."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sliders.errors import SliderError
from sliders.files import read_yaml


@dataclass(frozen=True)
class Rewrite:
    """A fact and the one that takes its place, as the records of CounterFact are (2202.05262, section 3.3).

    Args:
        subject: what it is about.
        prompt: up to the answer, with ``{}`` for the subject.
        old: the answer now.
        new: the answer to be.
        paraphrases: other prompts for the same answer, with ``{}``; no fit sees them.
        neighbours: from other subjects to their answers to the prompt, which must stay.
    """

    subject: str
    prompt: str
    old: str
    new: str
    paraphrases: list[str] = field(default_factory=list)
    neighbours: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Relation:
    """Facts of one kind.

    Args:
        prompt: up to the answer, with ``{}`` for the subject.
        paraphrases: other prompts for the same answer.
        change: from each subject to its answer now and its answer to be.
        neighbours: from other subjects to their answers.
    """

    prompt: str
    paraphrases: list[str]
    change: dict[str, tuple[str, str]]
    neighbours: dict[str, str]

    def rewrites(self) -> list[Rewrite]:
        """A record for each subject; whose own answer is the new one is no neighbour."""
        return [
            Rewrite(
                subject, self.prompt, old, new, self.paraphrases, {s: a for s, a in self.neighbours.items() if a != new}
            )
            for subject, (old, new) in self.change.items()
        ]


def read_rewrites(file: Path, subjects: Sequence[str] | None = None) -> list[Rewrite]:
    """The facts of a YAML file, which lists relations; all of them, or those about some subjects.

    Raises:
        SliderError: it cannot be read, a prompt has no place for the subject, or nothing is said of a subject.
    """
    try:
        relations = [Relation(**plain) for plain in read_yaml(file, "facts")]
        found = [rewrite for relation in relations for rewrite in relation.rewrites()]
    except (TypeError, ValueError, AttributeError) as error:
        raise SliderError(f"cannot read the facts {file}: {error}") from error
    for prompt in {prompt for r in found for prompt in (r.prompt, *r.paraphrases)}:
        if prompt.count("{}") != 1:
            raise SliderError(f"{file}: the prompt {prompt!r} needs one {{}} for the subject")
    if subjects is None:
        return found
    known = {rewrite.subject: rewrite for rewrite in found}
    if missing := [subject for subject in subjects if subject not in known]:
        raise SliderError(f"{file} has no fact about {missing[0]!r}; it has {', '.join(known)}")
    return [known[subject] for subject in subjects]
