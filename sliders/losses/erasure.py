"""Distances of what a student predicts to what the formula asks for: one loss for each space that a model predicts in.

Sources of the distances: Concept Sliders (Gandikota et al., ECCV 2024, eq. 8); ELM (Gandikota et al. 2024, eq. 4) for
log-probabilities; LoRRA (Zou et al. 2023, section 3.2.2) for hidden states.  The formula is in `sliders.formula`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sliders.errors import SliderError
from sliders.formula import plausible, steer

SPACES = ("noise or velocity", "log-probabilities", "hidden states")


@dataclass(frozen=True)
class Prediction:
    """What the student said, and what the frozen model says of the same states; all ``[n, ...]``.

    Args:
        student: ``y(x, target)`` with the slider at ``dial``.
        base: ``y0(x, target)``.
        direction: ``y0(x, positive) - y0(x, negative)``; 0 for a prompt that must not move.
        dial: ``[n]``.
        weight: how much each position counts, one dimension less than ``student``; all the same if None.
    """

    student: Tensor
    base: Tensor
    direction: Tensor
    dial: Tensor
    weight: Tensor | None = None

    def averaged(self, error: Tensor) -> Tensor:
        """The mean over positions of ``error`` ``[n, ...]``, weighted as the positions are; ``[n]``."""
        if self.weight is None:
            return error.flatten(1).mean(1)
        weight = self.weight.to(error).expand_as(error).flatten(1)
        return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp_min(1e-12)


class AbstractLoss(ABC, nn.Module):
    """From a prediction to one loss per row.

    Args:
        eta: how far dial 1 moves the prediction, in units of the direction.

    Raises:
        SliderError: eta is 0 or not finite.
    """

    space: ClassVar[str]
    """One of `SPACES`: what it can be used for."""

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(eta) or eta == 0:
            raise SliderError(f"loss.eta is {eta:g}, at which nothing is learnt; give a number other than 0")
        self.eta = eta

    @abstractmethod
    def forward(self, prediction: Prediction) -> Tensor:
        """``[n]``, one loss a row."""

    def target(self, prediction: Prediction) -> Tensor:
        """What the student should say, ``[n, ...]``."""
        return steer(prediction.base, prediction.direction, prediction.dial * self.eta)

    def focus(self, prediction: Prediction) -> Tensor:
        """How much each entry of a prediction matters, broadcastable to it; `progress` weighs by it."""
        weight = prediction.weight
        return torch.ones(()).to(prediction.base) if weight is None else weight[..., None].to(prediction.base)


class ErasureLoss(AbstractLoss):
    """Mean squared error to the formula's target, divided by the dial squared so that all dials weigh the same.

    For noise, v and velocities.

    Args:
        eta: how far dial 1 moves the prediction, in units of the direction.
    """

    space = "noise or velocity"

    def forward(self, prediction: Prediction) -> Tensor:
        error = (prediction.student - self.target(prediction)).float().square().flatten(1).mean(1)
        return error / prediction.dial.square()


class LogProbabilityLoss(AbstractLoss):
    """Kullback-Leibler divergence from the formula's target, divided by the dial squared.

    Only plausible tokens move.  They share what the base gives to all of them together, and the rest of the vocabulary
    keeps, as one, what it has; so dial 0 asks for the base itself, which the target cut to plausible tokens and
    normalised would not.

    Args:
        eta: how far dial 1 moves the log-probabilities, in units of the direction.
        plausible: share of the largest base probability from which a token may move; see `plausible`.
        top_k: of the tokens that move, the target keeps only so many of the likeliest (ELM, section 4.1).
        ramp: the weight of a position rises linearly over so many first positions, for responses whose first tokens
            are given away by the prompt (ELM's code weighs positions so); without it all weigh the same.
    """

    space = "log-probabilities"

    def __init__(
        self, eta: float = 1.5, plausible: float = 0.05, top_k: int | None = None, ramp: int | None = None
    ) -> None:
        super().__init__(eta)
        if not 0 < plausible < 1:
            raise SliderError(f"loss.plausible is {plausible}; it must lie between 0 and 1")
        for name, value in (("top_k", top_k), ("ramp", ramp)):
            if value is not None and value < 1:
                raise SliderError(f"loss.{name} is {value}; it must be at least 1")
        self.plausible, self.top_k, self.ramp = plausible, top_k, ramp

    def target(self, prediction: Prediction) -> Tensor:
        """Log-probabilities of the same tokens; those that do not move have the base's."""
        base, moves = prediction.base.float(), plausible(prediction.base, self.plausible)
        steered = steer(base, prediction.direction.float(), prediction.dial * self.eta)
        steered = steered.masked_fill(~moves, -math.inf)
        if self.top_k is not None and self.top_k < steered.shape[-1]:
            asked = prediction.direction.flatten(1).any(1).view(-1, *[1] * (base.dim() - 1))
            least = steered.topk(self.top_k, -1).values[..., -1:]
            steered = steered.masked_fill((steered < least) & asked, -math.inf)
        mass = base.masked_fill(~moves, -math.inf).logsumexp(-1, keepdim=True)
        return torch.where(moves, steered.log_softmax(-1) + mass, base)

    def focus(self, prediction: Prediction) -> Tensor:
        return super().focus(prediction) * prediction.base.exp() * plausible(prediction.base, self.plausible)

    def forward(self, prediction: Prediction) -> Tensor:
        target, student = self.target(prediction), prediction.student.float()
        moves = plausible(prediction.base, self.plausible)
        share, said = (torch.where(moves, x.exp(), 0) for x in (target, student))
        divergence = (share * torch.where(share > 0, target - student, 0)).sum(-1)
        rest, rest_said = (1 - x.sum(-1).clamp(max=1 - 1e-6) for x in (share, said))
        divergence = divergence + rest * (rest.log() - rest_said.log())
        if self.ramp is not None:
            place = torch.arange(1, divergence.shape[-1] + 1, device=divergence.device)
            divergence = divergence * (place / self.ramp).clamp_max(1)
        return prediction.averaged(divergence) / prediction.dial.square()


class HiddenStateLoss(AbstractLoss):
    """Squared distance of hidden states from the formula's target, relative to the base's size at each position.

    Args:
        eta: how far dial 1 moves the hidden states, in units of the direction.
    """

    space = "hidden states"

    def forward(self, prediction: Prediction) -> Tensor:
        error = (prediction.student - self.target(prediction)).float().square().sum(-1)
        size = prediction.base.float().square().sum(-1).clamp_min(1e-12)
        return prediction.averaged(error / size) / prediction.dial.square()


@torch.no_grad()
def progress(prediction: Prediction, loss: AbstractLoss) -> tuple[Tensor, Tensor]:
    """How much of what is asked for has been learnt, and how much else has moved.

    Returns two numbers ``[]``: ``effect``, the least-squares coefficient of the student's change on the change asked
    for (1 is all of it), and ``stray``, the size of the rest of the change relative to the change asked for.  Rows
    without a direction count for neither.
    """
    rows = prediction.direction.flatten(1).abs().sum(1) > 0
    focus = loss.focus(prediction).expand_as(prediction.base).float().sqrt()
    target = loss.target(prediction)
    target = target.masked_fill(target == -math.inf, -30)  # a token that the target forbids
    asked = (focus * (target - prediction.base).float())[rows]
    moved = (focus * (prediction.student - prediction.base).float())[rows]
    size = asked.square().sum().clamp_min(1e-12)
    effect = (asked * moved).sum() / size
    stray = ((moved - effect * asked).square().sum() / size).sqrt()
    return effect, stray
