"""Small texts, facts and models for the editors of language models."""

from pathlib import Path

import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.search import Prefixes, ValueSearch
from sliders.language.covariance import Covariance
from tests import tiny, tiny_lm

LINES = [*tiny_lm.TEXT, "the hat of the dog is long", "a good day, a sad day; tell me more about you and the hat"]
FACTS = """
- prompt: "the day of {} is"
  paraphrases: ["how was the day of {}? it was", "{} had a day that was"]
  change:
    a dog: [good, sad]
    the hat: [long, happy]
  neighbours: {you: good, a person: sad}
"""


def load(kind: str, folder: Path) -> CausalLMBackbone:
    """A tiny model in float64."""
    backbone = CausalLMBackbone(str(tiny.save(tiny_lm.language_model(kind), folder / kind)), prompt_tokens=64)
    backbone.load()
    backbone.lm.double()
    return backbone


def texts(folder: Path) -> Path:
    """A text file of more tokens than a tiny layer has inputs."""
    file = folder / "text.txt"
    file.write_text("\n".join(LINES * 3))
    return file


def facts(folder: Path) -> Path:
    """A file of two facts."""
    file = folder / "facts.yaml"
    file.write_text(FACTS)
    return file


def search(folder: Path, steps: int = 20, limit: float = 4.0) -> ValueSearch:
    """A short search with few beginnings."""
    return ValueSearch(steps=steps, limit=limit, prefixes=Prefixes(texts(folder), count=2, words=3))


def covariance(folder: Path) -> Covariance:
    """Over the small text."""
    return Covariance([texts(folder)])


def probability(backbone: CausalLMBackbone, prompt: str, answer: str) -> float:
    """Of an answer after a prompt, a token."""
    said = backbone.responses([f" {answer}"], 8, end=False)
    with torch.no_grad():
        likely = backbone.likelihood(said, backbone.encode_plain([prompt]))
    return float((likely.sum() / said["mask"].sum()).exp())
