"""Which settings train fastest: `python -m benchmarks.sweep`.

Every setting is our default with one thing changed, trained for the same number of steps, and read by the judge on
held-out prompts, off the clock.  What is measured already is kept in `<runs>/sweep.json` and not measured again.
Writes `docs/sweep.md` with a picture.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from jsonargparse import auto_cli

from benchmarks.results import Results, table
from benchmarks.speed_effect import Procedure, train
from benchmarks.speed_parts import base
from benchmarks.timing import clock
from sliders.concept import Concept
from sliders.console import hush_libraries
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.files import write_text
from sliders.report.drawing import save_figure
from sliders.training.states import Pool, Rollout

DEFAULT = Procedure()
SETTINGS: dict[str, dict[str, Procedure]] = {
    "states": {
        "default": DEFAULT,
        "all states kept": replace(DEFAULT, states=lambda: Pool(kept=None)),
        "kept 4": replace(DEFAULT, states=lambda: Pool(kept=4)),
        "8 trajectories": replace(DEFAULT, states=lambda: Pool(trajectories=8)),
        "refresh 20": replace(DEFAULT, states=lambda: Pool(refresh=20)),
        "refresh 34, no growth": replace(DEFAULT, states=lambda: Pool(refresh=34, growth=1.0)),
        "refresh 17, no growth": replace(DEFAULT, states=lambda: Pool(refresh=17, growth=1.0)),
        "never refreshed": replace(DEFAULT, states=lambda: Pool(refresh=10**9)),
        "fresh rollouts": replace(DEFAULT, states=lambda: Rollout(steps=12, guidance=1.0)),
    },
    "learning rate": {
        "default": DEFAULT,
        "lr 5e-4": replace(DEFAULT, lr=5e-4),
        "lr 1e-3": replace(DEFAULT, lr=1e-3),
        "lr 4e-3": replace(DEFAULT, lr=4e-3),
    },
    "scale and start": {
        "default": DEFAULT,
        "alpha 1": replace(DEFAULT, alpha=1.0),
        "alpha 16": replace(DEFAULT, alpha=16.0),
        "A a third": replace(DEFAULT, spread=1 / 3),
        "A three times": replace(DEFAULT, spread=3.0),
    },
    "batch": {
        "default": DEFAULT,
        "batch 4": replace(DEFAULT, data={"batch_size": 4}),
        "batch 16": replace(DEFAULT, data={"batch_size": 16}),
    },
}


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    effects = " ".join(f"{point['effect']:.2f}" for point in found["curve"])
    rate = found["effect"] / found["seconds"] * 60
    cost = {"seconds": found["seconds"], "evaluations": found["evaluations"]}
    return {"setting": name, "effect": effects, "drift": found["drift"], **cost, "effect a minute": rate}


def picture(curves: dict[str, dict[str, Any]], file: Path) -> None:
    """Effect over seconds of training, a panel for each thing that is changed."""
    figure, axes = plt.subplots(1, len(SETTINGS), figsize=(15, 3.8), sharey=True, layout="constrained")
    for axis, (what, settings) in zip(axes, SETTINGS.items(), strict=True):
        for name in settings:
            if name in curves:
                points = [(p["seconds"], p["effect"]) for p in curves[name]["curve"]]
                color = {"color": "#1f2328"} if name == "default" else {}
                axis.plot(*zip((0, 0), *points, strict=True), "o-", markersize=3, label=name, **color)
        axis.set(title=what, xlabel="seconds of training")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("effect between dials -1 and 1")
    save_figure(figure, file)


def main(
    runs: Path = Path("runs/sweep"),
    out: Path = Path("docs"),
    settings: list[str] | None = None,
    seed: int = 0,
    steps: int = 60,
    every: int = 30,
    pictures: int = 16,
    threads: int | None = None,
    processor_time: bool = False,
) -> None:
    """Measure, and write the table.

    Args:
        runs: where figures are kept.
        out: where `sweep.md` and `sweep.png` go.
        settings: which; all unless given.
        seed: of every training.
        steps: of every training.
        every: steps between two readings.
        pictures: held-out scenes that the effect is read on.
        threads: of this process; torch's own number unless given.
        processor_time: of this process instead of wall time, for a machine that others use; with one thread.
    """
    hush_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
    concept, judge = (
        Concept.load(Path("data/avatars/concepts/smile.yaml")),
        AttributeJudge.load(Path("data/avatars/judge.safetensors")),
    )
    results, backbone, now = Results(runs / "sweep.json"), base(), clock(processor_time)
    every_one = {name: how for group in SETTINGS.values() for name, how in group.items()}
    for name in settings or every_one:
        run = (backbone, judge, concept, every_one[name], seed, every, steps, pictures, runs, now, False)
        results.get(name, lambda run=run: train(*run))
    curves = {name: results.values[name] for name in every_one if name in results.values}
    body = table([row(name, found) for name, found in curves.items()])
    head = f"# Sweep\n\n`python -m benchmarks.sweep` measures this: smile, {steps} steps, our default with one thing "
    head += f"changed; effect (between dials -1 and 1) after every {every} steps and drift at the end, on {pictures} "
    head += "held-out scenes.\n\n![](sweep.png)\n\n"
    write_text(out / "sweep.md", head + body + "\n")
    picture(curves, out / "sweep.png")
    print(body)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
