"""What the Algebra tab shows of sliders and edits: what they share and do to each other, their dials, what they are."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sliders.algebra.pairs import pairwise
from sliders.algebra.slider import Interpolated, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.concept import Concept, Measure
from sliders.errors import SliderError
from sliders.evaluation.base_states import BaseStates, Behaviour
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import dose_response_figure, heldout_prompts
from sliders.evaluation.pictures.sampling import Sampling, Scene, scenes
from sliders.formats.metadata import concept_of
from sliders.page.edits import added, gap_of_orders, translation
from sliders.page.library import ShownDial
from sliders.page.painting import Progress, Row, paint
from sliders.report.drawing import dial_label
from sliders.report.html_page import Section, heatmap
from sliders.runtime.attach import attach
from sliders.runtime.layers import layer_weights
from sliders.studies.behavioural_laws import REACH, STEP, STRAIGHT, MeasuredLaw, interactions, matrix, path
from sliders.studies.explain.reads import refusal
from sliders.studies.explain.study import Effort, changes_of, study
from sliders.studies.laws.report import paths_figure

_EFFORT = Effort(words=40, prompts=48, spectra=24)
"""About what a person waits for."""


def from_factors(model: nn.Module, entries: Sequence[ShownDial]) -> list[Section]:
    """Overlap, predicted interference and order gap: exact, without running the model.

    Args:
        model: whose weights say what an edit adds to them; of sliders alone they are not looked at.
        entries: two or more.
    """
    if len(entries) < 2:
        raise SliderError("choose two sliders or more; these pictures compare pairs")
    pairs = pairwise([Slider(entry.key, translation(added(model, entry.dial))) for entry in entries])
    names = [entry.key for entry in entries]
    gaps = torch.zeros(len(names), len(names), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(entries), 2):
        gaps[i, j] = gaps[j, i] = gap_of_orders(model, a.dial.at(1.0), b.dial.at(1.0))
    edits = any(isinstance(entry.dial, Interpolated) for entry in entries)
    return [
        Section(
            "Overlap",
            "The cosine of two updates as weights: 0: unrelated, 1: one and the same, below 0: they cancel."
            + (" Of an edit it is the update that it makes of this model's weights." if edits else ""),
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
            "and sums do not depend on the order: it is exactly 0 for them."
            + (" Edits multiply weights: it is that of both orders, one after the other." if edits else ""),
            figure=heatmap(gaps, names, "order gap"),
        ),
    ]


def measured(states: BaseStates, entries: Sequence[ShownDial], report: Progress) -> list[Section]:
    """What dials do together and alone, at states that the base visits; a slow part is told to ``report``."""
    names = [entry.key for entry in entries]
    half = round(REACH / STEP)
    asked = [{name: k * STEP} for name in names for k in range(-half, half + 1) if k]
    asked += [{a: 1.0, b: 1.0} for a, b in itertools.combinations(names, 2)]
    with attach(states.backbone, [entry.dial for entry in entries]) as attached:
        told = Behaviour(states, attached)
        for k, positions in enumerate(asked):
            report(k, len(asked), "positions of the dials")
            told.change(positions)
        paths = [path(told, name, {}) for name in names]
        pairs = interactions(told, names, {})
    where = f"at {len(states.base)} states of {states.scenes} scenes that the base visits"
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


def _two(laws: Sequence[MeasuredLaw]) -> list[MeasuredLaw]:
    """Oddness, and additivity on the positive side."""
    return [next(law for law in laws if law.law.startswith(start)) for start in ("oddness", "additivity to +")]


def order_in_time(
    backbone: DiffusionBackbone, entries: Sequence[ShownDial], wanted: Sequence[Scene], how: Sampling, report: Progress
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
    backbone: DiffusionBackbone,
    entry: ShownDial,
    judge: AttributeJudge,
    spare: Sequence[Scene],
    how: Sampling,
    report: Progress,
) -> Section:
    """What a judge says of pictures over the dial, on held-out scenes of the slider's own concept.

    What does not say what it is about, as edits and uploads do not, is painted on the ``spare`` scenes; what is shown
    is then what the judge saw change most on these very pictures.
    """
    concept = _judged(entry)
    measure = concept.measure if concept else None
    wanted = scenes(heldout_prompts(concept), len(spare)) if concept else spare
    low, high = entry.span
    dials = sorted({low, low / 2, 0.0, high / 2, high})
    rows = [Row(scene, {entry.key: dial}) for dial in dials for scene in wanted]
    pictures = paint(backbone, [entry.dial], rows, how, report).unflatten(0, (len(dials), len(wanted)))
    found = dose_response(judge, measure or _most_moved(judge, pictures, dials.index(0.0)), pictures, dials)
    chosen = "" if measure else f" {entry.key} does not say what it is about; this is what changed most of all."
    return Section(
        f"Dose and response: {entry.key}",
        f"Left: the judge's mean probability of {found.attribute} = {found.value} on {len(wanted)} scenes at each "
        f"dial. Right: the largest change of any other attribute.{chosen}",
        ("dial", f"{found.attribute} = {found.value}", "worst drift", "of"),
        [
            [dial_label(s), f"{mean:.2f} ± {error:.2f}", f"{drift.change:.3f}", f"{drift.attribute} {drift.value}"]
            for s, mean, error, drift in zip(found.dials, found.response, found.error, found.drift, strict=True)
        ],
        dose_response_figure(entry.key, {entry.key: found}),
    )


def _judged(entry: ShownDial) -> Concept | None:
    """Its concept, if it has one that says what a judge should look at."""
    known = entry.sides[-1]
    concept = concept_of(known) if "sliders.concept" in known.metadata else None
    return concept if concept and concept.measure and concept.measure.value else None


def _most_moved(judge: AttributeJudge, pictures: Tensor, zero: int) -> Measure:
    """The attribute's value whose mean probability over pictures ``[dials, n, 3, h, w]`` goes farthest from dial 0."""
    farthest: dict[tuple[str, str], float] = {}
    for name, read in judge.probabilities(pictures.flatten(0, 1)).items():
        means = read.unflatten(0, pictures.shape[:2]).mean(1)
        for value, change in zip(judge.values[name], (means - means[zero]).abs().amax(0).tolist(), strict=True):
            farthest[name, value] = change
    attribute, value = max(farthest, key=lambda key: farthest[key])
    return Measure(attribute, None, value)  # its scenes have been painted


def _weights(model: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias where updates are, on the CPU."""
    weight, bias = layer_weights(model, name)
    return weight.cpu(), None if bias is None else bias.cpu()


def explain(
    backbone: AbstractBackbone, entry: ShownDial, known: Sequence[ShownDial], report: Progress
) -> list[Section]:
    """What an update is, where it lies, what it is most like, and what it reads and writes, as `sliders explain` says.

    Args:
        backbone: the model that it changes, with nothing attached; it is run, and as it was afterwards.
        entry: whose update at dial 1 is looked at.
        known: what it is compared with.
        report: is told each part.
    """
    changes = changes_of(entry.dial, partial(_weights, backbone))
    library = [Slider(other.key, translation(added(backbone, other.dial))) for other in known]
    note, asked = f"{len(changes)} layers, on the weights of this page's model.", backbone
    if why := refusal(backbone):
        note, asked = f"{note} The model was not run: {why}.", None
    made = study(f"What {entry.key} changes", note, changes, library, asked, _EFFORT, told=report)
    return [Section(made.title, made.note), *made.sections]
