"""What `docs/derivations/` states of each method, in float64, each with a case where it fails."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra import closed_forms as elements
from sliders.algebra.closed_forms import erase_output, onto, redirect, steer_input, steer_output
from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine, Identity, Translation
from sliders.algebra.element import Element
from sliders.algebra.laws import commutes, is_group, is_idempotent, is_invertible
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Interpolated
from tests.algebra.cases import (
    covariance,
    factored,
    least_squares,
    memit_element,
    oblique,
    rome_element,
    rome_parts,
)
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=10, derandomize=True)
seeds = st.integers(0, 2**16)
SHAPE, OUT, IN = (6, 5), 6, 5
EYE = torch.eye(IN, dtype=torch.float64)


def one(element: Element) -> Affine:
    return Affine({"fc": element})


def apply(f: Affine, weight: Tensor) -> Tensor:
    return f.apply("fc", weight)


# rome.md


@laws
@given(seeds)
def test_rome_answers_its_key_and_damages_others_by_the_formula(seed: int) -> None:
    k, u, v = rome_parts(SHAPE, seed)
    weight, other = normal(*SHAPE, seed=seed + 3), normal(IN, seed=seed + 4)
    edited = apply(one(rome_element(k, u, v, SHAPE)), weight)
    assert_close(edited @ k, v)
    assert_close((edited - weight) @ other, (v - weight @ k) * (u @ other) / (u @ k))
    apart = other - k * (u @ other) / (u @ k)
    assert_close(edited @ apart, weight @ apart)  # no damage where C^-1 k does not see it
    assert ((edited - weight) @ other).norm() > 1e-6  # control


@laws
@given(seeds)
def test_rome_commutes_where_the_keys_are_orthogonal_in_the_inverse_covariance(seed: int) -> None:
    c = covariance(IN, seed)
    k1, k2 = normal(IN, seed=seed), normal(IN, seed=seed + 1)
    v1, v2 = normal(OUT, seed=seed + 2), normal(OUT, seed=seed + 3)
    apart = k2 - k1 * (elements.rome_gains(k1[:, None], c)[0] @ k2)

    def fit(k: Tensor, v: Tensor) -> Affine:
        return one(elements.write(k[:, None], elements.rome_gains(k[:, None], c), v[:, None], SHAPE))

    assert commutes(fit(k1, v1), fit(apart, v2))
    assert not commutes(fit(k1, v1), fit(k2, v2))  # control
    assert commutes(fit(k1, v1), fit(2 * k1, 2 * v1))  # one and the same edit
    assert not commutes(fit(k1, v1), fit(k1, v2))  # one key, two answers: the last one stays
    assert distance(fit(k1, v1) @ fit(k1, v2), fit(k1, v1)) < 1e-9 * (1 + size(fit(k1, v1)))


# memit.md


@laws
@given(seeds)
def test_memit_contracts_towards_its_answers_in_the_metric_of_the_covariance(seed: int) -> None:
    c, keys, values = covariance(IN, seed), normal(IN, 2, seed=seed), normal(OUT, 2, seed=seed + 1)
    f = one(memit_element(0.5 * c, keys, values, SHAPE))
    weight, other = normal(*SHAPE, seed=seed + 2), normal(*SHAPE, seed=seed + 3)
    root = torch.linalg.cholesky(c)
    assert ((apply(f, weight) - apply(f, other)) @ root).norm() < ((weight - other) @ root).norm()
    left = [(values - w @ keys).norm() for w in (weight, apply(f, weight), apply(f, apply(f, weight)))]
    assert left[0] > left[1] > left[2] > 0
    assert is_invertible(f)
    assert not is_idempotent(f)
    hard = one(memit_element(1e-12 * c, keys, values, SHAPE))
    assert is_idempotent(hard, 1e-4)  # the limit lambda = 0 is ROME with several keys
    assert_close(apply(hard, weight) @ keys, values, atol=1e-5, rtol=1e-5)


def test_memit_does_not_contract_in_the_ordinary_norm() -> None:
    """Control: the metric above is not decoration."""
    c = torch.diag(torch.tensor([1.0, 0.01, 1, 1, 1], dtype=torch.float64))
    keys = torch.tensor([[1.0], [1], [0], [0], [0]], dtype=torch.float64)
    f = one(memit_element(0.1 * c, keys, torch.zeros(OUT, 1, dtype=torch.float64), SHAPE))
    right = EYE + f["fc"].right.dense()
    assert torch.linalg.matrix_norm(right, 2) > 1.1
    weight = torch.outer(normal(OUT, seed=1), torch.linalg.svd(right)[0][:, 0])
    assert apply(f, weight).norm() > 1.1 * weight.norm()
    values = torch.linalg.eigvals(right).real
    assert values.min() > 0
    assert values.max() < 1 + 1e-9


@laws
@given(seeds)
def test_memit_in_sequence_is_memit_at_once_if_the_first_keys_join_the_covariance(seed: int) -> None:
    c, lam = covariance(IN, seed), 0.4
    k1, k2, v1, v2 = normal(IN, 2, seed=1), normal(IN, 1, seed=2), normal(OUT, 2, seed=3), normal(OUT, 1, seed=4)
    joint = one(memit_element(lam * c, torch.cat([k1, k2], 1), torch.cat([v1, v2], 1), SHAPE))
    first = one(memit_element(lam * c, k1, v1, SHAPE))
    second = one(memit_element(lam * c + k1 @ k1.T, k2, v2, SHAPE))
    assert distance(second @ first, joint) < 1e-8 * (1 + size(joint))
    weight = normal(*SHAPE, seed=seed)
    wanted = least_squares(weight, lam * c, torch.cat([k1, k2], 1), torch.cat([v1, v2], 1))
    assert_close(apply(second @ first, weight), wanted, atol=1e-7, rtol=1e-7)
    as_written = one(memit_element(lam * (c + k1 @ k1.T), k2, v2, SHAPE))  # control: inside lambda it is not
    forgetful = one(memit_element(lam * c, k2, v2, SHAPE))
    for other in (as_written, forgetful):
        assert distance(other @ first, joint) > 1e-3


# uce.md


def uce(c: Tensor, concepts: Tensor, targets: Tensor) -> Affine:
    return one(redirect(concepts, targets, c, SHAPE))


@laws
@given(seeds)
def test_uce_is_singular_where_the_determinant_says(seed: int) -> None:
    """``det M = (lambda + c g) / (lambda + c c)`` for one concept and nothing preserved."""
    lam, c, g = 0.3, normal(IN, 1, seed=seed), normal(IN, 1, seed=seed + 1)
    m = EYE + uce(lam * EYE, c, g)["fc"].right.dense()
    assert_close(torch.linalg.det(m), ((lam + c.T @ g) / (lam + c.T @ c)).squeeze())
    bad = g - c * ((c.T @ g + lam) / (c.T @ c))
    assert not is_invertible(uce(lam * EYE, c, bad))
    assert is_invertible(uce(lam * EYE, c, 0 * c))  # erasing to nothing is invertible for lambda > 0


@laws
@given(seeds)
def test_uce_commutes_where_neither_target_is_seen_by_the_other(seed: int) -> None:
    lam, q = 0.3, torch.linalg.qr(normal(IN, 4, seed=seed)).Q
    a, b, c, d = (q[:, i : i + 1] for i in range(4))
    one_way, other = uce(lam * EYE, a, b), uce(lam * EYE, c, d)
    assert commutes(one_way, other)
    assert not commutes(one_way, uce(lam * EYE, b, c))  # control: a -> b and b -> c
    assert not commutes(one_way, uce(lam * EYE, a + c, d))


@laws
@given(seeds)
def test_replacing_is_transitive_in_one_order_alone(seed: int) -> None:
    """Near lambda = 0: b -> c and then a -> b sends a to c; a -> b and then b -> c leaves a at b."""
    q, weight = torch.linalg.qr(normal(IN, 3, seed=seed)).Q, normal(*SHAPE, seed=seed + 1)
    a, b, c = (q[:, i : i + 1] for i in range(3))
    ab, bc = uce(1e-9 * EYE, a, b), uce(1e-9 * EYE, b, c)
    for edited, key, answer in ((ab @ bc, a, c), (bc @ ab, a, b), (bc @ ab, b, c)):
        assert_close(apply(edited, weight) @ key, weight @ answer, atol=1e-6, rtol=1e-6)


# leace.md


def fit_leace(points: Tensor, labels: Tensor) -> Affine:
    """LEACE by its definition on data ``[n, out]`` and ``[n, k]``, with pseudo-inverses as an eraser's output needs."""
    x, z = points - points.mean(0), labels - labels.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-10 * values[-1]
    root = vectors[:, kept] * values[kept].sqrt() @ vectors[:, kept].T
    white = vectors[:, kept] / values[kept].sqrt() @ vectors[:, kept].T
    q = onto(white @ (x.T @ z))
    projection = root @ q.dense() @ white
    return one(erase_output(factored(projection), points.mean(0), SHAPE))


