"""What an element adds to one layer, kept factored: `Element.displacement` against dense weights."""

import pytest
import torch
from torch.testing import assert_close

from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from tests.algebra.cases import METHODS, SHAPES, width
from tests.factory import normal


def other_gauge(part: LowRank, seed: int) -> LowRank:
    turn = normal(part.rank, part.rank, seed=seed) + 3 * torch.eye(part.rank, dtype=torch.float64)
    return LowRank(part.B @ turn, torch.linalg.solve(turn, part.A), part.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
class TestDisplacement:
    def test_it_is_what_the_edit_adds(self, method: str, shape: tuple[int, ...]) -> None:
        for seed in range(3):
            element, oracle = METHODS[method].draw(shape, seed)
            weight, bias = normal(*shape, seed=seed + 5), normal(shape[0], seed=seed + 6)
            added = element.displacement(weight, bias).dense()
            wanted, shifted = oracle(weight.flatten(1), bias)
            assert_close(added[:, : width(shape)], wanted - weight.flatten(1))
            column = added[:, width(shape)] if added.shape[1] > width(shape) else torch.zeros_like(bias)
            assert_close(column, shifted - bias)
            assert (added.norm() > 1e-3).item()  # control: there is something to add

    def test_no_gauge_and_no_more_rank(self, method: str, shape: tuple[int, ...]) -> None:
        element, _ = METHODS[method].draw(shape, 0)
        turned = Element(
            shape, *(other_gauge(p, k) for k, p in enumerate((element.left, element.right, element.shift)))
        )
        weight, bias = normal(*shape, seed=5), normal(shape[0], seed=6)
        one, two = element.displacement(weight, bias), turned.displacement(weight, bias)
        assert_close(one.dense(), two.dense())
        assert one.rank == element.left.rank + element.right.rank + element.shift.rank

    def test_a_layer_without_a_bias(self, method: str, shape: tuple[int, ...]) -> None:
        element, oracle = METHODS[method].draw(shape, 0)
        weight = normal(*shape, seed=5)
        added = element.displacement(weight, None).dense()
        wanted, shifted = oracle(weight.flatten(1), torch.zeros(shape[0], dtype=torch.float64))
        column = added[:, width(shape)] if added.shape[1] > width(shape) else torch.zeros_like(shifted)
        assert_close(added[:, : width(shape)], wanted - weight.flatten(1))
        assert_close(column, shifted)


def test_a_weight_of_another_shape() -> None:
    element, _ = METHODS[next(iter(METHODS))].draw((5, 4), 0)
    with pytest.raises(SliderError, match=r"\(5, 4\)"):
        element.displacement(torch.zeros(4, 5), None)
