"""What must not move: rows whose direction is 0 ask the student for the frozen model's own prediction."""

import math

from torch import Tensor, nn

from sliders.errors import SliderError


class Preservation(nn.Module):
    """Join the losses of rows that should move and of rows that should stay.

    A row of a preserved prompt goes through the same loss as any other, with a direction of 0, so that its target is
    ``y0`` at every dial (Concept Sliders, section 4.1).  Here the two kinds are weighed.

    Args:
        weight: of the preserved rows' mean against the other rows' mean.

    Raises:
        SliderError: the weight is not above 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < weight < math.inf:
            raise SliderError(
                f"model.preservation.weight is {weight:g}; it must be above 0 (to preserve nothing, leave out "
                "concept.preserve)"
            )
        self.weight = weight

    def forward(self, losses: Tensor, preserved: Tensor) -> Tensor:
        """One number from ``losses`` ``[n]`` and the mask ``preserved`` ``[n]``."""
        total = losses.new_zeros(())
        if not preserved.all():
            total = total + losses[~preserved].mean()
        if preserved.any():
            total = total + self.weight * losses[preserved].mean()
        return total
