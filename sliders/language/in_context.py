"""Tasks that a language model takes from examples in its prompt, and how often it does them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.files import read_yaml


@dataclass(frozen=True)
class Task:
    """What is made of a word, such as its plural.

    Args:
        name: of it.
        examples: from words to answers; prompts take their examples from these.
        heldout: words and answers on which the task is measured.
    """

    name: str
    examples: dict[str, str]
    heldout: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> "Task":
        """Read a YAML file with these keys."""
        try:
            made = cls(**read_yaml(file, "task"))
        except TypeError as error:
            raise SliderError(f"cannot read the task {file}: {error}") from error
        if both := made.examples.keys() & made.heldout.keys():
            raise SliderError(f"{file}: {sorted(both)[0]!r} is an example and held out")
        return made

    def prompt(self, word: str, shots: int, chance: random.Random, shuffled: bool = False) -> str:
        """A question behind this many examples of other words, whose answers may be shuffled among them."""
        others = [pair for pair in self.examples.items() if pair[0] != word]
        if shots > len(others):
            raise SliderError(f"the task {self.name!r} has {len(self.examples)} examples, but {shots} are to be shown")
        shown = chance.sample(others, shots)
        answers = [answer for _, answer in shown]
        if shuffled:
            chance.shuffle(answers)
        lines = [f"Q: {other}\nA: {answer}\n\n" for (other, _), answer in zip(shown, answers, strict=True)]
        return "".join(lines) + f"Q: {word}\nA:"


def first_tokens(backbone: CausalLMBackbone, answers: Sequence[str]) -> Tensor:
    """The token that each answer begins with, ``[n]``."""
    return backbone.responses([f" {answer}" for answer in answers], 1, end=False)["tokens"][:, 0]


@torch.no_grad()
def next_tokens(backbone: CausalLMBackbone, prompts: TensorBatch) -> Tensor:
    """Log-probabilities of what comes after each prompt, ``[n, vocabulary]``."""
    said = backbone.responses(["."] * len(prompts["prefix"]), 1, end=False)  # its own token is not read
    return backbone.log_probabilities(said, prompts)[:, 0]


def solved(
    backbone: CausalLMBackbone, task: Task, words: dict[str, str], shots: int, shuffled: bool = False, seed: int = 0
) -> tuple[float, float]:
    """Of these words: how often the answer's first token is the likeliest, and its mean log-probability."""
    chance = random.Random(seed)
    prompts = [task.prompt(word, shots, chance, shuffled) for word in words]
    right = first_tokens(backbone, list(words.values()))
    parts = [prompts[i : i + 8] for i in range(0, len(prompts), 8)]
    found = torch.cat([next_tokens(backbone, backbone.encode_plain(part)) for part in parts])
    own = found.gather(1, right[:, None])
    return float((found.argmax(1) == right).float().mean()), float(own.mean())
