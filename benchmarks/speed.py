"""Measure how fast training and dials are: `python -m benchmarks.speed [--sections "[step,dials]"]`.

Every figure is a median of interleaved runs; what is measured already is kept in `<runs>/speed.json` and not measured
again.  Writes `docs/speed.md` with a picture.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from jsonargparse import auto_cli

from benchmarks import speed_language, speed_parts
from benchmarks.results import Results, table
from benchmarks.speed_effect import DRIFT, EFFECT, PROCEDURES, train
from benchmarks.timing import clock
from sliders.concept import Concept
from sliders.console import hush_libraries
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.files import write_text
from sliders.report.drawing import save_figure

Section = Literal["step", "dials", "keys", "language", "language_training", "scaling", "start", "together", "effect"]
SECTIONS: dict[Section, str] = {
    "step": "Step cost, 16 rows, against the student's forward and backward alone",
    "dials": "Run-time dials on the embedded model, shared by all rows; `rows` gives every row a dial of its own",
    "keys": "The text's keys and values in a sampling step: below 5 %, so they are not kept from step to step",
    "language": "Tokens a second of SmolLM2-135M (dequantised from 4 bits) at batch 1",
    "language_training": "Training on SmolLM2-135M: the teacher's answers cached, against its passes in every step",
    "scaling": "Scaling over rank, batch, pool and prompts",
    "start": "From process start, seconds",
    "together": "Six sliders, seconds from process start",
    "effect": f"Training to effect: {EFFECT:g} between dials -1 and 1 on held-out prompts, drift at most {DRIFT:g}",
}
CONCEPTS = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")


def timed(command: list[str], processor_time: bool = False) -> float:
    """Seconds of a process: of the clock, or of all processors that it and its children use."""
    began = _used() if processor_time else time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (_used() if processor_time else time.perf_counter()) - began


def _used() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train_command(concept: str, runs: Path, *flags: str) -> list[str]:
    """A run of its own."""
    return [
        sys.executable,
        "train.py",
        "--config",
        f"configs/avatars/{concept}.yaml",
        "--runs",
        str(runs),
        "--overwrite",
        *flags,
    ]


def start(runs: Path) -> list[dict[str, Any]]:
    """To the first step, and to the slider of the default config, with its report."""
    one = ["--trainer.max_steps=1", "--trainer.callbacks=[]", "--model.states.trajectories=2", "--model.states.steps=1"]
    return [
        {"what": "one step on a pool of 2 states", "seconds": timed(train_command("smile", runs / "one", *one))},
        {
            "what": "the default smile config to the written slider",
            "seconds": timed(train_command("smile", runs / "quiet", "--trainer.callbacks=[]")),
        },
        {"what": "the same with probes and report", "seconds": timed(train_command("smile", runs / "whole"))},
    ]


def effects(runs: Path) -> list[float]:
    """What each slider's own report says it does, between dials -1 and 1; none for runs without a report."""
    found = []
    for name in CONCEPTS:
        for file in runs.glob(f"{name}*/metrics.json"):
            dose = json.loads(file.read_text())["slider"]
            found.append(dose["response"][dose["dials"].index(1)] - dose["response"][dose["dials"].index(-1)])
    return found


def together(runs: Path, workers: int, flags: list[str], processor_time: bool) -> list[dict[str, Any]]:
    """Six runs one after the other, against `sliders train-many`; how far their sliders' effects are apart."""
    places = {count: runs / f"many{count}" for count in sorted({1, workers})}
    for place in (runs / "alone", *places.values()):
        shutil.rmtree(place, ignore_errors=True)  # a finished run would not be trained again
    one_by_one = sum(timed(train_command(name, runs / "alone", *flags), processor_time) for name in CONCEPTS)
    found: list[dict[str, Any]] = [{"what": "six runs one after the other", "seconds": one_by_one, "ratio": 1.0}]
    files = "[" + ",".join(f"configs/avatars/{name}.yaml" for name in CONCEPTS) + "]"
    for count, place in places.items():
        command = [sys.executable, "-m", "sliders.cli.main", "train-many", files, "--runs", str(place)]
        seconds = timed([*command, "--workers", str(count), "--overrides", json.dumps(flags)], processor_time)
        what = f"train-many, {count} worker" + ("s" if count > 1 else "")
        found.append({"what": what, "seconds": seconds, "ratio": seconds / one_by_one})
        differences = [abs(a - b) for a, b in zip(effects(runs / "alone"), effects(place), strict=True)]
        found[-1]["effects apart"] = max(differences, default="")
    found[0]["effects apart"] = ""
    return found


