"""Measure the laws of a set of sliders at one level, and say in words what was found."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from sliders.algebra.laws import Law, inverse_residue, is_additive, is_group, is_invertible, is_transitive
from sliders.algebra.pairs import pairwise
from sliders.algebra.slider import NamedDial, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.evaluation.base_states import BaseStates, Behaviour
from sliders.formats.metadata import concept_of, number_of
from sliders.report.html_page import Report, Section, heatmap
from sliders.runtime.attach import attach
from sliders.runtime.layers import layer_weights
from sliders.studies.behavioural_laws import (
    STRAIGHT,
    MeasuredLaw,
    behavioural_order_gap,
    interactions,
    matrix,
    oracle_gap,
    path,
)
from sliders.studies.interference import advice, covariances, forecasts, remedies
from sliders.studies.laws.report import GAP_HEADINGS, gap_rows, gaps_figure, paths_figure, scatter_figure

FitSlider = Callable[[str, int, Slider | None], Slider]
"""Trains the named slider with a seed, on the base with another one where there is one."""


def weights(backbone: AbstractBackbone, dials: Sequence[NamedDial]) -> Report:
    """What follows from the factors alone; the model gives its weights for what rounding does to them."""
    note = "Level: weights. Exact, from the factors; nothing is run, and nothing here says what a model will do."
    report = Report("Laws of sliders: weights", note)
    sliders = [dial for dial in dials if isinstance(dial, Slider)]
    rows: list[tuple[str, str, Law]] = []
    for dial in dials:
        rows += [(dial.name, "one-parameter group", is_group(dial)), (dial.name, "additive", is_additive(dial))]
        rows.append((dial.name, "invertible", is_invertible(dial.at(1.0))))
    if len(sliders) > 2:
        rows.append(("all", "commuting is transitive", is_transitive({s.name: s.at(1.0) for s in sliders})))
    for slider in sliders:
        layers = {name: layer_weights(backbone, name)[0] for name in slider.update}
        for dtype, law in inverse_residue(slider.at(1.0), layers).items():
            rows.append((slider.name, f"restored in {str(dtype).removeprefix('torch.')}", law))
    report.data["laws"] = [{"of": name, "law": law, **asdict(found)} for name, law, found in rows]
    report.sections.append(
        Section(
            "Laws of each dial",
            "Sliders are translations: they commute, and each is a one-parameter group. A hinge is none across 0. "
            "'Restored' asks whether a slider merged into weights of that precision can be taken out again.",
            ("dial", "law", "holds", "fails by", "reason"),
            [[n, law, "yes" if found else "no", f"{found.value:.2g}", found.reason] for n, law, found in rows],
        )
    )
    if len(sliders) > 1:
        pairs = pairwise(sliders)
        names = pairs.names
        report.data["pairs"] = {"names": names} | {
            key: getattr(pairs, key).tolist() for key in ("norms", "cosine", "columns", "rows", "interference")
        }
        report.sections += [
            Section(
                "Do they add up or cancel?",
                "The signed cosine of the updates: near 0 they are unrelated as weights, near 1 one is the other.",
                figure=heatmap(pairs.cosine, names, "cosine", signed=True),
            ),
            Section(
                "Predicted interference",
                "0 where two sliders write orthogonal outputs or read orthogonal inputs in every layer; 1 for the same "
                "slider. It is a prediction from factors; the level 'behaviour' compares it with what is measured.",
                figure=heatmap(pairs.interference, names, "predicted interference"),
            ),
        ]
    return report


def behaviour(states: BaseStates, dials: Sequence[NamedDial], twins: Mapping[str, NamedDial]) -> Report:
    """What dials do to predictions; ``twins`` are re-trained ones by the name of whose twin each is."""
    chance = (
        "Grey, the null: the same between each slider and its twin, trained with another seed."
        if twins
        else "No twins were given, so that there is no null: a gap above 0 may be no more than another seed would make."
    )
    note = f"Level: behaviour. Predictions at {len(states.base)} states of {states.scenes} scenes of the base. {chance}"
    report = Report("Laws of sliders: behaviour", note)
    names = [dial.name for dial in dials]
    renamed = {name: f"{name} (twin)" for name in twins}
    with attach(
        states.backbone, [*dials, *(replace(twin, name=renamed[name]) for name, twin in twins.items())]
    ) as attached:
        told = Behaviour(states, attached)
        paths = [path(told, name, renamed) for name in names]
        pairs = interactions(told, names, renamed)
        oracles = _oracles(told, dials, renamed)
    laws = [law for one in paths for law in one.laws]
    report.data |= {"paths": [one.to_dict() for one in paths], "laws": [m.to_dict() for m in (*laws, *pairs, *oracles)]}
    report.sections += [
        Section(
            "How straight is each dial?",
            f"Left, how far a dial moves predictions; right, how far it leaves the line through 0, straight up to "
            f"{STRAIGHT:g}.",
            ("dial", "straight from", "to", "largest bend", "largest turn"),
            [
                [p.name, f"{p.straight[0]:g}", f"{p.straight[1]:g}", f"{max(p.bend):.2f}", f"{max(p.turn):.2f}"]
                for p in paths
            ],
            paths_figure(paths),
        ),
        Section("Laws of each dial", "0 where a law holds. " + chance, GAP_HEADINGS, gap_rows(laws), gaps_figure(laws)),
    ]
    if oracles:
        says = "The distance of dials at 1 from the formula itself, with all directions added and no slider trained."
        report.sections.append(
            Section("Against the oracle", says, GAP_HEADINGS, gap_rows(oracles), gaps_figure(oracles))
        )
    if pairs:
        table = matrix(pairs, names)
        says = (
            "How far two dials together are from the sum of what each does alone, relative to what they do. " + chance
        )
        report.sections.append(
            Section("Interaction of pairs", says, GAP_HEADINGS, gap_rows(pairs), heatmap(table, names, "interaction"))
        )
        report.data["interaction"] = {"names": names, "table": table.tolist()}
        _forecast(report, states, dials, pairs, table)
    return report


def _oracles(told: Behaviour, dials: Sequence[NamedDial], twins: Mapping[str, str]) -> list[MeasuredLaw]:
    """Of each slider that says its concept and eta, of all pairs, and of all together."""
    known = {d.name: d for d in dials if {"sliders.concept", "sliders.eta"} <= d.metadata.keys()}
    amounts = {name: (name, concept_of(dial), number_of(dial, "sliders.eta")) for name, dial in known.items()}
    sets = [list(c) for size in (1, 2) for c in itertools.combinations(known, size)]
    sets += [list(known)] if len(known) > 2 else []
    return [oracle_gap(told, [amounts[n] for n in names], twins, dict.fromkeys(names, 1.0)) for names in sets]


def _forecast(
    report: Report, states: BaseStates, dials: Sequence[NamedDial], pairs: Sequence[MeasuredLaw], table: Tensor
) -> None:
    """Predicted against measured, and what helps the pair that interacts most."""
    sliders = [dial for dial in dials if isinstance(dial, Slider)]
    if len(sliders) == len(dials) and len(sliders) > 2:
        modules = list(dict.fromkeys(name for slider in sliders for name in slider.update))
        said = []
        for label, metric in (("factors", None), ("factors and activations", covariances(states, modules))):
            for forecast in forecasts(pairwise(sliders, metric), table):
                report.data.setdefault("forecasts", []).append({"from": label, **forecast.to_dict()})
                said.append((label, forecast))
        shown = next(f for label, f in said if label == "factors" and f.by == "interference")
        report.sections.append(
            Section(
                "Predicted against measured interference",
                f"A point is a pair. With 'interference' from factors alone the rank correlation over {len(pairs)} "
                f"pairs is {shown.correlation} (p {shown.p:.2g}); the table has the other predictors.",
                ("predictor", "from", "Spearman [95 %]", "p"),
                [[f.by, label, str(f.correlation), f"{f.p:.2g}"] for label, f in said],
                scatter_figure(shown, [(one.of[0], one.of[1]) for one in pairs]),
            )
        )
    worst = max(pairs, key=lambda one: one.gap.value)
    a, b = (next(dial for dial in dials if dial.name == name) for name in worst.of)
    if isinstance(a, Slider) and isinstance(b, Slider):
        before, found = remedies(states, a, b)
        report.data["remedies"] = {"before": before.to_dict(), "after": [one.to_dict() for one in found]}
        report.sections.append(
            Section(
                "What helps the pair that interacts most",
                advice(before, found),
                ("remedy", "interaction", "of its effect kept"),
                [["none", str(before.gap), "1.00"]]
                + [[one.what, str(one.interaction.gap), f"{one.kept:.2f}"] for one in found],
            )
        )


def fitting(states: BaseStates, sliders: Sequence[Slider], fit: FitSlider, seeds: int) -> Report:
    """Does it matter which slider was trained first?  Seed 0 of what is trained on the bare base is ``sliders``."""
    report = Report(
        "Laws of sliders: order of fitting",
        f"Level: fitting. The second slider of a pair is trained on the base with the first one at dial 1, in both "
        f"orders, with {seeds} seeds. Both at dial 1 are then compared at {len(states.base)} states of {states.scenes} "
        "scenes of the base.",
    )
    alone = {s.name: [s, *(fit(s.name, seed, None) for seed in range(1, seeds))] for s in sliders}
    found: list[MeasuredLaw] = []
    benefit: list[list[str]] = []
    for a, b in itertools.combinations(alone, 2):
        first_a = [(one, fit(b, seed, one)) for seed, one in enumerate(alone[a])]
        first_b = [(one, fit(a, seed, one)) for seed, one in enumerate(alone[b])]
        found.append(behavioural_order_gap(states, a, b, first_a, first_b))
        benefit += _refitted(states, alone[a][0], alone[b][0], first_a[0][1], first_b[0][1])
    report.data |= {"laws": [one.to_dict() for one in found], "refitted": benefit}
    report.sections.append(
        Section(
            "Does the order of fitting matter?",
            "The distance between the two orders; grey, the null: between two seeds of one order. Where the gap is no "
            "larger than its null, which came first matters less than the seed.",
            GAP_HEADINGS,
            gap_rows(found),
            gaps_figure(found),
        )
    )
    if benefit:
        says = "Distance of both at dial 1 from the formula with both directions: trained apart, or one on the other."
        report.sections.append(Section("Does refitting help?", says, ("pair", "how", "oracle gap [95 %]"), benefit))
    return report


def _refitted(states: BaseStates, a: Slider, b: Slider, b_on_a: Slider, a_on_b: Slider) -> list[list[str]]:
    """The oracle gap of both, fitted apart and in either order; nothing where the concepts are not known."""
    if any(not {"sliders.concept", "sliders.eta"} <= slider.metadata.keys() for slider in (a, b)):
        return []
    amounts = [(str(k), concept_of(s), number_of(s, "sliders.eta")) for k, s in enumerate((a, b))]
    rows = []
    ways = {"apart": (a, b), f"{b.name} on {a.name}": (a, b_on_a), f"{a.name} on {b.name}": (a_on_b, b)}
    for how, pair in ways.items():
        with attach(states.backbone, [Slider(str(k), s.update) for k, s in enumerate(pair)]) as dials, torch.no_grad():
            gap = oracle_gap(Behaviour(states, dials), amounts, {}, {"0": 1.0, "1": 1.0})
        rows.append([f"{a.name} + {b.name}", how, str(gap.gap)])
    return rows
