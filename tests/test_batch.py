"""Rows of named tensors."""

import threading

import pytest
import torch
from torch import Tensor

from sliders.batch import (
    Layout,
    TensorBatch,
    declared,
    join,
    move,
    of_rows,
    per_row,
    repeat,
    rows,
    rows_of,
    take,
)
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


def values() -> Tensor:
    """Of three rows."""
    return torch.tensor([[1.0], [2.0], [3.0]])


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((3, 7), Layout(3), [1, 2, 3]),  # pooled
        ((3, 4, 7), Layout(3), [1, 2, 3]),
        ((3, 4, 7), Layout(3, 4), [1, 2, 3]),
        ((6, 4, 7), Layout(6, 4), [1, 2, 3, 1, 2, 3]),  # guidance
        ((6, 7), Layout(3, 2), [1, 1, 2, 2, 3, 3]),  # a row's tokens behind one another
        ((12, 7), Layout(6, 2), [1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3]),
        ((2, 4, 7), Layout(3, 4, (2, 0)), [3, 1]),  # some of the rows
        ((4, 7), Layout(3, 2, (2, 0)), [3, 3, 1, 1]),
    ],
)
def test_a_layer_gets_the_values_of_its_rows(shape: tuple[int, ...], layout: Layout, wanted: list[int]) -> None:
    assert of_rows(values(), torch.Size(shape), layout, "layer")[:, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((4, 3, 7), Layout(3, 4)),  # tokens first
        ((6, 4, 7), Layout(3, 4)),  # twice the rows that were declared
        ((1, 4, 7), Layout(3, 4)),
        ((3, 7), Layout(3, 4)),  # as many tokens as rows, of an expert
        ((9, 7), Layout(3, 4)),
        ((6, 7), Layout(3)),  # it may be twice the rows, or two tokens of each
        ((3,), Layout(3)),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_name(shape: tuple[int, ...], layout: Layout) -> None:
    with pytest.raises(SliderError, match=r"'some\.layer'"):
        of_rows(values(), torch.Size(shape), layout, "some.layer")


def test_one_value_for_all_rows_needs_no_declaration() -> None:
    one = torch.ones(1, 2)
    assert of_rows(one, torch.Size((5, 7)), None, "layer") is one
    with pytest.raises(SliderError, match="rows_of"):
        of_rows(values(), torch.Size((3, 7)), None, "layer")


def test_a_declaration_lasts_as_long_as_its_context() -> None:
    assert declared() is None
    with rows_of(2):
        with rows_of(3, 4):
            assert declared() == Layout(3, 4)
        with pytest.raises(ZeroDivisionError), rows_of(3, 4):
            raise ZeroDivisionError
        assert declared() == Layout(2)
    assert declared() is None


def test_threads_declare_each_for_itself() -> None:
    """A page serves several sessions, with models of their own."""
    seen: list[Layout | None] = []
    both = threading.Barrier(2)

    def run(count: int) -> None:
        with rows_of(count):
            both.wait()
            seen.append(declared())
            both.wait()

    others = [threading.Thread(target=run, args=(count,)) for count in (2, 3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert {layout.rows for layout in seen if layout} == {2, 3}
    assert declared() is None
