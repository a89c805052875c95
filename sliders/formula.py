"""The formula: the model's own knowledge, used against itself.

    y*(s) = y0(x, target) + s eta [y0(x, positive) - y0(x, negative)]

It is the same for noise, velocities, log-probabilities and hidden states; what differs is the distance to it.

Sources: ESD (Gandikota et al., ICCV 2023, eq. 6) with s = -1 kept for good; Concept Sliders (Gandikota et al., ECCV
2024, eq. 7 and 8) with positives and negatives averaged over their lists; ELM (Gandikota et al. 2024, eq. 4) for
log-probabilities; LoRRA (Zou et al. 2023, section 3.2.2) for hidden states.
"""

import math

from torch import Tensor

from sliders.batch import per_row


def steer(base: Tensor, direction: Tensor, amount: Tensor) -> Tensor:
    """``base + amount * direction``, row by row: what the model should predict, and what the oracle predicts.

    Args:
        base: ``y0(x, target)``, ``[n, ...]``.
        direction: ``y0(x, positive) - y0(x, negative)``, the same shape.
        amount: ``s * eta`` of each row, ``[n]``.
    """
    return base + per_row(amount, base) * direction


def plausible(base: Tensor, share: float) -> Tensor:
    """Which tokens may move: those with at least ``share`` of the largest base probability of their position.

    A difference of log-probabilities says nothing of tokens that nobody would say (contrastive decoding, Li et al.
    2022, eq. 2).

    Args:
        base: log-probabilities ``[..., k]``.
        share: between 0 and 1.
    """
    return base >= base.amax(-1, keepdim=True) + math.log(share)
