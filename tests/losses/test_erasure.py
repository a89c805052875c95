"""The formula against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sliders.formula import steer
from sliders.losses.erasure import ErasureLoss, Prediction, progress
from tests.factory import normal


def random_prediction(dial: Tensor, student: Tensor | None = None) -> Prediction:
    """Random base and direction, of the shape of latents."""
    shape = (len(dial), 2, 3, 3)
    base, direction = normal(*shape, seed=1), normal(*shape, seed=2)
    return Prediction(base if student is None else student, base, direction, dial)


def test_steer_by_hand() -> None:
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    direction = torch.tensor([[10.0, 0.0], [1.0, -1.0]])
    assert steer(base, direction, torch.tensor([0.5, -2.0])).tolist() == [[6.0, 2.0], [1.0, 6.0]]


def test_loss_by_hand() -> None:
    """Row 0: the target is 1 + 2 * 0.5 * 3 = 4 in both places; row 1: 1 - 1 * 0.5 * 2 = 0."""
    prediction = Prediction(
        student=torch.tensor([[3.0, 1.0], [0.5, -1.0]]),
        base=torch.ones(2, 2),
        direction=torch.tensor([[3.0, 3.0], [2.0, 2.0]]),
        dial=torch.tensor([2.0, -1.0]),
    )
    row_0 = (1.0**2 + 3.0**2) / 2 / 2.0**2
    row_1 = (0.5**2 + 1.0**2) / 2 / 1.0**2
    assert_close(ErasureLoss(eta=0.5)(prediction), torch.tensor([row_0, row_1]))


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_loss_is_zero_exactly_at_the_target(eta: float) -> None:
    dial = torch.tensor([-2.0, -0.5, 1.0, 1.5], dtype=torch.float64)
    base = random_prediction(dial)
    at_target = base.base + eta * dial.view(-1, 1, 1, 1) * base.direction
    assert_close(ErasureLoss(eta)(random_prediction(dial, at_target)), torch.zeros_like(dial))
    off = at_target.clone()
    off[2, 1, 0, 2] += 0.6  # one of the 18 numbers of row 2
    assert ErasureLoss(eta)(random_prediction(dial, off)).tolist() == pytest.approx([0, 0, 0.6**2 / 18, 0])


def test_the_wrong_sign_is_not_the_target() -> None:
    dial = torch.tensor([1.0, -1.0], dtype=torch.float64)
    base = random_prediction(dial)
    wrong = base.base - 2.0 * dial.view(-1, 1, 1, 1) * base.direction
    assert (ErasureLoss(2.0)(random_prediction(dial, wrong)) > 1).all()


def test_all_dials_weigh_the_same() -> None:
    """A student that moves a fixed part of the way has the same loss at every dial, since it is divided by s^2."""
    dial = torch.tensor([-2.0, -0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
    direction = normal(1, 2, 3, 3, seed=2).expand(5, -1, -1, -1)
    base = normal(5, 2, 3, 3, seed=1)
    student = base + 0.3 * dial.view(-1, 1, 1, 1) * direction
    losses = ErasureLoss(eta=1.0)(Prediction(student, base, direction, dial))
    assert_close(losses, torch.full((5,), 0.7**2 * float(direction[0].square().mean())), check_dtype=False)


def test_a_row_without_direction_is_held_at_the_base() -> None:
    base = torch.tensor([[1.0, 2.0]])
    still = Prediction(base, base, torch.zeros(1, 2), torch.tensor([1.5]))
    moved = Prediction(base + 0.3, base, torch.zeros(1, 2), torch.tensor([1.5]))
    assert float(ErasureLoss()(still)) == 0
    assert float(ErasureLoss()(moved)) == pytest.approx(0.3**2 / 1.5**2, rel=1e-5)


def test_the_gradient_leads_to_the_target_and_to_the_student_alone() -> None:
    dial = torch.tensor([1.0, -2.0], dtype=torch.float64)
    base = random_prediction(dial)
    student = base.base.clone().requires_grad_()
    ErasureLoss(1.0)(random_prediction(dial, student)).sum().backward()
    assert student.grad is not None
    towards = -student.grad * (dial.view(-1, 1, 1, 1) * base.direction)
    assert (towards >= 0).all()
    assert towards.sum() > 0


def test_low_precision_is_squared_in_float32() -> None:
    prediction = random_prediction(torch.tensor([1.0, -1.0]))
    low = Prediction(
        (prediction.base + 0.1).bfloat16(), prediction.base.bfloat16(), prediction.direction.bfloat16(), prediction.dial
    )
    assert ErasureLoss()(low).dtype == torch.float32


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_progress_at_the_target_and_at_the_base(eta: float) -> None:
    dial = torch.tensor([-2.0, 0.5, 1.0], dtype=torch.float64)
    base = random_prediction(dial)
    at_target = base.base + eta * dial.view(-1, 1, 1, 1) * base.direction
    effect, stray = progress(random_prediction(dial, at_target), ErasureLoss(eta))
    assert (float(effect), float(stray)) == pytest.approx((1, 0), abs=1e-6)
    effect, stray = progress(base, ErasureLoss(eta))
    assert (float(effect), float(stray)) == (0, 0)
    effect, _ = progress(random_prediction(dial, 2 * base.base - at_target), ErasureLoss(eta))
    assert float(effect) == pytest.approx(-1)


def test_progress_by_hand() -> None:
    """Asked (2, 0) of row 0 and (0, -2) of row 1, got (1, 1) and (0, -1): half the way, and 1 aside."""
    prediction = Prediction(
        student=torch.tensor([[1.0, 1.0], [5.0, 4.0]]),
        base=torch.tensor([[0.0, 0.0], [5.0, 5.0]]),
        direction=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        dial=torch.tensor([1.0, -1.0]),
    )
    effect, stray = progress(prediction, ErasureLoss(2.0))
    assert float(effect) == pytest.approx((2 * 1 + 2 * 1) / 8)
    assert float(stray) == pytest.approx(math.sqrt(1 / 8))


def test_progress_ignores_preserved_rows() -> None:
    dial = torch.tensor([1.0, -1.0], dtype=torch.float64)
    moving = random_prediction(dial, normal(2, 2, 3, 3, seed=3))
    noise = normal(2, 2, 3, 3, seed=4)
    both = Prediction(
        torch.cat([moving.student, moving.base + 100 * noise]),
        torch.cat([moving.base, moving.base]),
        torch.cat([moving.direction, torch.zeros_like(noise)]),
        torch.cat([dial, dial]),
    )
    for with_preserved, without in zip(
        progress(both, ErasureLoss(2.0)), progress(moving, ErasureLoss(2.0)), strict=True
    ):
        assert_close(with_preserved, without)
    assert float(progress(moving, ErasureLoss(2.0))[1]) > 0.1


def test_progress_of_preserved_rows_alone_is_finite() -> None:
    base = torch.ones(2, 3)
    effect, stray = progress(Prediction(base + 1, base, torch.zeros(2, 3), torch.ones(2)), ErasureLoss(2.0))
    assert (float(effect), float(stray)) == (0, 0)
