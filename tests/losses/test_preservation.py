"""What should stay, weighed against what should move."""

import pytest
import torch

from sliders.losses.preservation import Preservation

LOSSES = torch.tensor([1.0, 3.0, 10.0, 20.0])
LAST_TWO = torch.tensor([False, False, True, True])


@pytest.mark.parametrize(("weight", "total"), [(0.25, 2 + 3.75), (0.5, 2 + 7.5), (1.0, 2 + 15.0), (4.0, 2 + 60.0)])
def test_by_hand(weight: float, total: float) -> None:
    """Means of each kind, so that how many rows are preserved does not matter."""
    assert float(Preservation(weight)(LOSSES, LAST_TWO)) == pytest.approx(total)
    many = torch.tensor([0, 1, 2, 3, 2, 3])
    assert float(Preservation(weight)(LOSSES[many], LAST_TWO[many])) == pytest.approx(total)


def test_nothing_to_preserve() -> None:
    assert float(Preservation(5.0)(LOSSES, torch.zeros(4, dtype=torch.bool))) == pytest.approx(8.5)


def test_both_kinds_get_gradients() -> None:
    losses = LOSSES.clone().requires_grad_()
    Preservation(0.5)(losses, LAST_TWO).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0.5, 0.25, 0.25]
