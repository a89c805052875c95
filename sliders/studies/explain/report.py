"""What was found of an update, for people: its verdict, spectra, layer map, nearest sliders, and what it reads."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from matplotlib.figure import Figure

from sliders.algebra.change import Change, Effect
from sliders.algebra.explain import Verdict
from sliders.algebra.nearest import Nearest
from sliders.report.drawing import plt
from sliders.report.html_page import Report, Section
from sliders.studies.explain.reader import Ranking

_PLACE = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+|(?:layers|h|blocks)\.\d+)")
_KINDS = {
    "cross-attention": r"\.(attn2|encoder_attn|cross_attn)\.",
    "attention": r"\.(attn1?|self_attn|attention|self_attention)\.",
    "feed-forward": r"\.(mlp|ff|ffn|feed_forward)\.",
    "convolution": r"conv",
}
_ROLES = {"q": r"to_q|q_proj|query", "k": r"to_k|k_proj|key", "v": r"to_v|v_proj|value", "o": r"to_out|o_proj|out_proj"}
_SHOWN = 12
"""Layers that a table or a picture of spectra shows: those with the largest updates."""


def place(module: str) -> tuple[str, str]:
    """A layer's block and its kind of layer, from its name."""
    component, _, rest = module.partition(".")
    found = _PLACE.search(rest)
    kind = next((name for name, pattern in _KINDS.items() if re.search(pattern, module)), "other")
    role = next((f" {name}" for name, pattern in _ROLES.items() if re.search(rf"\.({pattern})", module)), "")
    return f"{component} {found[1]}" if found else component, f"{kind}{role}"


def spectrum_figure(changes: Sequence[Change]) -> Figure:
    """Singular values of the largest updates, over what noise could make of them."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    longest = max(len(change.spectrum.values) for change in changes)
    for change in changes:
        spectrum = change.spectrum
        values = np.maximum(spectrum.values.numpy() / (spectrum.threshold or 1.0), 1e-6)
        axis.plot(range(1, len(values) + 1), values, ".-", linewidth=0.8, markersize=3, label=change.module)
    axis.axhline(1, color="#d1495b", linestyle="--", linewidth=1)
    axis.set(
        yscale="log",
        xscale="log" if longest > _SHOWN else "linear",
        xlabel="singular value, largest first",
        ylabel="over the noise threshold",
    )
    axis.legend(frameon=False, fontsize=6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def map_figure(sizes: dict[tuple[str, str], float]) -> Figure:
    """The size of the update by block and kind of layer, relative to the weights."""
    blocks, kinds = (list(dict.fromkeys(key[i] for key in sizes)) for i in (0, 1))
    table = np.array([[sizes.get((block, kind), np.nan) for kind in kinds] for block in blocks])
    figure, axis = plt.subplots(figsize=(3 + 0.75 * len(kinds), 1.8 + 0.28 * len(blocks)), layout="constrained")
    image = axis.imshow(table, cmap="Blues", vmin=0, aspect="auto")
    axis.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right")
    axis.set_yticks(range(len(blocks)), blocks, fontsize=8)
    figure.colorbar(image, ax=axis, label="|update| / |weight|")
    return figure


def entropy_figure(effects: Sequence[Effect]) -> Figure:
    """Spectral entropy of each weight before and what the update adds to it."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axis.axhline(0, color="#8d96a3", linewidth=1)
    axis.plot([e.before for e in effects], [e.after - e.before for e in effects], "o", color="#30638e", markersize=4)
    axis.set(xlabel="spectral entropy of W before, nats", ylabel="change by the update")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def bars(ranking: Sequence[tuple[str, float]], label: str) -> Figure:
    """The first of a ranking, as bars."""
    figure, axis = plt.subplots(figsize=(7, 0.8 + 0.27 * len(ranking)), layout="constrained")
    names = [name if len(name) < 70 else f"{name[:69]}…" for name, _ in ranking]
    axis.barh(range(len(names)), [value for _, value in ranking], color="#30638e")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def layer_map(changes: Sequence[Change]) -> dict[tuple[str, str], float]:
    """Root of the sum of squares over the layers of each block and kind, relative to their weights.

    Layers whose weight is not known are left out.
    """
    moved, whole = defaultdict(float), defaultdict(float)
    for change in changes:
        if change.weight is not None:
            moved[place(change.module)] += change.spectrum.norm**2
            whole[place(change.module)] += float(change.weight.double().square().sum())
    return {key: math.sqrt(value / whole[key]) if whole[key] else 0.0 for key, value in moved.items()}


