"""One evaluation: pictures over the dial, what the judge says of them, and the files that keep it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.concept import Concept
from sliders.evaluation.pictures.dose import DoseResponse, Straightness, dose_response, straightness
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample_dial, sample_oracle, scenes
from sliders.files import write_text
from sliders.report.drawing import COLORS, dial_label, save_figure, save_strip
from sliders.runtime.dials import DialContext

STRIP_ROWS = 6


def heldout_prompts(concept: Concept) -> list[str]:
    """The prompts that the concept is measured on, or its target where it names none; see `Concept.heldout`."""
    return concept.heldout() or [concept.target]


def load_judge(file: Path | str, concept: Concept) -> AttributeJudge:
    """The judge of a file or a name, for a concept.

    Raises:
        SliderError: there is none, or it does not know what the concept is measured by.
    """
    judge = AttributeJudge.load(file)
    if concept.measure is not None:
        judge.column(concept.measure.attribute, concept.measure.value)
    return judge


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one slider.

    Args:
        concept: what it is about.
        eta: its strength; the oracle's too.
        dials: positions.
        wanted: the scenes, the same at each position.
        pictures: ``[dials, scenes, 3, h, w]``.
        dose: the judge's reading, where there is a judge and the concept says what to measure.
        oracle: the same of the training-free oracle.
        straight: of the dial, in prediction space.
    """

    concept: Concept
    eta: float
    dials: list[float]
    wanted: list[Scene]
    pictures: Tensor
    dose: DoseResponse | None = None
    oracle: DoseResponse | None = None
    straight: Straightness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "concept": self.concept.to_dict(),
            "eta": self.eta,
            "dials": self.dials,
            "scenes": [asdict(s) for s in self.wanted],
            "slider": self.dose.to_dict() if self.dose else None,
            "oracle": self.oracle.to_dict() if self.oracle else None,
            "straightness": asdict(self.straight) if self.straight else None,
        }

    def summary(self) -> dict[str, str]:
        """The measured effect, as metadata of the slider file."""
        if self.dose is None:
            return {}
        effect = {dial_label(d): round(r, 3) for d, r in zip(self.dose.dials, self.dose.response, strict=True)}
        worst = {dial_label(d): round(x.change, 3) for d, x in zip(self.dose.dials, self.dose.drift, strict=True)}
        read = {"measure": f"{self.dose.attribute}={self.dose.value}", "pictures": self.dose.pictures}
        return {"sliders.effect": json.dumps({**read, "mean": effect, "drift": worst})}

    def table(self) -> Table:
        """The numbers, for a terminal."""
        assert self.dose is not None
        dose, oracle = self.dose, self.oracle
        title = f"{self.concept.name}: {dose.attribute} = {dose.value} on {dose.pictures} held-out scenes"
        table = Table(title=title, title_justify="left")
        for heading in ("dial", "slider", *(["oracle"] if oracle else []), "worst drift", "of", "pixels elsewhere"):
            table.add_column(heading, justify="left" if heading == "of" else "right")
        for k, dial in enumerate(dose.dials):
            drift = dose.drift[k]
            cells = [dial_label(dial), f"{dose.response[k]:.2f} ± {dose.error[k]:.2f}"]
            cells += [f"{oracle.response[k]:.2f}"] if oracle else []
            cells += [f"{drift.change:.3f}", f"{drift.attribute} = {drift.value}" if drift.attribute else ""]
            table.add_row(*cells, f"{dose.pixel_change_elsewhere[k]:.4f}")
        caption = [f"Spearman {dose.spearman:.2f}"]
        if self.straight:
            odd, additive = self.straight.oddness, self.straight.additivity
            caption.append(f"oddness {odd:.2f}, additivity {additive:.2f} (0 is straight)")
        table.caption = "; ".join(caption)
        return table


def evaluate_dial(
    backbone: DiffusionBackbone,
    turn: DialContext,
    concept: Concept,
    judge: AttributeJudge | None,
    eta: float,
    dials: Sequence[float],
    pictures: int,
    how: Sampling,
    with_oracle: bool = False,
) -> Evaluation:
    """Sample held-out scenes over the dial and read them."""
    wanted = scenes(heldout_prompts(concept), pictures)
    made = sample_dial(backbone, turn, wanted, dials, how)
    measure = concept.measure
    if judge is None or measure is None:
        return Evaluation(concept, eta, list(dials), wanted, made)
    oracle = None
    if with_oracle:
        oracle = dose_response(judge, measure, sample_oracle(backbone, concept, eta, wanted, dials, how), dials)
    return Evaluation(
        concept=concept,
        eta=eta,
        dials=list(dials),
        wanted=wanted,
        pictures=made,
        dose=dose_response(judge, measure, made, dials),
        oracle=oracle,
        straight=straightness(backbone, turn, wanted[:8], how),
    )


def write_report(evaluation: Evaluation, folder: Path, title: str | None = None) -> None:
    """Write `strip.png`, `metrics.json` and, where something was measured, `dose_response.png`."""
    title = title or evaluation.concept.name
    prompts = [s.prompt for s in evaluation.wanted[:STRIP_ROWS]]
    save_strip(evaluation.pictures[:, :STRIP_ROWS], evaluation.dials, prompts, title, folder / "strip.png")
    write_text(folder / "metrics.json", json.dumps(evaluation.to_dict(), indent=1))
    if evaluation.dose is not None:
        responses = {"slider": evaluation.dose} | ({"oracle": evaluation.oracle} if evaluation.oracle else {})
        save_figure(dose_response_figure(title, responses), folder / "dose_response.png")


def dose_response_figure(title: str, responses: Mapping[str, DoseResponse]) -> Figure:
    """The concept's probability over the dial with its standard error, and the worst drift of anything else."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for (label, dose), color in zip(responses.items(), COLORS, strict=False):
        mean, error = np.array(dose.response), np.array(dose.error)
        left.plot(dose.dials, mean, "o-", color=color, label=label)
        left.fill_between(dose.dials, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        right.plot(dose.dials, [d.change for d in dose.drift], "o-", color=color, label=label)
    first = next(iter(responses.values()))
    left.set(
        title=f"{first.attribute} = {first.value}", xlabel="dial", ylabel="judge's mean probability", ylim=(-0.02, 1.02)
    )
    right.set(title="everything else: worst attribute", xlabel="dial", ylabel="change of mean probability")
    right.set_ylim(0, max(0.2, right.get_ylim()[1]))
    for axis in (left, right):
        axis.axvline(0, color="#d0d7de", linewidth=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle(title)
    return figure
