"""What a linear readout can tell from states: a logistic regression and how often it is right on other states."""

import torch
from torch import Tensor


def probe_accuracy(
    states: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, ridge: float = 1e-2
) -> float:
    """Share of held-out states that a probe fitted to others labels rightly.

    Args:
        states: ``[n, width]``; what they are measured in does not matter, since they are standardised.
        labels: bool ``[n]``.
        held_out: ``[m, width]``.
        held_out_labels: bool ``[m]``.
        ridge: penalty of the squared coefficients of the standardised states.
    """
    mean, scale = states.double().mean(0), states.double().std(0).clamp_min(1e-12)
    x, y = (states.double() - mean) / scale, labels.double()
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        value = value + ridge * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    said = ((held_out.double() - mean) / scale) @ weight + bias > 0
    return float((said == held_out_labels).double().mean())
