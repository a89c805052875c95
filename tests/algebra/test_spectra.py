"""Ranks of noisy matrices: what rounding makes, what random numbers make, and what stands out of both."""

import math

import pytest
import torch

from sliders.algebra.change import between, effect, of_factors
from sliders.algebra.lowrank import LowRank
from sliders.algebra.spectra import entropy, intruders, left_vectors, rank_of, rounding_norm
from tests.algebra.cases import in_gauge
from tests.factory import lowrank, normal

SHAPES = ((96, 96), (48, 160), (160, 48))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_numbers_have_no_rank_and_a_signal_on_them_has_its_own(shape: tuple[int, int], seed: int) -> None:
    """At twice the edge of Marchenko and Pastur's law a direction is seen, whatever the noise is called."""
    noise = 1e-3 * normal(*shape, seed=seed)
    values = torch.linalg.svdvals(noise)
    edge = 1e-3 * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    assert rank_of(values, shape, 0.0).rank == 0
    assert values[0] == pytest.approx(edge, rel=0.15)
    u, _, vh = torch.linalg.svd(normal(*shape, seed=seed + 9), full_matrices=False)
    signal = 2 * edge * u[:, :3] @ vh[:3]
    found = rank_of(torch.linalg.svdvals(noise + signal), shape, 0.0)
    assert found.rank == 3
    assert edge < found.threshold < 2 * edge
    assert found.gap > 1.3
    faint = rank_of(torch.linalg.svdvals(noise + signal / 4), shape, 0.0)  # control: below the edge nothing is seen
    assert faint.rank == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_is_known_for_what_it_is(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = normal(*shape, seed=1)
    weight[:, 3] *= 30  # rounding errors are as uneven as the weights
    rounded = weight.to(dtype)
    errors = torch.linalg.svdvals(rounded.double() - weight)
    assert 0.25 * rounding_norm(rounded) < errors[0] < rounding_norm(rounded)
    assert rounding_norm(rounded.float()) == rounding_norm(rounded)  # a wider dtype holds no more than is in it
    update = lowrank(shape, 3, 5) * (40 * rounding_norm(rounded))
    moved = (rounded.double() + update.dense()).to(dtype)
    change = between("fc", rounded, moved)
    assert change.spectrum.rank == 3
    assert (change.update.dense() - update.dense()).norm() < 0.2 * update.norm()
    assert between("fc", weight, rounded).spectrum.rank == 0


def test_a_change_is_the_same_from_factors_in_any_gauge_and_from_checkpoints() -> None:
    weight, update = normal(20, 30, seed=1), lowrank((20, 30), 3, 2)
    whole = between("fc", weight, weight + update.dense())
    for factors in (update, in_gauge(update, 7), in_gauge(update + update, 8) * 0.5):
        change = of_factors("fc", factors, weight)
        assert change.spectrum.rank == whole.spectrum.rank == 3
        torch.testing.assert_close(change.update.dense(), whole.update.dense())
        torch.testing.assert_close(change.spectrum.values, whole.spectrum.values, atol=1e-5, rtol=1e-6)
        one, two = effect(change), effect(whole)
        assert one.after == pytest.approx(two.after)
        assert one.relative == pytest.approx(two.relative)
        assert one.entropy == pytest.approx(two.entropy, abs=1e-6)


def test_factors_of_full_rank_are_judged_as_a_dense_update_is() -> None:
    """A fine-tuned model's difference, or noise, that was kept as factors."""
    weight, noise = normal(40, 30, seed=1), normal(40, 30, seed=2)
    signal = lowrank((40, 30), 2, 3) * 20.0
    for dense, rank in ((noise, 0), (noise + signal.dense(), 2)):
        change = of_factors("fc", LowRank.nearest(dense, 30), weight)
        assert change.spectrum.rank == between("fc", weight, weight + dense).spectrum.rank == rank


def test_a_bias_is_one_more_column_where_it_moves() -> None:
    weight, bias, shift = normal(6, 5, seed=1), normal(6, seed=2), normal(6, seed=3)
    still = between("fc", weight, weight + lowrank((6, 5), 1, 4).dense(), bias, bias)
    moved = between("fc", weight, weight, bias, bias + shift)
    new = between("fc", weight, weight, None, shift)
    assert (still.moves_bias, still.bias_alone) == (False, False)
    for change in (moved, new):
        assert (change.moves_bias, change.bias_alone) == (True, True)
        torch.testing.assert_close(change.of_bias, shift)
        assert change.of_weight.norm() < 1e-12
    assert not of_factors("fc", lowrank((6, 6), 1, 5), weight, bias).bias_alone


def test_intruders_are_directions_that_were_not_there() -> None:
    weight = normal(40, 40, seed=1)
    before, values = left_vectors(weight)
    torch.testing.assert_close(values, torch.linalg.svdvals(weight))
    torch.testing.assert_close(before.T @ before, torch.eye(40).double(), atol=1e-9, rtol=0)
    u, v = (torch.nn.functional.normalize(normal(40, seed=s), dim=0) for s in (2, 3))
    loud = left_vectors(weight + 5 * values[0] * torch.outer(u, v))[0]
    assert intruders(before, loud) == 1
    grown = left_vectors(weight + values[0] * torch.outer(before[:, 0], before[:, 0] @ weight) / values[0])[0]
    assert intruders(before, grown) == 0  # control: what was there and only grew
    assert intruders(before, before) == 0


def test_entropy_counts_directions() -> None:
    assert entropy(torch.ones(8)) == pytest.approx(math.log(8))
    assert entropy(torch.tensor([1.0, 0, 0])) == 0
