"""Factored matrices against dense ones, in float64, whatever the factors' gauge."""

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from tests.algebra.cases import in_gauge
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=20, derandomize=True)
shapes = st.one_of(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
"""Of linear and of convolution weights."""
ranks = st.integers(1, 9)
"""Also above what the shapes allow: factors may be wider than the update's true rank."""
seeds = st.integers(0, 2**20)
numbers = st.floats(-3, 3, allow_nan=False)


def matrix(update: LowRank) -> Tensor:
    """The dense oracle, unfolded; written out here, not by the code under test."""
    return torch.einsum("or,ri->oi", update.B, update.A)


@laws
@given(shapes, ranks, seeds)
def test_dense_has_the_weights_shape(shape: tuple[int, ...], rank: int, seed: int) -> None:
    update = lowrank(shape, rank, seed)
    assert update.rank == rank
    assert_close(update.dense(), matrix(update).reshape(shape))


@laws
@given(shapes, ranks, ranks, seeds, numbers)
def test_linear_operations(shape: tuple[int, ...], rank: int, other_rank: int, seed: int, scale: float) -> None:
    a, b = lowrank(shape, rank, seed), lowrank(shape, other_rank, seed + 1)
    assert_close(matrix(a + b), matrix(a) + matrix(b))
    assert_close(matrix(a - b), matrix(a) - matrix(b))
    assert_close(matrix(-a), -matrix(a))
    assert_close(matrix(a * scale), scale * matrix(a))
    assert_close(matrix(scale * a), scale * matrix(a))
    assert {(a + b).shape, (a - b).shape, (-a).shape, (a * scale).shape} == {shape}


@laws
@given(shapes, ranks, ranks, seeds)
def test_inner_and_norm(shape: tuple[int, ...], rank: int, other_rank: int, seed: int) -> None:
    a, b = lowrank(shape, rank, seed), lowrank(shape, other_rank, seed + 1)
    assert_close(a.inner(b), (matrix(a) * matrix(b)).sum())
    assert_close(a.norm(), torch.linalg.matrix_norm(matrix(a)))
    assert_close((a - a).norm(), torch.zeros((), dtype=torch.float64), atol=1e-7, rtol=0)


@laws
@given(shapes, ranks, seeds)
def test_svd(shape: tuple[int, ...], rank: int, seed: int) -> None:
    update = lowrank(shape, rank, seed)
    u, s, vh = update.svd()
    assert_close(u @ torch.diag(s) @ vh, matrix(update))
    assert_close(u.T @ u, torch.eye(len(s), dtype=torch.float64))
    assert_close(vh @ vh.T, torch.eye(len(s), dtype=torch.float64))
    assert_close(s, torch.linalg.svdvals(matrix(update))[: len(s)])
    assert len(s) == min(rank, shape[0], math.prod(shape[1:]))


@laws
@given(shapes, ranks, st.integers(0, 9), seeds)
def test_compress_is_the_nearest_of_its_rank(shape: tuple[int, ...], rank: int, k: int, seed: int) -> None:
    """Eckart-Young: the error is the tail of the spectrum, and no other update of that rank has less."""
    update = lowrank(shape, rank, seed)
    full = matrix(update)
    nearest = update.compress(k)
    assert nearest.shape == shape
    assert nearest.rank <= k
    error = torch.linalg.matrix_norm(full - matrix(nearest))
    assert_close(error, torch.linalg.svdvals(full)[k:].square().sum().sqrt(), atol=1e-12, rtol=1e-9)
    for i in range(5):
        basis = torch.linalg.qr(normal(full.shape[1], min(k, full.shape[1]), seed=seed + i)).Q
        nudged = matrix(nearest) + 1e-3 * matrix(lowrank(shape, 1, seed + i))  # of rank k + 1, so cut it again
        u, s, vh = torch.linalg.svd(nudged, full_matrices=False)
        for other in (full @ basis @ basis.T, u[:, :k] @ torch.diag(s[:k]) @ vh[:k]):
            assert torch.linalg.matrix_norm(full - other) >= error - 1e-12


def test_compress_loses_something_where_it_must() -> None:
    """Control: the error above is not 0 throughout, and cutting columns of the factors is further away."""
    update = lowrank((6, 5), 4, seed=3)
    error = (update - update.compress(2)).norm()
    cut = LowRank(update.B[:, :2], update.A[:2], update.shape)
    assert 0.1 < float(error) < float((update - cut).norm())


@laws
@given(shapes, ranks, ranks, st.integers(1, 6), seeds)
def test_products(shape: tuple[int, ...], rank: int, other_rank: int, n: int, seed: int) -> None:
    update, width = lowrank(shape, rank, seed), math.prod(shape[1:])
    left, right = lowrank((n, shape[0]), other_rank, seed + 1), lowrank((width, n), other_rank, seed + 2)
    square = lowrank((width, width), other_rank, seed + 3)
    for product, wanted in (
        (left @ update, matrix(left) @ matrix(update)),
        (matrix(left) @ update, matrix(left) @ matrix(update)),
        (update @ square, matrix(update) @ matrix(square)),
        (update @ matrix(square), matrix(update) @ matrix(square)),
        (update @ right, matrix(update) @ matrix(right)),
        (update @ matrix(right), matrix(update) @ matrix(right)),
        (update.T, matrix(update).T),
    ):
        assert_close(matrix(product), wanted)
        assert math.prod(product.shape[1:]) == wanted.shape[1]
    assert (left @ update).rank == min(rank, other_rank)
    assert (left @ update).shape == (matrix(left) @ update).shape == (n, *shape[1:])  # a kernel stays a kernel
    assert (update @ square).shape == (update @ matrix(square)).shape == shape


def test_a_product_is_not_that_of_the_factors() -> None:
    """Control: the order of factors matters, and so does the middle."""
    a, b = lowrank((4, 4), 2, 1), lowrank((4, 4), 2, 2)
    assert (matrix(a @ b) - matrix(b @ a)).abs().max() > 1e-2
    assert (matrix(a @ b) - a.B @ b.A).abs().max() > 1e-2


@laws
@given(shapes, ranks, seeds)
def test_subspaces_are_those_of_the_update(shape: tuple[int, ...], rank: int, seed: int) -> None:
    update = lowrank(shape, rank, seed)
    columns, rows = update.column_space(), update.row_space()
    true = int(torch.linalg.matrix_rank(matrix(update)))
    assert columns.shape == (shape[0], true)
    assert rows.shape == (math.prod(shape[1:]), true)
    assert_close(columns.T @ columns, torch.eye(true, dtype=torch.float64))
    assert_close(columns @ (columns.T @ matrix(update)), matrix(update))
    assert_close(matrix(update) @ rows @ rows.T, matrix(update))
    assert (update + update).trim().rank == true
    assert_close(matrix((update + update).trim()), 2 * matrix(update))


@laws
@given(shapes, st.integers(0, 9), seeds)
def test_nearest_to_a_dense_update(shape: tuple[int, ...], k: int, seed: int) -> None:
    dense = normal(*shape, seed=seed)
    nearest = LowRank.nearest(dense, k)
    assert nearest.shape == shape
    assert nearest.rank <= k
    tail = torch.linalg.svdvals(dense.flatten(1))[k:].square().sum().sqrt()
    assert_close((nearest.dense() - dense).norm(), tail, atol=1e-9, rtol=1e-9)


def test_zero_adds_nothing() -> None:
    zero, update = LowRank.zero((4, 3, 2, 2), torch.zeros(0, dtype=torch.float64)), lowrank((4, 3, 2, 2), 2)
    assert torch.equal((update + zero).dense(), update.dense())
    assert zero.rank == 0
    assert float(zero.norm()) == 0
    assert zero.compress(3).rank == zero.trim().rank == zero.column_space().shape[1] == 0
    with pytest.raises(SliderError, match="nothing to stack"):
        LowRank.stack([])


def test_trace_is_of_square_updates_alone() -> None:
    update = lowrank((4, 4), 2)
    assert_close(update.trace(), matrix(update).trace())
    with pytest.raises(SliderError, match="not square"):
        lowrank((4, 3), 2).trace()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_spectrum(dtype: torch.dtype) -> None:
    """Its linear algebra is done in float32; what comes back is in the factors' own precision."""
    update = lowrank((5, 4), 2).to(dtype)
    assert_close(update.svd()[1], torch.linalg.svdvals(matrix(update.to(torch.float32)))[:2])
    assert update.compress(1).B.dtype == update.trim().A.dtype == dtype


def test_to_casts_both_factors() -> None:
    update = lowrank((4, 3), 2).to(torch.float32)
    assert (update.B.dtype, update.A.dtype, update.shape) == (torch.float32, torch.float32, (4, 3))


def _spectral(update: LowRank, _: LowRank) -> Tensor:
    u, s, vh = update.svd()
    return torch.cat([s, (u @ torch.diag(s) @ vh).flatten()])


OPERATIONS: dict[str, Callable[[LowRank, LowRank], Tensor]] = {
    "dense": lambda a, b: a.dense(),
    "__add__": lambda a, b: (a + b).dense(),
    "__sub__": lambda a, b: (a - b).dense(),
    "__neg__": lambda a, b: (-a).dense(),
    "__mul__": lambda a, b: (a * 1.7).dense(),
    "__rmul__": lambda a, b: (1.7 * a).dense(),
    "inner": lambda a, b: a.inner(b),
    "norm": lambda a, b: a.norm(),
    "svd": _spectral,
    "compress": lambda a, b: a.compress(2).dense(),
    "to": lambda a, b: a.to(torch.float64).dense(),
    "stack": lambda a, b: LowRank.stack([a, b, a]).dense(),
    "zero": lambda a, b: (a + LowRank.zero(a.shape, a.B)).dense(),
    "nearest": lambda a, b: LowRank.nearest(a.dense(), 2).dense(),
    "T": lambda a, b: a.T.dense(),
    "unfolded": lambda a, b: a.unfolded().dense(),
    "__matmul__": lambda a, b: (a @ b.unfolded().T).dense(),
    "__rmatmul__": lambda a, b: (b.unfolded().T.dense() @ a).dense(),
    "trace": lambda a, b: (a @ b.unfolded().T).trace(),
    "column_space": lambda a, b: a.column_space() @ a.column_space().T,
    "row_space": lambda a, b: a.row_space() @ a.row_space().T,
    "trim": lambda a, b: a.trim().dense(),
}
NOT_OPERATIONS: dict[str, Callable[[LowRank, LowRank], Tensor]] = {
    "averaging the factors": lambda a, b: (a.B + b.B) / 2 @ (a.A + b.A) / 2,
    "cutting the factors": lambda a, b: a.B[:, :2] @ a.A[:2],
    "norms of the factors": lambda a, b: a.B.norm() * a.A.norm(),
    "clipping a factor": lambda a, b: a.B.clamp(-0.2, 0.2) @ a.A,
}


def gauge_error(operation: Callable[[LowRank, LowRank], Tensor], shape: tuple[int, ...], seed: int) -> float:
    """By how much the result depends on which factors stand for the same two updates."""
    a, b = lowrank(shape, 4, seed), lowrank(shape, 4, seed + 1)
    plain, turned = operation(a, b), operation(in_gauge(a, seed), in_gauge(b, seed + 7))
    return float((plain - turned).abs().max())


@pytest.mark.parametrize("name", OPERATIONS)
@laws
@given(shape=shapes, seed=seeds)
def test_no_operation_depends_on_the_gauge(name: str, shape: tuple[int, ...], seed: int) -> None:
    assert gauge_error(OPERATIONS[name], shape, seed) < 1e-10


@pytest.mark.parametrize("name", NOT_OPERATIONS)
@pytest.mark.parametrize("shape", [(6, 5), (5, 2, 3, 3)])
def test_the_gauge_test_sees_what_acts_on_factors(name: str, shape: tuple[int, ...]) -> None:
    """Control: these act on the factors and not on the update."""
    assert min(gauge_error(NOT_OPERATIONS[name], shape, seed) for seed in range(3)) > 1e-3


def test_every_public_operation_is_in_the_gauge_test() -> None:
    exempt = {"rank", "__init__", "__repr__", "__eq__", "__hash__", "__post_init__", "__setattr__", "__delattr__"}
    defined = {
        name
        for name, value in vars(LowRank).items()
        if (callable(value) or isinstance(value, (property, staticmethod)))
        and (not name.startswith("_") or name.startswith("__"))
        and name not in ("__replace__", "__class_getitem__")
    }
    assert defined - exempt == set(OPERATIONS)


@pytest.mark.parametrize(
    ("b", "a", "shape"),
    [
        ((4, 2), (3, 5), (4, 5)),  # ranks differ
        ((3, 2), (2, 5), (4, 5)),  # outputs differ
        ((4, 2), (2, 6), (4, 5)),  # inputs differ
        ((4, 2), (2, 5), (4, 5, 1, 2)),  # a convolution that the factors do not unfold to
        ((4, 2, 1), (2, 5), (4, 5)),  # not a matrix
    ],
)
def test_factors_that_do_not_fit_are_refused(b: tuple[int, ...], a: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(SliderError) as caught:
        LowRank(torch.zeros(b), torch.zeros(a), shape)
    assert str(b) in str(caught.value)
    assert str(a) in str(caught.value)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("operation", ["__add__", "__sub__", "inner"])
@pytest.mark.parametrize("shape", [(5, 18), (4, 17), (4, 2, 3, 3)])
def test_updates_of_unlike_weights_do_not_mix(operation: str, shape: tuple[int, ...]) -> None:
    """Nor where the unfolded shapes agree, as those of a linear layer and a convolution may."""
    with pytest.raises(SliderError) as caught:
        getattr(lowrank((4, 18), 2), operation)(lowrank(shape, 2))
    assert str((4, 18)) in str(caught.value)
    assert str(shape) in str(caught.value)


def test_a_negative_rank_is_refused() -> None:
    for compress in (lowrank((5, 4), 3).compress, lambda k: LowRank.nearest(torch.zeros(5, 4), k)):
        with pytest.raises(SliderError, match="-1"):
            compress(-1)


def test_products_that_do_not_fit_are_refused() -> None:
    update = lowrank((5, 4), 2)
    for product in (
        lambda: update @ lowrank((5, 4), 2),
        lambda: update @ torch.zeros(4),
        lambda: torch.zeros(4) @ update,
    ):
        with pytest.raises(SliderError, match=r"\(5, 4\)"):
            product()


def test_equality_does_not_crash() -> None:
    """Two updates may be compared; what counts as equal is left open."""
    assert isinstance(lowrank((4, 3), 2) == cast(object, lowrank((4, 3), 2, seed=1)), bool)
