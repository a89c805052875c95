"""The sliders and edits that are there: those the page opens with, and what users have uploaded or made."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sliders import formats
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.slider import Hinge, Interpolated, NamedDial, Slider
from sliders.concept import Concept
from sliders.console import say
from sliders.errors import SliderError
from sliders.formats.metadata import concept_of
from sliders.page.safety import clean_name, clean_text
from sliders.resources.shipped import shipped

SHIPPED = {"image": shipped("data/avatars/sliders"), "text": shipped("data/text/sliders")}
OF_FLOW = shipped("data/avatars/flow_sliders")
"""Sliders of the flow model, `avatars-flow`."""
RUNS = Path("runs")
UPLOADS_KEPT = 48
_WORDS = 5
_WIDEST = 4.0


@dataclass(frozen=True)
class ShownDial:
    """A slider, a hinge or an edit as the page shows it.

    Args:
        key: its name here, different from all others'; ``dial.name`` is the same.
        dial: what it does, in float32.
        ends: words for the dial's negative and positive side.
        span: the range that was measured, or that it was made for: of an edit from 0, nothing, to 1, all of it.
        measured: what was measured, or what an edit says of itself, in words; empty where nothing is known.
        modality: of the models that it is for.
    """

    key: str
    dial: NamedDial
    ends: tuple[str, str]
    span: tuple[float, float]
    measured: str
    modality: str

    @property
    def sides(self) -> tuple[Slider | Interpolated, ...]:
        """The slider or edit, or both sliders of a hinge."""
        return (self.dial.left, self.dial.right) if isinstance(self.dial, Hinge) else (self.dial,)

    def strip(self, reach: float) -> tuple[float, float]:
        """Where a strip over it goes: as far to either side, or over its own range where that is on one side of 0."""
        low, high = self.span
        return (-reach, reach) if low < 0 < high else self.span


def describe(key: str, dial: NamedDial, modality: str = "image") -> ShownDial:
    """An entry of that key, from what the dial's own file says of it; ``modality`` is its models'."""
    if isinstance(dial, Hinge):
        left, right = (describe(side.name, side, modality) for side in (dial.left, dial.right))
        span = (min(left.span[0], 0.0), max(right.span[1], 0.0))
        measured = f"below 0 it is {left.key}, above 0 {right.key}"
        made = Hinge(key, _wide(dial.left), _wide(dial.right))
        return ShownDial(key, made, (left.ends[0], right.ends[1]), span, measured, modality)
    found = _effect(dial.metadata)
    if isinstance(dial, Interpolated):
        edit = Affine({module: element.to(torch.float32) for module, element in dial.edit.items()})
        said = clean_text(dial.metadata.get("modelspec.description", ""), 60)
        span, measured = found or ((0.0, 1.0), said)
        return ShownDial(
            key, Interpolated(key, edit, dial.metadata), ("the model", "the edit"), span, measured, modality
        )
    span, measured = found or ((-2.0, 2.0), "")
    return ShownDial(key, replace(_wide(dial), name=key), _ends(dial, modality), span, measured, modality)


def _wide(slider: Slider) -> Slider:
    """In float32: files that are shipped are in half precision, in which products of factors round."""
    return replace(slider, update=Translation({name: u.to(torch.float32) for name, u in slider.update.items()}))


def _ends(slider: Slider, modality: str) -> tuple[str, str]:
    """What the concept's prompts say that its target does not, for the negative and the positive side."""
    try:
        concept = concept_of(slider).worded(modality)
    except SliderError:
        return "less", "more"
    low, high = (_without_target(concept, prompts) for prompts in (concept.negatives, concept.positives))
    return low or "less", high or "more"


def _without_target(concept: Concept, prompts: Sequence[str]) -> str:
    """Each prompt's first few words that are not in the target; all of them in one line."""
    common = {"a", "an", "the"} | {word.strip(",.").lower() for word in concept.target.split()}
    said = [[word for word in prompt.split() if word.strip(",.").lower() not in common] for prompt in prompts]
    shown = [" ".join(words[:_WORDS]).strip(",. ") + ("…" if len(words) > _WORDS else "") for words in said]
    return clean_text(", ".join(dict.fromkeys(text for text in shown if text)), 60)