def report(
    title: str,
    note: str,
    changes: Sequence[Change],
    verdict: Verdict,
    effects: Sequence[Effect],
    near: Nearest | None,
    rankings: Sequence[Ranking],
    others: dict[str, float],
) -> Report:
    """All that was found.

    Args:
        title: of the page.
        note: what was compared with what.
        changes: of the layers.
        verdict: on them.
        effects: on the weights of these layers, or of the most changed; none where the base is not known.
        near: the nearest sliders, where a library was given.
        rankings: what it reads and writes, where the model was run.
        others: relative changes of parameters that are no layer's.
    """
    made = Report(title, note, "explain")
    largest = sorted(changes, key=lambda change: -change.spectrum.norm)[:_SHOWN]
    made.sections += [*_verdict(verdict), *([_spectra(largest)] if largest else [])]
    if sizes := layer_map(changes):
        made.sections.append(
            Section(
                "Where it is",
                f"The darker, the larger the update relative to the weights there. It is largest in "
                f"{' '.join(max(sizes, key=lambda key: sizes[key]))}.",
                figure=map_figure(sizes),
            )
        )
    if effects:
        made.sections.append(_effects(effects))
    if near:
        made.sections.append(_nearest(near))
    for ranking in rankings:
        first = ranking.entries[:_SHOWN]
        made.sections.append(
            Section(
                ranking.title,
                ranking.says,
                ("", "number"),
                [[name, f"{value:.3g}"] for name, value in first],
                bars(first, ranking.title.lower()) if first else None,
            )
        )
    if others:
        rows = [[name, f"{value:.2g}"] for name, value in sorted(others.items(), key=lambda item: -item[1])[:_SHOWN]]
        says = "Parameters such as norms' scales that changed as well; they are in none of the parts above."
        made.sections.append(Section("Beside the layers", says, ("parameter", "relative change"), rows))
    made.data |= {
        "kind": verdict.kind,
        "parts": [{**asdict(part), "method": part.method, "rank": part.rank} for part in verdict.parts],
        "alignment": asdict(verdict.alignment) if verdict.alignment else None,
        "hypotheses": [{**asdict(fit), "gain": fit.gain} for fit in verdict.tried],
        "layers": {change.module: _layer(change) for change in changes},
        "effects": [asdict(effect) for effect in effects],
        "nearest": asdict(near) if near else None,
        "reads": [asdict(ranking) for ranking in rankings],
        "others": others,
    }
    return made


def _layer(change: Change) -> dict[str, object]:
    spectrum = change.spectrum
    return {
        "shape": change.shape,
        "rank": spectrum.rank,
        "norm": spectrum.norm,
        "values": spectrum.values[:64].tolist(),
        "threshold": spectrum.threshold,
        "rounding": spectrum.rounding,
        "kept": spectrum.kept,
        "moves_bias": change.moves_bias,
    }


