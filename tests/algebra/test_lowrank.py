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
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=50, derandomize=True)
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


def in_gauge(update: LowRank, seed: int) -> LowRank:
    """The same update by other factors: ``B G`` and ``G^-1 A`` with a random, well-conditioned ``G``."""
    r = update.rank
    left, right = (torch.linalg.qr(normal(r, r, seed=seed + i)).Q for i in range(2))
    g = left @ torch.diag(torch.linspace(0.5, 2, r, dtype=torch.float64)) @ right
    return LowRank(update.B @ g, torch.linalg.solve(g, update.A), update.shape)


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
        if (callable(value) or isinstance(value, property))
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
    with pytest.raises(SliderError, match="-1"):
        lowrank((5, 4), 3).compress(-1)


def test_equality_does_not_crash() -> None:
    """Two updates may be compared; what counts as equal is left open."""
    assert isinstance(lowrank((4, 3), 2) == cast(object, lowrank((4, 3), 2, seed=1)), bool)
