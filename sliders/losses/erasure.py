"""The formula: the model's own knowledge, used against itself.

    y*(s) = y0(x, target) + s eta [y0(x, positive) - y0(x, negative)]

Sources: ESD (Gandikota et al., ICCV 2023, eq. 6) with s = -1 kept for good; Concept Sliders (Gandikota et al., ECCV
2024, eq. 7 and 8) with positives and negatives averaged over their lists.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sliders.batch import per_row


def steer(base: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
    """``base + amount * direction``, row by row: what the model should predict, and what the oracle predicts.

    Args:
        base: ``y0(x, target)``, ``[n, ...]``.
        direction: ``y0(x, positive) - y0(x, negative)``, the same shape.
        amount: ``s * eta`` of each row, ``[n]``.
    """
    return base + per_row(amount, base) * direction


@dataclass(frozen=True)
class Prediction:
    """What the student said, and what the frozen model says of the same states; all ``[n, ...]``.

    Args:
        student: ``y(x, target)`` with the slider at ``dial``.
        base: ``y0(x, target)``.
        direction: ``y0(x, positive) - y0(x, negative)``; 0 for a prompt that must not move.
        dial: ``[n]``.
    """

    student: Tensor
    base: Tensor
    direction: Tensor
    dial: Tensor


class AbstractLoss(ABC, nn.Module):
    """From a prediction to one loss per row."""

    eta: float

    @abstractmethod
    def forward(self, prediction: Prediction) -> Tensor:
        """``[n]``, one loss a row."""


class ErasureLoss(AbstractLoss):
    """Mean squared error to the formula's target, divided by the dial squared so that all dials weigh the same.

    Args:
        eta: how far dial 1 moves the prediction, in units of the direction.
    """

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__()
        self.eta = eta

    def forward(self, prediction: Prediction) -> Tensor:
        target = steer(prediction.base, prediction.direction, prediction.dial * self.eta)
        error = (prediction.student - target).float().square().flatten(1).mean(1)
        return error / prediction.dial.square()


@torch.no_grad()
def progress(prediction: Prediction, eta: float) -> tuple[Tensor, Tensor]:
    """How much of the direction has been learnt, and how much else has moved.

    Returns ``effect``, the least-squares coefficient of the student's change on the change asked for (1 is all of it),
    and ``stray``, the size of the rest of the change relative to the change asked for.  Rows without a direction
    count for neither.
    """
    asked = steer(torch.zeros_like(prediction.base), prediction.direction, prediction.dial * eta).flatten(1)
    moved = (prediction.student - prediction.base).float().flatten(1)
    moved = moved[asked.square().sum(1) > 0]
    asked = asked[asked.square().sum(1) > 0]
    size = asked.square().sum().clamp_min(1e-12)
    effect = (asked * moved).sum() / size
    stray = ((moved - effect * asked).square().sum() / size).sqrt()
    return effect, stray
