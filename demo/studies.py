"""What the Algebra tab shows of sliders: what they share, what they do to each other, how straight they are."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from demo.library import Entry
from demo.painting import Report, Row, paint
from sliders.algebra.laws import commutes
from sliders.algebra.pairs import Pairs, pairwise
from sliders.algebra.slider import Slider
from sliders.attach import attach
from sliders.backbones.base import AbstractBackbone, DiffusionBackbone
from sliders.concept import Measure
from sliders.errors import SliderError
from sliders.evaluation.dose import dose_response
from sliders.evaluation.judge import AttributeJudge
from sliders.evaluation.laws import REACH, STEP, STRAIGHT, Measured, interactions, matrix, path
from sliders.evaluation.laws_report import Section, heatmap, paths_figure
from sliders.evaluation.plots import dial_label, dose_response_figure, plt
from sliders.evaluation.report import heldout_prompts
from sliders.evaluation.sampling import Sampling, Scene, scenes
from sliders.evaluation.stages import Behaviour, Stage
from sliders.formats.metadata import concept_of

_NEAREST = 5


def updates(entries: Sequence[Entry]) -> list[Slider]:
    """What each is at dial 1, as sliders."""
    return [Slider(entry.key, entry.dial.at(1.0)) for entry in entries]


def from_factors(entries: Sequence[Entry]) -> list[Section]:
    """Overlap, predicted interference and order gap: exact, without running the model."""
    if len(entries) < 2:
        raise SliderError("choose two sliders or more; these pictures compare pairs")
    pairs, names = pairwise(updates(entries)), [entry.key for entry in entries]
    gaps = torch.zeros(len(names), len(names), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(entries), 2):
        gaps[i, j] = gaps[j, i] = commutes(a.dial.at(1.0), b.dial.at(1.0)).value
    return [
        Section(
            "Overlap",
            "The cosine of two updates as weights: 0: unrelated, 1: one and the same, below 0: they cancel.",
            figure=heatmap(pairs.cosine, names, "cosine", signed=True),
        ),
        Section(
            "Predicted interference",
            "From the factors alone: 0 where in every layer two sliders read or write orthogonal directions, 1 for "
            "one and the same slider.",
            figure=heatmap(pairs.interference, names, "predicted interference"),
        ),
        Section(
            "Order gap of the weights",
            "By how much it matters which edit comes first, relative to the smaller one. Sliders add to the weights, "
            "and sums do not depend on the order: it is exactly 0 for them.",
            figure=heatmap(gaps, names, "order gap"),
        ),
    ]


def measured(stage: Stage, entries: Sequence[Entry], report: Report) -> list[Section]:
    """What dials do together and alone, at states that the base visits; a slow part is told to ``report``."""
    names = [entry.key for entry in entries]
    half = round(REACH / STEP)
    asked = [{name: k * STEP} for name in names for k in range(-half, half + 1) if k]
    asked += [{a: 1.0, b: 1.0} for a, b in itertools.combinations(names, 2)]
    with attach(stage.backbone, [entry.dial for entry in entries]) as attached:
        told = Behaviour(stage, attached)
        for k, positions in enumerate(asked):
            report(k, len(asked), "positions of the dials")
            told.change(positions)
        paths = [path(told, name, {}) for name in names]
        pairs = interactions(told, names, {})
    where = f"at {len(stage.base)} states of {stage.scenes} scenes that the base visits"
    sections = [
        Section(
            "How straight is each dial?",
            f"Left: how far it moves the predictions {where}. Right: how far it leaves the straight line through 0 "
            f"(dashed: {STRAIGHT:g} of it).",
            ("dial", "straight from", "to", "oddness", "additivity to +2"),
            [
                [
                    p.name,
                    f"{p.straight[0]:+g}",
                    f"{p.straight[1]:+g}",
                    *(f"{law.gap.value:.2f}" for law in _two(p.laws)),
                ]
                for p in paths
            ],
            paths_figure(paths),
        )
    ]
    if pairs:
        says = (
            f"How far two dials at 1 together are from the sum of what each does alone, {where}; 0: they just add up."
        )
        figure = heatmap(matrix(pairs, names), names, "interaction")
        sections.append(Section("Measured interference", says, figure=figure))
    return sections


def _two(laws: Sequence[Measured]) -> list[Measured]:
    """Oddness, and additivity on the positive side."""
    return [next(law for law in laws if law.law.startswith(start)) for start in ("oddness", "additivity to +")]


def order_in_time(
    backbone: DiffusionBackbone, entries: Sequence[Entry], wanted: Sequence[Scene], how: Sampling, report: Report
) -> Section:
    """Whether it matters which dial is on in the first half of sampling and which in the second."""
    names = [entry.key for entry in entries]
    first = range(how.steps // 2)
    orders = list(itertools.permutations(range(len(names)), 2))
    rows = [Row(scene, {names[a]: 1.0}, first, {names[b]: 1.0}) for a, b in orders for scene in wanted]
    pictures = paint(backbone, [e.dial for e in entries], [*rows, *(Row(s, {}) for s in wanted)], how, report)
    base, turned = pictures[len(rows) :], pictures[: len(rows)].unflatten(0, (len(orders), len(wanted)))
    table = torch.zeros(len(names), len(names), dtype=torch.float64)
    for k, (a, b) in enumerate(orders):
        one, other = turned[k], turned[orders.index((b, a))]
        moved = ((one - base).norm() + (other - base).norm()) / 2
        table[a, b] = float((one - other).norm() / moved.clamp_min(1e-12))
    return Section(
        "Order gap in time",
        "One dial at 1 in the first half of the sampling steps and the other in the second, against the other way "
        f"round: how far the pictures of {len(wanted)} scenes are apart, relative to how far both are from the base.",
        figure=heatmap(table, names, "order gap in time"),
    )


def dose(
    backbone: DiffusionBackbone, entry: Entry, judge: AttributeJudge, count: int, how: Sampling, report: Report
) -> Section:
    """What a judge says of pictures over the dial, on held-out scenes of the slider's own concept."""
    measure, wanted = _measured_by(entry, count)
    low, high = entry.span
    dials = sorted({low, low / 2, 0.0, high / 2, high})
    rows = [Row(scene, {entry.key: dial}) for dial in dials for scene in wanted]
    pictures = paint(backbone, [entry.dial], rows, how, report).unflatten(0, (len(dials), len(wanted)))
    found = dose_response(judge, measure, pictures, dials)
    return Section(
        f"Dose and response: {entry.key}",
        f"Left: the judge's mean probability of {found.attribute} = {found.value} on {len(wanted)} scenes at each "
        "dial. Right: the largest change of any other attribute.",
        ("dial", f"{found.attribute} = {found.value}", "worst drift", "of"),
        [
            [dial_label(s), f"{mean:.2f} ± {error:.2f}", f"{drift.change:.3f}", f"{drift.attribute} {drift.value}"]
            for s, mean, error, drift in zip(found.dials, found.response, found.error, found.drift, strict=True)
        ],
        dose_response_figure(entry.key, {entry.key: found}),
    )


