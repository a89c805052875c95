"""Rows of named tensors."""

import pytest
import torch
from torch import Tensor

from sliders.batch import TensorBatch, join, move, per_row, repeat, rows, take
from sliders.errors import SliderError


@pytest.fixture
def batch() -> TensorBatch:
    return {"x": torch.arange(12.0).view(3, 4), "t": torch.tensor([10, 20, 30])}


def test_rows(batch: TensorBatch) -> None:
    assert rows(batch) == 3


def test_take_follows_the_index_also_twice(batch: TensorBatch) -> None:
    taken = take(batch, torch.tensor([2, 0, 2, 1]))
    assert taken["t"].tolist() == [30, 10, 30, 20]
    assert taken["x"][:, 0].tolist() == [8, 0, 8, 4]


def test_join_keeps_the_order(batch: TensorBatch) -> None:
    one = take(batch, torch.tensor([1]))
    assert join([one, batch])["t"].tolist() == [20, 10, 20, 30]
    assert join([one, batch])["x"].shape == (4, 4)


def test_repeat_puts_whole_batches_behind_one_another(batch: TensorBatch) -> None:
    twice = repeat(batch, 2)
    assert twice["t"].tolist() == [10, 20, 30, 10, 20, 30]
    assert torch.equal(twice["x"], torch.cat([batch["x"], batch["x"]]))


def test_move(batch: TensorBatch) -> None:
    moved = move(batch, "meta")
    assert {value.device.type for value in moved.values()} == {"meta"}
    assert {value.device.type for value in batch.values()} == {"cpu"}


@pytest.mark.parametrize("like", [torch.ones(3), torch.ones(3, 2), torch.ones(3, 2, 5, 5)])
def test_per_row_multiplies_rows(like: Tensor) -> None:
    scaled = like * per_row(torch.tensor([1.0, -2.0, 0.5]), like)
    assert scaled.shape == like.shape
    for row, value in zip(scaled, (1.0, -2.0, 0.5), strict=True):
        assert (row == value).all()


def test_per_row_tiles_as_repeat_does(batch: TensorBatch) -> None:
    """Row i of each copy gets value i: guidance runs the whole batch twice over."""
    values = torch.tensor([1.0, 2.0, 3.0])
    twice = repeat({"x": torch.ones(3, 4)}, 2)["x"] * per_row(values, torch.ones(6, 4))
    assert twice[:, 0].tolist() == [1, 2, 3, 1, 2, 3]


def test_per_row_takes_the_others_precision() -> None:
    assert per_row(torch.tensor([1.0, 2.0]), torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("values", "like"), [(4, 1), (2, 3), (4, 6)])
def test_rows_that_do_not_fit_are_an_error(values: int, like: int) -> None:
    """Not an empty result, which multiplying 4 values into 1 row would give."""
    with pytest.raises(SliderError, match=f"{values}.*{like}"):
        per_row(torch.ones(values), torch.ones(like, 2))