def effect_rows(curves: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over seeds, and the ratio."""
    rows: list[dict[str, Any]] = []
    for name, found in curves.items():
        middle = {k: statistics.median(one[k] for one in found) for k in ("seconds", "evaluations", "step")}
        ends = {k: statistics.median(one[k] for one in found) for k in ("effect", "drift")}
        reached = f"{sum(one['reached'] for one in found)} of {len(found)}"
        rows.append({"procedure": name, **middle, **ends, "reached": reached})
    slow = {row["procedure"]: row["seconds"] for row in rows}.get("published", rows[0]["seconds"])
    for row in rows:
        row["times faster"] = slow / row["seconds"]
    return rows


def picture(shown: dict[str, Any], curves: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Effect over seconds of training, and the cost of K sliders."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for (name, found), color in zip(curves.items(), ("#8250df", "#1a7f37", "#bf8700"), strict=False):
        for k, one in enumerate(found):
            points = [(p["seconds"], p["effect"]) for p in one["curve"]]
            left.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=None if k else name)
    left.axhline(EFFECT, color="#d0d7de", zorder=0)
    left.set(title="training to effect", xlabel="seconds of training", ylabel="effect between dials -1 and 1")
    for row in ("ours / base", "diffusers / base"):
        points = [(r["sliders"], r[row]) for r in shown.get("dials", []) if r["pictures"] == 1]
        if points:
            right.plot(*zip(*points, strict=True), "o-", label=row.removesuffix(" / base"))
    right.axhline(1, color="#d0d7de", zorder=0)
    right.set(title="a picture with K sliders", xlabel="sliders", ylabel="times the base")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    save_figure(figure, file)


def main(
    sections: list[Section] | None = None,
    runs: Path = Path("runs/speed"),
    out: Path = Path("docs"),
    repeats: int = 3,
    seeds: int = 3,
    threads: int | None = None,
    processor_time: bool = False,
    counts: tuple[int, ...] = (1, 2, 4, 8, 16),
    batches: tuple[int, ...] = (1, 8),
    sampling_steps: int = 15,
    tokens: int = 64,
    workers: int = 2,
    run_flags: list[str] | None = None,
    procedures: tuple[str, ...] = ("published", "ours"),
    published_steps: int = 1000,
    our_steps: int = 200,
    pictures: int = 48,
) -> None:
    """Measure, and write the table.

    Args:
        sections: which; all unless given.
        runs: where figures and runs are kept.
        out: where `speed.md` and `speed.png` go.
        repeats: of every timing; the median counts.
        seeds: of training to effect.
        threads: of this process; torch's own number unless given.
        processor_time: of this process (of ``together``, of the runs) instead of wall time, for a machine that others
            use; with one thread. ``start`` is of the clock all the same.
        counts: of sliders at run time.
        batches: of pictures at run time.
        sampling_steps: of a picture.
        tokens: of a response.
        workers: of `sliders train-many`.
        run_flags: of the runs of ``together``, such as '["--trainer.max_steps=20"]'.
        procedures: of training to effect: ours, published, or "published, its own optimizer", which learns more slowly.
        published_steps: at which the published procedure gives up.
        our_steps: at which ours does.
        pictures: held-out scenes that the effect is read on.
    """
    hush_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
    results, now = Results(runs / "speed.json"), clock(processor_time)
    concept = Concept.load(Path("data/avatars/concepts/smile.yaml"))
    words = Concept.load(Path("data/text/concepts/sentiment.yaml"))
    wanted = list(sections or SECTIONS)
    single: dict[Section, Callable[[], Any]] = {
        "step": lambda: speed_parts.step_cost(concept, 100, repeats, now),
        "keys": lambda: speed_parts.text_keys(repeats, now),
        "language": lambda: speed_language.language([k for k in counts if k in (1, 4, 8)], tokens, repeats, now),
        "language_training": lambda: speed_language.language_training(words, 40, repeats, now),
        "scaling": lambda: speed_parts.scaling(concept, repeats, now),
        "start": lambda: start(runs),
        "together": lambda: together(runs, workers, run_flags or [], processor_time),
    }
    for section in wanted:
        if section in single:
            results.get(section, single[section])
    if "dials" in wanted:
        for batch in batches:
            results.get(
                f"dials {batch}", lambda b=batch: speed_parts.dials(counts, b, sampling_steps, repeats, 1000, now)
            )
    if "effect" in wanted:
        backbone, judge = speed_parts.base(), AttributeJudge.load(Path("data/avatars/judge.safetensors"))
        for seed in range(seeds):
            for name in procedures:
                steps, every = (our_steps, 10) if name == "ours" else (published_steps, 50)
                run = (backbone, judge, concept, PROCEDURES[name], seed, min(every, steps), steps, pictures, runs, now)
                results.get(f"effect {name} {seed}", lambda run=run: train(*run))
    shown = {name: results.values[name] for name in single if name in results.values}
    shown["dials"] = [row for key, rows in results.values.items() if key.startswith("dials ") for row in rows]
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in PROCEDURES:
        if found := [v for k, v in results.values.items() if k.rpartition(" ")[0] == f"effect {name}"]:
            curves[name] = found
    shown["effect"] = effect_rows(curves) if curves else []
    parts = [f"## {title}\n\n{table(shown[name])}\n" for name, title in SECTIONS.items() if shown.get(name)]
    where = (
        f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    head = "# Speed\n\n`python -m benchmarks.speed` measures this; steps, dials and language are medians "
    head += "of runs taken in turn, training to effect is a median over seeds, and whole runs are timed once. "
    head += f"Only the ratios mean something elsewhere. Last measured on {where}.\n\n![](speed.png)\n"
    write_text(out / "speed.md", "\n".join([head, *parts]))
    picture(shown, curves, out / "speed.png")
    print("\n".join(parts))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