def through(f: Affine, points: Tensor) -> Tensor:
    """What points look like that the edited layer puts out: the identity layer's outputs."""
    shape = (OUT, OUT)
    element = f["fc"]
    whole = Element.of(shape, left=element.left, shift=_only_bias(element, shape))
    weight, bias = whole.apply(torch.eye(OUT, dtype=torch.float64), torch.zeros(OUT, dtype=torch.float64))
    assert bias is not None
    return points @ weight.T + bias


def _only_bias(element: Element, shape: tuple[int, int]) -> LowRank:
    down = torch.zeros(element.shift.rank, shape[1] + 1, dtype=torch.float64)
    down[:, -1] = element.shift.A[:, -1]
    return LowRank(element.shift.B, down, (shape[0], shape[1] + 1))


@laws
@given(seeds)
def test_leace_refitted_in_sequence_is_leace_fitted_jointly(seed: int) -> None:
    points = normal(60, OUT, seed=seed) @ normal(OUT, OUT, seed=seed + 1) + normal(OUT, seed=seed + 2)
    z1, z2 = points @ normal(OUT, 1, seed=3) + normal(60, 1, seed=4), points @ normal(OUT, 1, seed=5)
    first, joint = fit_leace(points, z1), fit_leace(points, torch.cat([z1, z2], 1))
    second = fit_leace(through(first, points), z2)
    assert_close(through(second, through(first, points)), through(joint, points), atol=1e-6, rtol=1e-6)
    assert distance(second @ first, joint) < 1e-6 * (1 + size(joint))
    apart = fit_leace(points, z2)  # control: fitted on the base instead
    assert distance(apart @ first, joint) > 1e-3
    assert not commutes(apart, first)
    assert_close(through(joint, points).mean(0), points.mean(0))
    assert is_idempotent(joint, 1e-6)


