"""Intervals and tests of chance, against cases that are known and against chance itself."""

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from sliders.evaluation.statistics import (
    between_groups,
    bootstrap,
    mantel,
    rank_correlation,
    sign_flip,
    spearman,
    upper,
)
from tests.factory import normal


def mean_of(values: Tensor):
    return lambda index: values[index].mean(1)


class TestBootstrap:
    def test_the_interval_of_a_mean_is_the_known_one(self) -> None:
        values = normal(400, seed=1) + 3
        found = bootstrap(mean_of(values), 400)
        half = 1.96 * float(values.std()) / 20
        assert found.value == pytest.approx(float(values.mean()))
        assert found.low == pytest.approx(found.value - half, abs=0.02)
        assert found.high == pytest.approx(found.value + half, abs=0.02)

    def test_it_covers_the_truth_as_often_as_it_says(self) -> None:
        found = [bootstrap(mean_of(normal(40, seed=k)), 40, draws=300, seed=k) for k in range(200)]
        assert 0.89 <= sum(one.low <= 0 <= one.high for one in found) / 200 <= 0.99

    def test_draws_without_a_value_are_left_out(self) -> None:
        assert math.isnan(bootstrap(lambda index: torch.full((len(index),), math.nan), 3).low)
        found = spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 5.0, 9.0]))
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


class TestSignFlip:
    def test_by_hand(self) -> None:
        assert sign_flip(torch.tensor([1.0, 2.0, 3.0])) == 1 / 8
        assert sign_flip(torch.tensor([-1.0, 2.0, 3.0])) == 2 / 8  # +++ and its own
        assert sign_flip(torch.tensor([-1.0, -2.0, -3.0])) == 1
        assert sign_flip(torch.zeros(5)) == 1

    @pytest.mark.parametrize("n", [8, 20])
    def test_it_is_wrong_as_seldom_as_it_says(self, n: int) -> None:
        wrong = sum(sign_flip(normal(n, seed=k), draws=400, seed=k) <= 0.05 for k in range(400)) / 400
        assert 0.02 <= wrong <= 0.08
        seen = sum(sign_flip(normal(n, seed=k) + 1.5, draws=400, seed=k) <= 0.05 for k in range(50)) / 50
        assert seen > 0.9


class TestBetweenGroups:
    def distances(self, seed: int, apart: float = 0.0) -> Tensor:
        points = normal(8, 3, seed=seed)
        points[:4] += apart
        return torch.cdist(points, points)

    GROUP = torch.arange(8) < 4

    def test_groups_that_are_apart(self) -> None:
        gap, p = between_groups(self.distances(1, 10.0), self.GROUP)
        assert gap > 5
        assert p == pytest.approx(2 / 70)  # this labelling and its mirror image

    def test_two_and_two_can_say_little(self) -> None:
        pick = torch.tensor([0, 1, 4, 5])
        _, p = between_groups(self.distances(1, 10.0)[pick][:, pick], torch.tensor([True, True, False, False]))
        assert p == pytest.approx(1 / 3)

    def test_it_is_wrong_as_seldom_as_it_says(self) -> None:
        wrong = sum(between_groups(self.distances(k), self.GROUP)[1] <= 0.0572 for k in range(150)) / 150
        assert wrong <= 0.11  # 4 of 70 labellings

    def test_many_are_drawn(self) -> None:
        points = normal(20, 2, seed=3)
        points[:10] += 4
        assert between_groups(torch.cdist(points, points), torch.arange(20) < 10)[1] < 0.01


class TestRanks:
    def test_it_is_scipys(self) -> None:
        x, y = normal(12, seed=1), normal(12, seed=2)
        y[3] = y[4]  # a tie
        assert float(rank_correlation(x, y)) == pytest.approx(spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]
        assert math.isnan(float(rank_correlation(x, torch.ones(12))))

    def test_upper_is_in_the_order_of_combinations(self) -> None:
        table = torch.arange(16).view(4, 4)
        assert upper(table).tolist() == [4 * i + j for i, j in itertools.combinations(range(4), 2)]

    def test_mantel(self) -> None:
        def table(seed: int) -> Tensor:
            square = normal(5, 5, seed=seed).abs()
            return square + square.T

        x = table(1)
        assert mantel(x, 2 * x + 1) == pytest.approx(1 / 120)
        wrong = sum(mantel(table(2 * k), table(2 * k + 1)) <= 0.05 for k in range(60)) / 60
        assert wrong <= 0.12
