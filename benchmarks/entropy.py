"""Spectral entropy and trained sliders: `python -m benchmarks.entropy`.

Two questions, over every layer of the trained sliders in `runs/`: do larger low-rank updates make weights lower-rank,
and do updates grow better in weights of low entropy?  Writes `docs/entropy.md` and its figures.  Each slider's numbers
are kept in `runs/entropy/` as long as its file is the same.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.interference import AVATARS, LANGUAGE, found
from sliders import formats
from sliders.algebra.lowrank import LowRank
from sliders.algebra.spectra import entropy, singular_values
from sliders.console import hush_libraries
from sliders.evaluation.statistics import Estimate, bootstrap, rank_correlation
from sliders.files import write_text
from sliders.formats.checkpoint import Checkpoint
from sliders.report.drawing import plt, save_figure
from sliders.resources.fetch import fetch

SCALES = (1.0, 4.0, 16.0, 64.0)
"""Times the trained size at which the weights' entropy is looked at."""


@dataclass(frozen=True)
class Row:
    """One layer of one slider.

    Args:
        slider, layer: which.
        shape: of the unfolded weight.
        size: norm of the update over the weight's.
        before: spectral entropy of the weight, in nats.
        changes: of it by the update, at each of `SCALES`.
        by_chance: by a random update with the same singular values, at each.
        twin: cosine with the update of the slider's twin, trained with another seed; nan without one.
    """

    slider: str
    layer: str
    shape: tuple[int, int]
    size: float
    before: float
    changes: list[float]
    by_chance: list[float]
    twin: float

    @property
    def evenness(self) -> float:
        """The entropy over the largest that the weight's shape allows."""
        return self.before / math.log(min(self.shape))


def random_like(update: LowRank, seed: int) -> LowRank:
    """With the same singular values and random directions."""
    values = update.svd()[1]
    generator = torch.Generator().manual_seed(seed)
    up, down = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=values.dtype)).Q
        for n in (update.shape[0], update.A.shape[1])
    )
    return LowRank(up * values, down.T, (up.shape[0], down.shape[0]))


def rows_of(file: Path, twin: Path | None, base: Checkpoint, kept: Path, layers: int) -> list[Row]:
    """Up to so many layers of a slider, evenly over the model, from what was kept or measured."""
    slider, other = formats.load(file), formats.load(twin) if twin else None
    chosen = list(slider.update)[:: math.ceil(len(slider.update) / layers)]
    digest = hashlib.sha256(f"{SCALES} {other is not None} {chosen}".encode())
    for update in slider.update.values():
        digest.update(update.A.numpy().tobytes() + update.B.numpy().tobytes())
    key, place = digest.hexdigest()[:32], kept / f"{slider.name}.json"
    if place.exists() and (before := json.loads(place.read_text()))["key"] == key:
        return [Row(**row) for row in before["rows"]]
    rows: list[Row] = []
    for seed, module in enumerate(chosen):
        update = slider.update[module].unfolded().to(torch.float64)
        weight = base.layer(module)[0].flatten(1).double()
        own, chance, plain = update.dense(), random_like(update, seed).dense(), entropy(singular_values(weight))
        changes, by_chance = (
            [entropy(singular_values(weight + scale * moved)) - plain for scale in SCALES] for moved in (own, chance)
        )
        cosine = math.nan
        if other is not None and module in other.update:
            again = other.update[module].unfolded().to(torch.float64)
            cosine = float(update.inner(again) / (update.norm() * again.norm()))
        shape = (weight.shape[0], weight.shape[1])
        size = float(update.norm() / weight.norm())
        rows.append(Row(slider.name, module, shape, size, plain, changes, by_chance, cosine))
    write_text(place, json.dumps({"key": key, "rows": [asdict(row) for row in rows]}))
    return rows


def correlation(rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float], alike: bool) -> Estimate:
    """Spearman's over all layers of all sliders, with an interval over layers.

    Args:
        rows: a layer is drawn with all the sliders that change it, since they share the weight; those that fewer
            sliders change than others are left out.
        x, y: what is compared.
        alike: compare with layers of one shape and one slider alone, by the difference from their mean.
    """
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.slider, tuple(row.shape)) if alike else None, []).append(row)
    means = {key: [float(np.mean([of(row) for row in part])) for of in (x, y)] for key, part in groups.items()}
    by_layer: dict[str, list[tuple[float, float]]] = {}
    for key, part in groups.items():
        for row in part:
            by_layer.setdefault(row.layer, []).append((x(row) - means[key][0], y(row) - means[key][1]))
    most = max(map(len, by_layer.values()))
    table = torch.tensor([own for own in by_layer.values() if len(own) == most], dtype=torch.float64)

    def statistic(index: Tensor) -> Tensor:
        drawn = table[index].flatten(1, 2)
        return rank_correlation(drawn[..., 0], drawn[..., 1])

    return bootstrap(statistic, len(table), draws=500)


def figures(rows: Sequence[Row]) -> tuple[Figure, Figure]:
    """The change of entropy over the size of the update, and the size over the weight's entropy."""
    names = list(dict.fromkeys(row.slider for row in rows))
    first, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    second, where = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for name in names:
        own = [row for row in rows if row.slider == name]
        axes[0].plot([r.size for r in own], [r.changes[0] for r in own], ".", markersize=4, label=name)
        where.plot([r.evenness for r in own], [r.size for r in own], ".", markersize=4, label=name)
    for label, of, style in (("trained", "changes", "o-"), ("random directions", "by_chance", "s--")):
        table = np.array([getattr(row, of) for row in rows])
        low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0)
        axes[1].plot(SCALES, middle, style, label=label)
        axes[1].fill_between(SCALES, low, high, alpha=0.2)
    axes[0].axhline(0, color="#8d96a3", linewidth=1)
    axes[0].set(xscale="log", xlabel="|update| / |weight|", ylabel="change of spectral entropy, nats")
    axes[1].axhline(0, color="#8d96a3", linewidth=1)
    axes[1].set(xscale="log", yscale="symlog", xlabel="times the trained size", ylabel="the same, median and quartiles")
    axes[1].set_yscale("symlog", linthresh=1e-3)
    where.set(yscale="log", xlabel="spectral entropy of W over its largest", ylabel="|update| / |weight|")
    for axis in (*axes, where):
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    where.legend(frameon=False, fontsize=7)
    return first, second