def _measured_by(entry: Entry, count: int) -> tuple[Measure, list[Scene]]:
    """What the slider's concept is measured by, and scenes that leave it open.

    Raises:
        SliderError: the slider does not say.
    """
    known = entry.sides[-1]
    concept = concept_of(known) if "sliders.concept" in known.metadata else None
    if concept is None or concept.measure is None or not concept.measure.value:
        raise SliderError(f"{entry.key} does not say what a judge should look at, so that there is no dose to measure")
    return concept.measure, scenes(heldout_prompts(concept), count)


def explain(backbone: AbstractBackbone, entry: Entry, known: Sequence[Entry]) -> list[Section]:
    """What an update is, from its factors: rank, size, where in the network it lies, and what it is most like.

    Args:
        backbone: the model that it changes.
        entry: whose update at dial 1 is looked at.
        known: what it is compared with.
    """
    update = entry.dial.at(1.0)
    spectra = {module: part.svd()[1] for module, part in update.items()}
    ranks = {module: _rank(values) for module, values in spectra.items()}
    norms = {module: float(values.norm()) for module, values in spectra.items()}
    weights = {m: float(backbone.get_submodule(m).get_parameter("weight").norm()) for m in update}
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    relative = whole / max(sum(weight**2 for weight in weights.values()) ** 0.5, 1e-12)
    strongest = sorted(norms, key=lambda module: norms[module] / max(weights[module], 1e-12), reverse=True)
    sections = [
        Section(
            f"What is {entry.key}?",
            f"A sum of B A on {len(norms)} layers, of rank {min(ranks.values())} to {max(ranks.values())}; it is "
            f"{relative:.2%} of the weights that it changes. These layers are changed most, relative to their weights:",
            ("layer", "rank", "norm", "of the layer's weight"),
            [[m, str(ranks[m]), f"{norms[m]:.3g}", f"{norms[m] / max(weights[m], 1e-12):.2%}"] for m in strongest[:8]],
        ),
        Section(
            "Where in the network it lies",
            "The norm of the update in each part of the network, layers of one part together.",
            figure=_layer_map(norms),
        ),
    ]
    others = [other for other in known if other.key != entry.key]
    if others:
        sections.append(_nearest(entry, others))
    return sections


def _rank(values: Tensor) -> int:
    """How many singular values are more than rounding."""
    return int((values > values[:1] * 1e-4).sum())


def part_of(module: str) -> str:
    """The part of the network that a layer belongs to: a block, and what kind of layers of it."""
    _, *inside = module.split(".")
    return ".".join(inside[: 2 if inside[0].startswith("mid") else 3]) or module


def _layer_map(norms: Mapping[str, float]) -> Figure:
    parts: dict[str, float] = {}
    for module, norm in norms.items():
        parts[part_of(module)] = (parts.get(part_of(module), 0.0) ** 2 + norm**2) ** 0.5
    return bars("norm of the update", list(parts), {"": list(parts.values())})


def bars(label: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Figure:
    """Horizontal bars, one or two to a name."""
    height = 0.8 / len(series)
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.32 * len(names) * (1 if len(series) == 1 else 1.4)),
                                layout="constrained")  # fmt: skip
    for k, (name, values) in enumerate(series.items()):
        places = [-(row + (k - (len(series) - 1) / 2) * height) for row in range(len(names))]
        axis.barh(places, values, height * 0.92, color=("#4f46e5", "#f59e0b")[k], label=name)
    axis.set_yticks([-row for row in range(len(names))], names)
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axis.legend(frameon=False)
    return figure


def _nearest(entry: Entry, others: Sequence[Entry]) -> Section:
    """The sliders that it has most in common with."""
    pairs: Pairs = pairwise(updates([entry, *others]))
    shared = {other.key: k for k, other in enumerate(others, 1)}
    order = sorted(shared, key=lambda key: abs(float(pairs.cosine[0, shared[key]])), reverse=True)[:_NEAREST]
    return Section(
        "The sliders that it is most like",
        "The cosine is of whole updates; the other two say how much of the directions that they write and read is one.",
        ("slider", "cosine", "writes alike", "reads alike"),
        [[key, *(f"{float(table[0, shared[key]]):+.3f}" for table in (pairs.cosine, pairs.columns, pairs.rows))]
         for key in order],
    )  # fmt: skip
