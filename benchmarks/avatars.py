"""Train and measure every concept of the embedded model: `python -m benchmarks.avatars`.

For each concept it trains the slider, measures it and its training-free oracle on the same held-out scenes, and writes
`docs/avatars_table.md` with the strips beside it.  What is already there is kept: remove `runs/NAME` to do it again.
"""

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import auto_cli
from PIL import Image

from sliders.backbones.unet import UNetBackbone
from sliders.evaluation.pictures.dose import DoseResponse, dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import Evaluation, dose_response_figure, evaluate_dial, write_report
from sliders.evaluation.pictures.sampling import Sampling, sample_oracle
from sliders.files import replacing, write_text
from sliders.formats import diffusers as slider_file
from sliders.formats.metadata import concept_of, number_of
from sliders.report.drawing import save_figure
from sliders.runtime.attach import attach

CONCEPTS = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")
DIALS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
ORACLE_DIALS = (-2.0, -1.0, 0.0, 1.0, 2.0)
MODEL, JUDGE = Path("data/avatars/model"), Path("data/avatars/judge.safetensors")
HEAD = """# Sliders of the embedded model, beside their oracles

Written by `python -m benchmarks.avatars`. Each dial is measured on {pictures} held-out scenes, the oracle on
{oracle_pictures} of them, with the same prompts and seeds at every position, {steps} sampling steps and guidance 4. The
oracle is the formula itself, followed while sampling: what a slider that had learnt its target perfectly would show.

- measured: the attribute that the judge reads, and the value whose mean probability stands at each dial
- η: of training, and of the oracle
- training: seconds, by the clock, with its pictures in between
- worst drift: the largest change of any other attribute's mean probability against dial 0, on the worse side
- Spearman: rank correlation of the dial and the slider's mean probability over {dials} dials

"""


def train(name: str, runs: Path) -> Path:
    """The run folder of a config, trained if it is not there."""
    folder = runs / name
    if not (folder / "metrics.json").exists():
        command = [
            sys.executable,
            "train.py",
            "--config",
            f"configs/avatars/{name}.yaml",
            "--runs",
            str(runs),
            "--overwrite",
        ]
        subprocess.run(command, check=True)
    return folder


def settings(model: Mapping[str, Any]) -> str:
    """The pool and the learning rate of a config's `model`; early ones name neither `growth` nor `kept`."""
    pool, kept = model["states"]["init_args"], model["states"]["init_args"].get("kept")
    growth = pool.get("growth", 1)
    anew = f"every {pool['refresh']} steps" if growth == 1 else f"after {pool['refresh']} steps"
    longer = "" if growth == 1 else f" and each one kept {growth:g} times as long as the one before"
    states = "all states" if kept is None else f"{kept} states"
    rate = model["optimizer"]["init_args"]["lr"]
    return f"a pool made anew {anew}{longer}, {states} of each trajectory kept, learning rate {rate:g}"


def how_trained(runs: Mapping[str, Path], base: Path = Path("configs/base.yaml")) -> str:
    """What the runs' `config.yaml` say of their training, and whether it is the present default."""
    default = settings(yaml.safe_load(base.read_text())["model"])
    found: dict[str, list[str]] = {}
    for name, folder in runs.items():
        found.setdefault(settings(yaml.safe_load((folder / "config.yaml").read_text())["model"]), []).append(name)
    lines = []
    for how, names in found.items():
        of = "The sliders" if len(found) == 1 else ", ".join(names)
        where = "[configs/base.yaml](../configs/base.yaml)"
        why = "[ADR 9](adr/0009-a-pool-is-kept-ever-longer.md) says why it changed"
        then = f"which is the default of {where}" if how == default else f"not with the default of {where}; {why}"
        lines.append(f"{of} were trained with {how}, {then}.")
    return "\n".join(textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False) for line in lines)


def row(name: str, eta: float, training: dict[str, Any], slider: DoseResponse, oracle: DoseResponse) -> str:
    """A line of the table."""

    def means(dose: DoseResponse) -> str:
        return " ".join(f"{dose.response[dose.at(d)]:.2f}" for d in ORACLE_DIALS)

    def drift(dose: DoseResponse) -> str:
        at = {d: max(dose.drift[dose.at(s * d)].change for s in (1, -1)) for d in (1.0, 2.0)}
        return f"{at[1.0]:.2f}, {at[2.0]:.2f}"

    measured = f"{slider.attribute} = {slider.value}"
    cells = [name, measured, f"{eta:g}", f"{training['seconds']:.0f} s", means(slider), means(oracle)]
    return "| " + " | ".join([*cells, drift(slider), drift(oracle), f"{slider.spearman:.2f}"]) + " |"


def main(
    runs: Path = Path("runs"), out: Path = Path("docs"), pictures: int = 64, oracle_pictures: int = 64, steps: int = 15
) -> None:
    """Measure all concepts.

    Args:
        runs: where the runs are, or are made.
        out: where `avatars_table.md` and the pictures go.
        pictures: held-out scenes at each dial.
        oracle_pictures: the same for the oracle.
        steps: of sampling, at guidance 4.
    """
    backbone, judge, how = UNetBackbone(str(MODEL)), AttributeJudge.load(JUDGE), Sampling(steps=steps)
    backbone.load()
    lines: list[str] = []
    folders = {name: train(name, runs) for name in CONCEPTS}
    for name, folder in folders.items():
        slider = slider_file.load(folder / f"{name}.safetensors")
        concept, eta = concept_of(slider), number_of(slider, "sliders.eta")
        training = json.loads(slider.metadata["sliders.training"])
        evaluation_folder = folder / "evaluation"
        if (evaluation_folder / "line.txt").exists():
            lines.append((evaluation_folder / "line.txt").read_text())
            continue
        with attach(backbone, [slider]) as dials:
            evaluation: Evaluation = evaluate_dial(
                backbone, lambda v, d=dials, n=name: d.turned({n: v}), concept, judge, eta, DIALS, pictures, how
            )
        assert evaluation.dose is not None
        assert concept.measure is not None
        made = sample_oracle(backbone, concept, eta, evaluation.wanted[:oracle_pictures], ORACLE_DIALS, how)
        oracle = dose_response(judge, concept.measure, made, ORACLE_DIALS)
        write_report(evaluation, evaluation_folder, name)
        write_text(evaluation_folder / "oracle.json", json.dumps(oracle.to_dict(), indent=1))
        figure = dose_response_figure(name, {"slider": evaluation.dose, "oracle": oracle})
        save_figure(figure, evaluation_folder / "dose_response.png")
        for picture in ("strip", "dose_response"):
            with replacing(out / f"{name}_{picture}.png") as new:
                Image.open(evaluation_folder / f"{picture}.png").quantize(128).save(new)
        lines.append(row(name, eta, training, evaluation.dose, oracle))
        write_text(evaluation_folder / "line.txt", lines[-1])
        print(lines[-1], flush=True)
    header = "| concept | measured | η | training | slider at −2 −1 0 1 2 | oracle at −2 −1 0 1 2 "
    header += "| slider's worst drift at ±1, ±2 | oracle's | Spearman |"
    head = HEAD.format(pictures=pictures, oracle_pictures=oracle_pictures, steps=steps, dials=len(DIALS))
    table = "\n".join([how_trained(folders), "", header, "|---" * 9 + "|", *lines])
    write_text(out / "avatars_table.md", head + table + "\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
