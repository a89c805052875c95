"""What an update reads and writes, asked of the model: words, prompts and tokens that it responds to and promotes.

A layer's response to an input ``x`` is how much of its output the update changes, ``|D x + d|^2 / |W x + b|^2``; over
layers the mean is taken.  It depends on the update alone and on no choice of factors.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sliders.algebra.change import Change
from sliders.algebra.explain import Inputs
from sliders.backbones.base import AbstractBackbone
from sliders.concept import read_prompts
from sliders.errors import SliderError
from sliders.resources.shipped import shipped
from sliders.studies.explain.pictures import PictureReader, PredictionReader
from sliders.studies.explain.reader import Ranking, Reader, spread
from sliders.studies.explain.texts import TextReader

PROMPTS = {"image": shipped("data/avatars/prompts"), "text": shipped("data/text/prompts")}
_READERS: Sequence[Reader[Any]] = (PictureReader(), PredictionReader(), TextReader())
_READ = 8
"""Of so many layers, those with the largest updates, it is measured what they read."""


def _reader(backbone: AbstractBackbone) -> Reader[Any] | None:
    return next((reader for reader in _READERS if isinstance(backbone, reader.of)), None)


def refusal(backbone: AbstractBackbone) -> str | None:
    """Why a model cannot be asked what an update reads, or None where it can be."""
    if _reader(backbone) is None:
        return f"what an update of a {type(backbone).__name__} reads cannot be asked"
    if not any(PROMPTS[backbone.modality].glob("*.txt")):
        return f"what an update reads cannot be asked: there are no prompts in {PROMPTS[backbone.modality]}"
    return None


def texts_for(backbone: AbstractBackbone, words: int, most: int | None = None) -> tuple[Sequence[str], list[str]]:
    """The prompts that are shipped for models of this modality, and words: theirs, and those of a small vocabulary.

    Args:
        backbone: loaded.
        words: at most so many.
        most: prompts, evenly spread; None for all.
    """
    if (reader := _reader(backbone)) is None:
        return [], []
    files = sorted(PROMPTS[backbone.modality].glob("*.txt"))
    prompts = list(dict.fromkeys(line for file in files for line in read_prompts(file)))
    found = list(dict.fromkeys(word for prompt in prompts for word in re.findall(r"[^\W\d_]{3,}", prompt)))
    found += reader.vocabulary(backbone, found)
    return prompts if most is None else spread(prompts, most), list(dict.fromkeys(found))[:words]


def inputs_of(backbone: AbstractBackbone, modules: Sequence[str], words: Sequence[str]) -> Mapping[str, Inputs]:
    """What the first few of these layers read at each word; of none where the model is not asked."""
    reader = _reader(backbone)
    return {} if reader is None or not words else reader.inputs(backbone, modules[:_READ], words)


@torch.no_grad()
def reads(
    backbone: AbstractBackbone, changes: Sequence[Change], prompts: Sequence[str], words: Sequence[str]
) -> list[Ranking]:
    """What an update responds to, and what it promotes.

    Args:
        backbone: the base, loaded.
        changes: of its layers; those that do not stand out of noise are left out.
        prompts: that are tried.
        words: that are tried, each alone.

    Raises:
        SliderError: the model cannot be asked.
    """
    moved = [change for change in changes if change.update.rank]
    if not moved:
        return []
    reader, why = _reader(backbone), refusal(backbone)
    if reader is None or why:
        raise SliderError(f"{why}; leave it out: --run false")
    return reader.rankings(backbone, moved, prompts, words)
