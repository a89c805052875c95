"""One evaluation: pictures over the dial, what the judge says of them, and the files that keep it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from sliders.backbones.base import DiffusionBackbone
from sliders.concept import Concept
from sliders.evaluation.dose import DoseResponse, Straightness, dose_response, straightness
from sliders.evaluation.judge import AttributeJudge
from sliders.evaluation.plots import dial_label, dose_response_figure, save_figure, strip
from sliders.evaluation.sampling import Sampling, Scene, Turn, sample_dial, sample_oracle, scenes
from sliders.files import replacing, write_text

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
    turn: Turn,
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
    with replacing(folder / "strip.png") as new:
        strip(evaluation.pictures[:, :STRIP_ROWS], evaluation.dials, prompts, title).save(new)
    write_text(folder / "metrics.json", json.dumps(evaluation.to_dict(), indent=1))
    if evaluation.dose is not None:
        responses = {"slider": evaluation.dose} | ({"oracle": evaluation.oracle} if evaluation.oracle else {})
        save_figure(dose_response_figure(title, responses), folder / "dose_response.png")