def _list(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _verdict(estimate: Estimate, positive: str, negative: str) -> str:
    if estimate.low > 0 or estimate.high < 0:
        return f"{positive if estimate.low > 0 else negative} ({estimate})"
    return f"no relation is shown ({estimate})"


def page(title: str, short: str, rows: Sequence[Row]) -> list[str]:
    """A model's part of the page."""
    sliders = list(dict.fromkeys(row.slider for row in rows))
    below = sum(row.changes[0] < row.by_chance[0] for row in rows) / len(rows)
    falls, by_chance = ((np.array([getattr(row, of) for row in rows]) < 0).mean(0) for of in ("changes", "by_chance"))
    twins = [row for row in rows if not math.isnan(row.twin)]
    asked: list[tuple[str, Sequence[Row], Callable[[Row], float], Callable[[Row], float]]] = [
        ("size, change of entropy", rows, lambda r: r.size, lambda r: r.changes[0]),
        ("size, change of entropy beyond a random update's", rows, lambda r: r.size,
         lambda r: r.changes[0] - r.by_chance[0]),
        ("entropy of W, size", rows, lambda r: r.evenness, lambda r: math.log(r.size)),
        ("entropy of W, cosine of twins", twins, lambda r: r.evenness, lambda r: r.twin),
    ]  # fmt: skip
    found = {label: [correlation(of, x, y, alike) for alike in (False, True)] for label, of, x, y in asked if of}
    lower = _verdict(
        found["size, change of entropy"][1], "larger updates raise entropy more", "larger updates lower entropy more"
    )
    grow = _verdict(
        found["entropy of W, size"][1], "updates grow larger in even weights", "updates grow larger in uneven weights"
    )
    return [
        f"## {title}",
        "",
        f"{len(rows)} layers of {len(sliders)} sliders ({', '.join(sliders)}).",
        "",
        f"![change of entropy over size](entropy_{short}_size.png)",
        "",
        "**Do larger low-rank updates make weights lower-rank?** At "
        f"{', '.join(f'{scale:g}' for scale in SCALES)} times the trained size the update lowers the weight's spectral "
        f"entropy in {_list(falls)} of the layers, and one with random directions in {_list(by_chance)}. At the "
        f"trained size it ends lower with the trained directions than with random ones in {below:.0%} of them. Among "
        f"layers of one shape and slider, {lower}.",
        "",
        f"![size over entropy](entropy_{short}_where.png)",
        "",
        f"**Do updates train faster in low-entropy weights?** Among layers of one shape and slider, {grow}."
        + (
            " How alike two seeds' updates are, which is how much of an update is the concept's: "
            + _verdict(
                found["entropy of W, cosine of twins"][1],
                "twins are more alike in even weights",
                "twins are more alike in uneven weights",
            )
            + "."
            if twins
            else ""
        ),
        "",
        "| Spearman of | all layers | among layers of one shape and slider |",
        "|---|---|---|",
        *(f"| {label} | {whole} | {alike} |" for label, (whole, alike) in found.items()),
        "",
    ]


INTRODUCTION = """# Spectral entropy of weights and their updates

Spectral entropy is that of a matrix's singular values as shares of their sum: `exp` of it is an effective number of
directions. All is measured on layers of the trained sliders, the update at dial 1 unless said otherwise. 'Random'
has the same singular values and random directions. Intervals are over layers (95 %, a layer with all its sliders drawn
together). A correlation over layers is no experiment: what else goes with a weight's entropy goes with it here.
Written by `python -m benchmarks.entropy`.
"""


def main(
    runs: Path = Path("runs"),
    out: Path = Path("docs"),
    twins: Path = Path("runs/interference"),
    layers: int = 80,
) -> None:
    """Measure all sliders of each model.

    Args:
        runs: where the sliders are, and what is kept.
        out: where `entropy.md` and its figures go.
        twins: where `benchmarks.interference` keeps the same sliders trained with another seed.
        layers: at most so many of each slider, evenly over the model.
    """
    hush_libraries()
    torch.set_num_threads(1)
    lines = [INTRODUCTION]
    models = (
        ("Avatars", "avatars", AVATARS, lambda: Path("data/avatars/model")),
        ("SmolLM2-135M-Instruct, dequantised from 4 bits", "smollm2", LANGUAGE, lambda: fetch("smollm2")),
    )
    for title, short, names, place in models:
        if not (files := found(runs, names)):
            continue
        base, rows = Checkpoint(place()), list[Row]()
        for file in files:
            name = f"{file.stem}_seed1"
            again = [p for p in (twins / short / "twins" / name).glob(f"{name}*") if p.suffix in ("", ".safetensors")]
            rows += rows_of(file, again[0] if again else None, base, runs / "entropy", layers)
        for figure, kind in zip(figures(rows), ("size", "where"), strict=True):
            save_figure(figure, out / f"entropy_{short}_{kind}.png")
        lines += page(title, short, rows)
        print("\n".join(lines[-30:]), flush=True)
    write_text(out / "entropy.md", "\n".join(lines))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
