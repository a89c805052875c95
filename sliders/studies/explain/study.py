"""One update explained, wherever it came from: all that is asked of its layers, for the command and for the demo."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sliders.algebra.change import Change, Effect, effect, of_factors
from sliders.algebra.edit import Translation
from sliders.algebra.explain import Verdict, as_update, diagnose
from sliders.algebra.nearest import nearest
from sliders.algebra.slider import Hinge, NamedDial, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.errors import SliderError
from sliders.report.html_page import Report
from sliders.studies.explain.reader import Ranking
from sliders.studies.explain.reads import inputs_of, reads, texts_for
from sliders.studies.explain.report import report

Layer = Callable[[str], tuple[Tensor, Tensor | None]]
"""From a layer's name to its weight, the outputs first, and its bias, both before the update."""
Told = Callable[[int, int, str], object]
"""Is told how many parts of how many are done, and of what; may raise to end it."""


@dataclass(frozen=True)
class Effort:
    """How much an update is looked at.

    Args:
        words: at most so many are tried.
        prompts: of those that are shipped, at most so many are tried; None for all.
        spectra: of so many weights, the most changed, spectra are compared; None for all.
    """

    words: int = 400
    prompts: int | None = None
    spectra: int | None = None


def changes_of(dial: NamedDial, layer: Layer | None) -> list[Change]:
    """What a dial does at 1, to each layer.

    Args:
        dial: a slider or an edit.
        layer: of the base; None where that is not known.

    Raises:
        SliderError: it is a hinge, or an edit whose base is not known, or it does not fit the base.
    """
    if isinstance(dial, Hinge):
        raise SliderError(f"{dial.name} is a hinge of two updates; explain its sides, one slider at a time")
    edit = dial.update if isinstance(dial, Slider) else dial.edit
    changes: list[Change] = []
    for module, element in edit.elements().items():
        if layer is None:
            if not isinstance(edit, Translation):
                raise SliderError(f"{dial.name} depends on the weights that it edits; give its base with --base")
            changes.append(of_factors(module, edit[module]))
            continue
        weight, bias = layer(module)
        moved = edit[module] if isinstance(edit, Translation) else element.displacement(weight, bias)
        changes.append(of_factors(module, moved, weight, bias))
    return changes


def study(
    title: str,
    note: str,
    changes: Sequence[Change],
    known: Sequence[Slider],
    backbone: AbstractBackbone | None,
    effort: Effort,
    others: Mapping[str, float] | None = None,
    told: Told = lambda done, total, what: None,
) -> Report:
    """Judge an update, compare it with known sliders, and ask the model what it reads and writes.

    Args:
        title: of the report.
        note: what was compared with what.
        changes: of the layers.
        known: sliders that it is compared with; none are needed.
        backbone: the base, loaded and with nothing attached; None leaves out what only running it tells.
        effort: how much of it is looked at.
        others: relative changes of parameters that are no layer's.
        told: hears of each weight whose spectrum is compared.

    Raises:
        SliderError: the backbone cannot be asked.
    """
    largest = sorted(changes, key=lambda change: -change.spectrum.norm)[: effort.spectra]
    compared = [change for change in changes if change in largest and change.weight is not None]
    total = len(compared) + 2
    told(0, total, "parts: its kind")
    prompts, words = texts_for(backbone, effort.words, effort.prompts) if backbone is not None else ([], [])
    verdict = _diagnose(changes, backbone, words)
    effects: list[Effect] = []
    for k, change in enumerate(compared, 1):
        told(k, total, "parts: what it does to weights")
        effects.append(effect(change))
    near = nearest(as_update(changes), known) if known and changes else None
    told(total - 1, total, "parts: what it reads and writes")
    rankings: list[Ranking] = []
    if backbone is not None:
        rankings = reads(backbone, changes, prompts, words)
    return report(title, note, changes, verdict, effects, near, rankings, dict(others or {}))


def _diagnose(changes: Sequence[Change], backbone: AbstractBackbone | None, words: Sequence[str]) -> Verdict:
    return diagnose(changes, None if backbone is None else lambda modules: inputs_of(backbone, modules, words))
