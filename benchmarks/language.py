"""Train and measure every concept of the small language model: `python -m benchmarks.language`.

For each concept it trains the slider (a run that is already there is kept), measures it on held-out
messages, and measures a steering vector of the same concept in the same way: what it costs to reach the slider's effect
with the vector.  Writes `docs/language_table.md` and a picture for each concept.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import auto_cli

from sliders.algebra.edit import Affine
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.steering import fit_steering
from sliders.evaluation.texts.dose import TextDose, evaluate_text
from sliders.evaluation.texts.report import text_dose_figure
from sliders.evaluation.texts.sampling import TextSampling
from sliders.files import write_text
from sliders.formats import peft
from sliders.formats.metadata import concept_of
from sliders.report.drawing import save_figure
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked

CONCEPTS = ("sentiment", "formality", "verbosity", "confidence", "pirate")
DIALS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
SHOWN = (-2.0, -1.0, 0.0, 1.0, 2.0)
HEAD = """# Sliders of SmolLM2-135M-Instruct, beside steering vectors: the tables

Written by `python -m benchmarks.language`; [language.md](language.md) says what they show. Each dial is measured on
{prompts} held-out messages, the same messages and seeds at every position. Columns with five numbers are at dials
−2 −1 0 1 2.

- score: which one it is (`sliders/evaluation/texts/scores.py`), and its mean over what the model says
- training: seconds, by the clock
- Spearman: rank correlation of the dial and the mean score, over nine dials for {thorough} and over five otherwise
- perplexity: of neutral text (`data/text/neutral.txt`), which has nothing to do with the concept
- KL to base: mean Kullback-Leibler divergence from the base on that text, in nats a token
- repetition: share of a response's trigrams that it has said before
- log-odds: log-probability a token of the first 24 responses, as the base gives it under the positive
  instructions, less that under the negative ones

"""
EQUAL = """
At equal effect: the coefficient at which the steering vector of the same concept reaches the slider's score, between
{weakest:g} and {strongest:g} (read off the line between two measured ones), and what it costs there. Where the
slider moves its score to the wrong side of the base's, there is no effect to compare.

"""


def train(name: str, runs: Path) -> Path:
    """The PEFT folder of a config's slider, trained if it is not there."""
    if not (runs / name / "metrics.json").exists():
        command = [
            sys.executable,
            "train.py",
            "--config",
            f"configs/smollm2/{name}.yaml",
            "--runs",
            str(runs),
            "--overwrite",
        ]
        subprocess.run(command, check=True)
    return runs / name / name


def measure_vector(
    backbone: CausalLMBackbone,
    vector: Affine,
    concept: Concept,
    strengths: Sequence[float],
    prompts: int,
    how: TextSampling,
) -> TextDose:
    """The same measurement with the steering vector, whose dial is its coefficient."""
    return evaluate_text(backbone, lambda d: baked(backbone, vector * float(d[0])), concept, strengths, prompts, how)


def at_effect(dose: TextDose, response: float) -> tuple[float, float, float] | None:
    """(coefficient, perplexity, repetition) where the dose first reaches a response on the way out from 0."""
    zero = dose.dials.index(0.0)
    side = range(zero, len(dose.dials)) if response > dose.response[zero] else range(zero, -1, -1)
    for a, b in zip(side, list(side)[1:], strict=False):
        low, high = dose.response[a], dose.response[b]
        if low != high and min(low, high) <= response <= max(low, high):
            t = (response - low) / (high - low)
            found = [x[a] + t * (x[b] - x[a]) for x in (dose.dials, dose.perplexity, dose.repetition)]
            return found[0], found[1], found[2]
    return None


def load_or_measure(file: Path, measure: Callable[[], TextDose]) -> TextDose:
    """A measurement that is kept in a file."""
    if file.exists():
        return TextDose(**json.loads(file.read_text()))
    dose = measure()
    write_text(file, json.dumps(dose.to_dict(), indent=1))
    return dose