def test_leace_is_oblique() -> None:
    p = oblique(OUT, 2, 1)
    assert_close(p @ p, p)
    assert (p - p.T).abs().max() > 1e-2


# ablation.md


@laws
@given(seeds, st.floats(0.1, 1.4))
def test_ablations_commute_at_right_angles_or_none_alone(seed: int, angle: float) -> None:
    q = torch.linalg.qr(normal(OUT, 2, seed=seed)).Q
    v, w = q[:, :1], q[:, 1:]
    slanted = v * torch.tensor(angle).cos() + w * torch.tensor(angle).sin()
    ablate = {name: one(erase_output(onto(d), None, SHAPE)) for name, d in (("v", v), ("w", w), ("slanted", slanted))}
    assert commutes(ablate["v"], ablate["w"])
    assert commutes(ablate["v"], ablate["v"])
    assert is_idempotent(ablate["v"] @ ablate["w"])
    assert distance(ablate["v"] @ ablate["w"], one(erase_output(onto(q), None, SHAPE))) < 1e-9
    assert not commutes(ablate["v"], ablate["slanted"])  # control
    assert not is_idempotent(ablate["v"] @ ablate["slanted"])


# steering.md


@laws
@given(seeds)
def test_steering_is_a_translation_of_the_bias(seed: int) -> None:
    v, w, update = normal(OUT, seed=seed), normal(OUT, seed=seed + 1), lowrank(SHAPE, 2, seed)
    f, slider = one(steer_output(v, SHAPE)), Translation({"fc": update})
    assert commutes(f, one(steer_output(w, SHAPE)))
    assert commutes(f, slider)
    assert is_group(Interpolated("steer", f))
    assert not commutes(f, one(erase_output(onto(v[:, None]), None, SHAPE)))  # control: ablating what it adds
    across = w - v * (v @ w) / (v @ v)
    assert commutes(f, one(erase_output(onto(across[:, None]), None, SHAPE)))


@laws
@given(seeds)
def test_steering_the_input_is_a_group_that_sees_what_sliders_read(seed: int) -> None:
    v, update = normal(IN, seed=seed), lowrank(SHAPE, 2, seed)
    f = one(steer_input(v, SHAPE))
    assert is_group(Interpolated("steer", f))
    assert commutes(f, one(steer_input(normal(IN, seed=seed + 1), SHAPE)))
    assert not commutes(f, Translation({"fc": update}))  # control
    blind = update @ (EYE - torch.outer(v, v) / (v @ v))
    assert commutes(f, Translation({"fc": blind}))
    assert distance(f.inverse(), one(steer_input(-v, SHAPE))) < 1e-12


# affine.md


def test_one_map_has_several_triples() -> None:
    """``(c L) W (R / c)`` is ``L W R``: equality is that of maps, which `distance` measures."""
    left, right = lowrank((2, 2), 1, 1), lowrank((3, 3), 1, 2)
    eye2, eye3 = torch.eye(2, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    f = Element.of((2, 3), left, right)
    g = Element.of((2, 3), factored(2 * (eye2 + left.dense()) - eye2), factored((eye3 + right.dense()) / 2 - eye3))
    assert (f.left.dense() - g.left.dense()).abs().max() > 0.1
    assert distance(one(f), one(g)) < 1e-7


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bias_goes_with_the_left_factor_and_not_with_the_right(side: str) -> None:
    part = lowrank((4, 4), 2, 1)
    element = Element.of((4, 4), **{side: part})
    weight, bias = normal(4, 4, seed=1), normal(4, seed=2)
    edited, moved = element.apply(weight, bias)
    eye = torch.eye(4, dtype=torch.float64)
    factor = eye + part.dense()
    assert_close(edited, factor @ weight if side == "left" else weight @ factor)
    assert_close(moved, factor @ bias if side == "left" else bias)
    assert distance(one(element), one(element.with_bias())) < 1e-12
    assert distance(one(element), Identity()) > 0.1
