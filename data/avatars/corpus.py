"""The rendered corpora: pictures and the attributes they show, on disk.

Avatar ``i`` of a split depends on the split's name and ``i`` alone, so the splits never share random numbers, a
longer corpus begins with the shorter one, and the work can be spread over processes.
"""

import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.avatars.attributes import VALUES, Avatar, is_defined, sample_avatar
from data.avatars.render import render
from sliders.files import replacing

SPLITS = {"train": 20_000, "judge": 8_000, "test": 2_000}
_CHUNK = 500


@dataclass(frozen=True)
class Corpus:
    """``images`` uint8 ``[n, 64, 64, 3]`` and the avatar drawn in each."""

    images: np.ndarray
    avatars: list[Avatar]

    def labels(self) -> np.ndarray:
        """int64 ``[n, attributes]`` in the order of ``VALUES``; -1 where the attribute is not in the picture."""
        rows = [
            [values.index(a[name]) if is_defined(a, name) else -1 for name, values in VALUES.items()]
            for a in self.avatars
        ]
        return np.asarray(rows, dtype=np.int64)


def _rng(split: str, index: int) -> random.Random:
    return random.Random(f"avatars/{split}/{index}")


def avatar_at(split: str, index: int) -> Avatar:
    """The attributes of one avatar of a split, without drawing it."""
    return sample_avatar(_rng(split, index))


def _draw(task: tuple[str, int, int]) -> np.ndarray:
    split, start, stop = task
    pictures = []
    for index in range(start, stop):
        rng = _rng(split, index)
        pictures.append(render(sample_avatar(rng), rng))
    return np.stack(pictures)


def load(split: str, cache: Path, count: int | None = None) -> Corpus:
    """The first ``count`` avatars of a split, drawn on first use and kept in ``cache``."""
    count = SPLITS[split] if count is None else count
    file = cache / f"{split}-{count}.npy"
    if not file.exists():
        tasks = [(split, i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            images = np.concatenate(list(pool.map(_draw, tasks)))
        with replacing(file) as new:
            np.save(new, images)
    return Corpus(np.load(file), [avatar_at(split, i) for i in range(count)])


def heldout_captions(count: int, rng_name: str = "heldout") -> list[tuple[str, Avatar, list[str]]]:
    """Captions that no training picture was drawn for: sentence, avatar, and the attributes it names."""
    from data.avatars.attributes import caption

    out: list[tuple[str, Avatar, list[str]]] = []
    for index in range(count):
        rng = _rng(rng_name, index)
        avatar = sample_avatar(rng)
        named = [name for name in VALUES if is_defined(avatar, name) and rng.random() < 0.6]
        out.append((caption(avatar, named), avatar, named))
    return out


def describe(avatar: Avatar) -> str:
    """One line of JSON, for logs."""
    return json.dumps(avatar, sort_keys=True)
