"""Judges whose verdicts can be worked out by hand."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sliders.evaluation.pictures.judge import AttributeJudge


class ColorJudge(AttributeJudge):
    """Reads the mean of each color channel, in [0, 1]: ``light`` is red's, ``tint`` is green's, ``size`` is blue's."""

    def __init__(self) -> None:
        super().__init__({"light": ["dark", "bright"], "tint": ["plain", "green"], "size": ["s", "m", "l"]}, width=8)

    def probabilities(self, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
        red, green, blue = ((images + 1) / 2).mean((2, 3)).double().unbind(1)
        return {
            "light": torch.stack([1 - red, red], 1),
            "tint": torch.stack([1 - green, green], 1),
            "size": torch.stack([0.5 * (1 - blue), blue, 0.5 * (1 - blue)], 1),
        }


@torch.no_grad()
def constant(probabilities: Mapping[str, Mapping[str, float]]) -> AttributeJudge:
    """A judge of the real kind whose biases alone decide: the same probabilities for every picture."""
    judge = AttributeJudge({name: list(values) for name, values in probabilities.items()}, width=8)
    for name, values in probabilities.items():
        head = judge.heads[name]
        head.get_parameter("weight").zero_()
        head.get_parameter("bias").copy_(torch.tensor(list(values.values())).log())
    return judge.eval()


def colors(*pixels: tuple[float, float, float], side: int = 64) -> Tensor:
    """Pictures of one color each, given in [0, 1]: ``[n, 3, side, side]`` in [-1, 1]."""
    return (2 * torch.tensor(pixels) - 1)[:, :, None, None].expand(-1, -1, side, side).clone()
