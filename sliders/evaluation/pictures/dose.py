"""Dose and response: what every position of a dial does to the concept, and to everything else."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from sliders.backbones.diffusion import DiffusionBackbone
from sliders.batch import widened
from sliders.concept import Measure
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, visited
from sliders.runtime.dials import DialContext


@dataclass(frozen=True)
class Drift:
    """The largest change of any other attribute's mean probability, and which one it was."""

    change: float
    attribute: str
    value: str


@dataclass(frozen=True)
class DoseResponse:
    """What a judge says of pictures over a dial.

    Args:
        dials: positions, ascending, 0 among them.
        pictures: how many for each position.
        attribute: the judge's head that is the concept.
        value: the value whose probability is the response.
        response: mean probability at each dial.
        error: its standard error.
        spearman: rank correlation of dial and response (means).
        drift: of the other attributes, at each dial, against dial 0.
        means: ``{attribute: {value: [mean probability at each dial]}}``.
        pixel_change: mean absolute change of a pixel against dial 0, pictures in [0, 1], at each dial.
        pixel_change_elsewhere: the same where the concept's attribute cannot show.
    """

    dials: list[float]
    pictures: int
    attribute: str
    value: str
    response: list[float]
    error: list[float]
    spearman: float
    drift: list[Drift]
    means: dict[str, dict[str, list[float]]]
    pixel_change: list[float]
    pixel_change_elsewhere: list[float]

    def at(self, dial: float) -> int:
        """The index of a dial."""
        return self.dials.index(dial)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def dose_response(judge: AttributeJudge, measure: Measure, pictures: Tensor, dials: Sequence[float]) -> DoseResponse:
    """Read pictures ``[dials, n, 3, h, w]``, or videos ``[dials, n, frames, 3, h, w]``.

    Means are over pictures of the same prompts and seeds at every dial, and over all frames of a video.
    """
    positions, count = pictures.shape[:2]
    zero = list(dials).index(0.0)
    column = judge.column(measure.attribute, measure.value)
    read = {k: v.unflatten(0, (positions, count)) for k, v in judge.probabilities(pictures.flatten(0, 1)).items()}
    concept = read[measure.attribute][..., column]
    drift: list[Drift] = []
    for k in range(positions):
        worst = Drift(0.0, "", "")
        for name, probability in read.items():
            if name == measure.attribute:
                continue
            change = probability[k].mean(0) - probability[zero].mean(0)
            j = int(change.abs().argmax())
            if float(change.abs()[j]) > worst.change:
                worst = Drift(float(change.abs()[j]), name, judge.values[name][j])
        drift.append(worst)
    moved = (pictures - pictures[zero]).abs().mean(-3) / 2  # [dials, n, h, w], pictures in [0, 1]
    moved = moved.flatten(1, -3)  # and the frames of videos
    elsewhere = ~torch.nn.functional.interpolate(
        judge.where(measure.attribute).float()[None, None], size=moved.shape[-2:]
    )[0, 0].bool()
    means = {
        name: {value: p[..., j].mean(1).tolist() for j, value in enumerate(judge.values[name])}
        for name, p in read.items()
    }
    response = concept.mean(1)
    constant = float(response.max() - response.min()) < 1e-6  # rounding
    return DoseResponse(
        dials=list(dials),
        pictures=count,
        attribute=measure.attribute,
        value=measure.value,
        response=response.tolist(),
        error=(concept.std(1) / count**0.5).tolist() if count > 1 else [0.0] * positions,
        spearman=0.0 if constant else float(spearmanr(list(dials), response.tolist()).statistic),  # pyright: ignore[reportAttributeAccessIssue]
        drift=drift,
        means=means,
        pixel_change=moved.mean((1, 2, 3)).tolist(),
        pixel_change_elsewhere=moved[..., elsewhere].mean((1, 2)).tolist() if elsewhere.any() else [0.0] * positions,
    )


@dataclass(frozen=True)
class Straightness:
    """How straight a dial is, in prediction space at states that the base visits.

    Args:
        oddness: ``|d(1) + d(-1)| / |d(1)|``, 0 where the two sides are opposite.
        additivity: ``|d(2) - 2 d(1)| / |2 d(1)|``, 0 where the dial is linear.
    """

    oddness: float
    additivity: float


@torch.no_grad()
def straightness(
    backbone: DiffusionBackbone, turn: DialContext, wanted: Sequence[Scene], how: Sampling | None = None
) -> Straightness:
    """Measure the dial's change ``d(s)`` of the prediction at a third of the base's own states."""
    state, scene = visited(backbone, wanted, how or Sampling())
    prompts = [wanted[i].prompt for i in scene.tolist()]

    def predict(position: float) -> Tensor:
        with turn(torch.full((len(prompts),), position, device=backbone.device)):
            return widened(backbone.predict(state, backbone.encode(prompts)))

    base = widened(backbone.predict(state, backbone.encode(prompts)))
    one, minus, two = (predict(s) - base for s in (1.0, -1.0, 2.0))
    size = one.norm().clamp_min(1e-12)
    return Straightness(float((one + minus).norm() / size), float((two - 2 * one).norm() / (2 * size)))