def rows(slider: TextDose, vector: TextDose, seconds: float) -> tuple[str, list[str]]:
    """The concept's line of the table, and its lines of the comparison at equal effect."""

    def at(values: Sequence[float], digits: int = 2) -> str:
        return " ".join(f"{values[slider.dials.index(d)]:.{digits}f}" for d in SHOWN)

    line = [slider.concept, slider.score, f"{seconds:.0f} s", at(slider.response), f"{slider.spearman:.2f}"]
    line += [at(slider.perplexity, 1), at(slider.divergence, 3), at(slider.repetition, 3), at(slider.log_odds)]
    compared = []
    base = slider.response[slider.dials.index(0.0)]
    for dial in (-2.0, -1.0, 1.0, 2.0):
        k = slider.dials.index(dial)
        own = f"{slider.perplexity[k]:.1f}, {slider.repetition[k]:.3f}"
        other = at_effect(vector, slider.response[k])
        if (slider.response[k] - base) * dial < 0:
            cells = [f"— (score {'below' if dial > 0 else 'above'} the base's)", "—"]
        elif other is None:
            cells = ["not reached"] * 2
        else:
            cells = [f"{other[0]:+.2f}", f"{other[1]:.1f}, {other[2]:.3f}"]
        compared.append(
            " | ".join([f"| {slider.concept}", f"{dial:+g}", f"{slider.response[k]:.2f}", own, *cells]) + " |"
        )
    return "| " + " | ".join(line) + " |", compared


def main(
    runs: Path = Path("runs"),
    out: Path = Path("docs"),
    prompts: int = 64,
    concepts: Sequence[str] = CONCEPTS,
    thorough: Sequence[str] = ("sentiment",),
    blocks: Sequence[int] = (8, 12, 16, 20),
    strengths: Sequence[float] = (-3, -1.5, -0.5, 0, 0.5, 1.5, 3),
) -> None:
    """Measure all concepts.

    Args:
        runs: where the runs are, or are made.
        out: where `language_table.md` and the pictures go.
        prompts: held-out messages at each dial.
        concepts: which.
        thorough: of these, those measured at nine dials; of the others the run's own report at five is used.
        blocks: where steering vectors are added.
        strengths: coefficients of the steering vectors.
    """
    backbone = CausalLMBackbone()
    backbone.load()
    table, comparison = [], []
    for name in concepts:
        slider = peft.load(train(name, runs))
        concept = concept_of(slider)
        how = TextSampling(tokens=96 if name == "verbosity" else 40)
        if name in thorough:
            with attach(backbone, [slider]) as dials:
                dose = load_or_measure(
                    runs / name / "evaluation" / "slider.json",
                    lambda c=concept, h=how, d=dials, n=name: evaluate_text(
                        backbone, lambda v: d.turned({n: v}), c, DIALS, prompts, h
                    ),
                )
        else:
            dose = TextDose(**json.loads((runs / name / "metrics.json").read_text()))
        vector = fit_steering(backbone, concept, list(blocks))
        steered = load_or_measure(
            runs / name / "evaluation" / "vector.json",
            lambda c=concept, h=how, v=vector: measure_vector(backbone, v, c, strengths, prompts, h),
        )
        line, compared = rows(dose, steered, json.loads(slider.metadata["sliders.training"])["seconds"])
        table.append(line)
        comparison += compared
        print(line, *compared, sep="\n", flush=True)
        save_figure(text_dose_figure({"slider": dose, "steering vector": steered}), out / f"{name}_dose_response.png")
    head = "| concept | score | training | score at −2 −1 0 1 2 | Spearman | perplexity of neutral text "
    head += "| KL to base | repetition | log-odds |"
    second = "| concept | dial | score | slider: perplexity, repetition | vector's coefficient | its, at that score |"
    above = HEAD.format(prompts=prompts, thorough=", ".join(thorough) or "none")
    between = EQUAL.format(weakest=min(strengths), strongest=max(strengths))
    lines = [head, "|---" * 9 + "|", *table, between + second, "|---" * 6 + "|", *comparison]
    write_text(out / "language_table.md", above + "\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    auto_cli(main, as_positional=False)