def _effect(metadata: Mapping[str, str]) -> tuple[tuple[float, float], str] | None:
    """The range that metadata says, and what was measured at its ends; None where they say none that is one."""
    try:
        found = json.loads(metadata["sliders.effect"])
        means = {float(dial): float(mean) for dial, mean in found["mean"].items()}
        span = (max(min(means), -_WIDEST), min(max(means), _WIDEST))
        said = ", ".join(f"{means[dial]:.2f} at {dial:+g}" for dial in (min(means), max(means)))
        if not _is_range(*span):
            raise ValueError("0 is not in it")
        return span, f"measured {clean_text(str(found['measure']) or 'log-odds', 40)}: {said}"
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    try:
        low, high = (float(end) for end in json.loads(metadata["sliders.dial_range"]))
        if _is_range(low, high) and max(-low, high) <= _WIDEST:
            return (low, high), "not measured; the range it was made for"
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        pass
    return None


def _is_range(low: float, high: float) -> bool:
    return low <= 0 <= high and low < high


class Library:
    """All entries of one model; safe to use from several threads.

    Args:
        opening: what every user sees.
        modality: of the model.
        kept: how many of the newest others are kept; each costs memory.
    """

    def __init__(self, opening: Iterable[NamedDial], modality: str = "image", kept: int = UPLOADS_KEPT) -> None:
        self.modality = modality
        self._opening = {dial.name: describe(dial.name, dial, modality) for dial in opening}
        self._others: OrderedDict[str, ShownDial] = OrderedDict()
        self._kept, self._lock = kept, threading.Lock()

    @property
    def opening(self) -> list[str]:
        """The keys that every user begins with."""
        return list(self._opening)

    def __getitem__(self, key: str) -> ShownDial:
        """An entry.

        Raises:
            SliderError: there is none of that key.
        """
        with self._lock:
            if key in self._others:
                self._others.move_to_end(key)
                return self._others[key]
        if key not in self._opening:
            known = ", ".join(self._opening) or "none"
            raise SliderError(f"there is no slider {clean_text(key)!r} (any more); those of this page are {known}")
        return self._opening[key]

    def entries(self, keys: Iterable[str]) -> list[ShownDial]:
        """The entries of these keys, without those that have gone."""
        with self._lock:
            known = self._opening | self._others
        return [known[key] for key in keys if key in known]

    def add(self, dial: NamedDial, content: bytes = b"") -> ShownDial:
        """Keep a dial under its name, with a mark of its content where that tells others of the name apart."""
        key = clean_name(dial.name, 90) + (f"-{hashlib.sha256(content).hexdigest()[:6]}" if content else "")
        entry = describe(key, dial, self.modality)
        with self._lock:
            self._others[key] = entry
            while len(self._others) > self._kept:
                self._others.popitem(last=False)
        return entry


def find(modality: str, runs: Path = RUNS) -> list[Path]:
    """Sliders of a modality that nobody names: those that come with the package, and trained ones, which go before."""
    there = sorted(SHIPPED[modality].glob("*")) if modality in SHIPPED else []
    found = {path.stem: path for path in there if _is_slider(path, modality)}
    trained = {path.stem: path for path in sorted(runs.glob("*/*")) if path.stem == path.parent.name}
    return list((found | {name: path for name, path in trained.items() if _is_slider(path, modality)}).values())


def _is_slider(path: Path, modality: str) -> bool:
    looks_so = (path / "adapter_config.json").is_file() or path.suffix == ".safetensors"
    return looks_so and formats.modality_of(path) == modality


def load_opening(paths: Sequence[Path], fits: Callable[[Mapping[str, str]], bool] | None = None) -> list[NamedDial]:
    """Read sliders, hinges and edits; of two with one name the later.

    Args:
        paths: files or folders.
        fits: whether metadata is that of a slider for this base; those of another are left out and said so.  Without
            it nothing is left out.
    """
    found: dict[str, NamedDial] = {}
    for path in paths:
        dial = formats.load_dial(path)
        if fits is not None and not fits(dial.metadata):
            say(f"left out {path}: it was made for another base")
            continue
        found[dial.name] = dial
    return list(found.values())