def _verdict(verdict: Verdict) -> list[Section]:
    parts = verdict.parts
    if not parts:
        return [Section("What it is", "Nothing differs: no layer of the two models has other weights.")]
    rows = [
        [p.kind, str(len(p.modules)), str(p.rank), f"{p.share:.1%}", p.method, ", ".join(p.also) or "none"]
        for p in parts
    ]
    made = [
        Section(
            "What it is",
            " ".join(f"{part.kind.capitalize()}: {part.evidence}" for part in parts[:3]),
            ("kind", "layers", "rank", "share", "made by", "not told apart from"),
            rows,
        )
    ]
    tried = sorted(verdict.tried, key=lambda fit: (-fit.gain, fit.residual / fit.chance))[:_SHOWN]
    if tried:
        says = (
            "What each hypothesis leaves of the update, and what it would leave of a random one. A hypothesis holds "
            "where it leaves less than a tenth of that; 'saved' is how many numbers fewer describe the update then."
        )
        rows = [
            [fit.kind, _where(fit.modules), str(fit.rank), f"{fit.residual:.2g}", f"{fit.chance:.2g}", f"{fit.saved:,}",
             f"{fit.gain:.0f}"]
            for fit in tried
        ]  # fmt: skip
        headings = ("hypothesis", "layers", "rank", "left", "by chance", "saved", "nats")
        made.append(Section("What was tried", says, headings, rows))
    return made


def _where(modules: Sequence[str]) -> str:
    return modules[0] if len(modules) == 1 else f"{len(modules)} together"


def _spectra(largest: Sequence[Change]) -> Section:
    rows = [
        [
            change.module,
            str(change.spectrum.rank),
            f"{change.spectrum.norm:.3g}",
            f"{change.spectrum.threshold:.2g}",
            "none below" if math.isinf(change.spectrum.gap) else f"{change.spectrum.gap:.3g}",
            f"{change.spectrum.kept:.1%}",
        ]
        for change in largest
    ]
    says = (
        f"Singular values of the {len(largest)} largest updates, each over its own noise threshold (dashed): what lies "
        "above is the rank. The threshold is what rounding of the stored weights can make, or where all lie above "
        "that, Gavish and Donoho's for noise as large as the smaller half of the values."
    )
    headings = ("layer", "rank", "norm", "threshold", "gap", "share of the norm")
    return Section("How many directions", says, headings, rows, spectrum_figure(largest))


def _effects(effects: Sequence[Effect]) -> Section:
    largest = sorted(effects, key=lambda effect: -effect.relative)[:_SHOWN]
    lower = sum(effect.after < effect.before for effect in effects)
    new = sum(effect.intruders for effect in effects)
    rows = [
        [e.module, f"{e.relative:.3f}", f"{e.entropy:.2f}", f"{e.before:.3f}", f"{e.after - e.before:+.4f}",
         str(e.intruders)]
        for e in largest
    ]  # fmt: skip
    says = (
        f"Spectral entropy is lower the fewer directions a weight uses. The update lowers it in {lower} of the "
        f"{len(effects)} weights that were compared. Intruders are singular vectors among a weight's first ten that "
        f"were not there before (cosine below 0.5 to all): {new} in all."
    )
    headings = ("layer", "|update| / |W|", "entropy of it", "of W before", "change", "intruders")
    return Section("What it does to the weights' spectra", says, headings, rows, entropy_figure(effects))


def _nearest(near: Nearest) -> Section:
    first, closest = near.neighbours[0], max(near.neighbours, key=lambda one: one.columns)
    rows = [
        [n.name, f"{n.cosine:+.3f}", f"{n.columns:.3f}", f"{n.rows:.3f}", f"{n.interference:.3f}",
         f"{n.coefficient:+.3f}"]
        for n in near.neighbours
    ]  # fmt: skip
    says = (
        f"The nearest is {first.name!r}, with cosine {first.cosine:+.3f}; by the subspaces that are written it is "
        f"{closest.name!r}. The mixture of all that is nearest by least "
        f"squares leaves {near.residual:.1%} of the update's norm. 'Written' and 'read' are mean squared cosines of "
        "the principal angles between the subspaces."
    )
    headings = ("slider", "cosine", "written", "read", "weighted", "in the mixture")
    figure = bars([(n.name, abs(n.cosine)) for n in near.neighbours[:_SHOWN]], "cosine, absolute")
    return Section("Nearest known sliders", says, headings, rows, figure)
