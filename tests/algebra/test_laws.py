"""Predicates and distances against dense oracles, each with an edit that has the law and one that has not."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.compose import compress
from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine, Edit, Identity, Translation
from sliders.algebra.element import Element
from sliders.algebra.laws import (
    commutes,
    inverse_residue,
    is_associative,
    is_idempotent,
    is_invertible,
    is_transitive,
    order_gap,
)
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from tests.algebra.cases import METHODS, SHAPES, Rounding, edit, element_in_gauge
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=12, derandomize=True)
methods = st.sampled_from(sorted(METHODS))
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**16)
WEIGHT, BIAS = normal(5, 4, seed=1), normal(5, seed=2)


def as_matrix(f: Edit, shape: tuple[int, ...]) -> Tensor:
    """The map on ``[W b]`` as a dense affine matrix, from what it does to 0 and to each unit layer."""
    out, w = shape[0], Element.of(shape).right.shape[0] + 1

    def run(layer: Tensor) -> Tensor:
        weight, bias = f.apply_layer("fc", layer[:, :-1].reshape(shape), layer[:, -1])
        assert bias is not None
        return torch.cat([weight.flatten(1), bias[:, None]], 1).flatten()

    shift = run(torch.zeros(out, w, dtype=torch.float64))
    units = torch.eye(out * w, dtype=torch.float64).view(-1, out, w)
    return torch.cat([torch.stack([run(unit) - shift for unit in units], 1), shift[:, None]], 1)


def dense_distance(f: Edit, g: Edit, shape: tuple[int, ...]) -> float:
    """The definition, on the layer with its bias: ``W`` has variance ``1 / width``, and the shift is not random."""
    gap = as_matrix(f, shape) - as_matrix(g, shape)
    return float(gap[:, :-1].square().sum() / (gap.shape[1] - 1) * shape[0] + gap[:, -1].square().sum()) ** 0.5


@laws
@given(methods, methods, shapes, seeds)
def test_distance_is_that_of_the_maps(one: str, two: str, shape: tuple[int, ...], seed: int) -> None:
    f, g = (Affine({"fc": edit(name, shape, seed + i)["fc"].with_bias()}) for i, name in enumerate((one, two)))
    assert distance(f, g) == pytest.approx(dense_distance(f, g, shape), rel=1e-8, abs=1e-8)
    assert distance(g, f) == pytest.approx(distance(f, g), rel=1e-8, abs=1e-8)
    assert size(f) == pytest.approx(dense_distance(f, Identity(), shape), rel=1e-8)


def test_distance_of_translations_is_the_norm() -> None:
    a, b = (Translation({"fc": lowrank((5, 4), 2, i), "out": lowrank((3, 2), 1, i)}) for i in range(2))
    assert distance(a, b) == pytest.approx((a - b).norm())
    assert distance(a, a) < 1e-12


@laws
@given(methods, methods, shapes, seeds)
def test_what_commutes_has_no_order_gap(one: str, two: str, shape: tuple[int, ...], seed: int) -> None:
    """The two levels agree: the factors' verdict is what is seen at a random weight."""
    f, g = edit(one, shape, seed), edit(two, shape, seed + 1)
    weight, bias = normal(*shape, seed=seed + 3), normal(shape[0], seed=seed + 4)
    gap = order_gap(f, g, {"fc": weight}, {"fc": bias})
    assert bool(commutes(f, g)) == (gap < 1e-7)
    turned = Affine({"fc": element_in_gauge(f["fc"], seed)})
    assert commutes(turned, g).value == pytest.approx(commutes(f, g).value, abs=1e-8)


def test_both_verdicts_on_commuting_occur() -> None:
    """Control of the test above, and the reasons."""
    same, other, apart = edit("translation", (5, 4), 1), edit("steering", (5, 4), 2), edit("uce", (5, 4), 3)
    assert commutes(same, other)
    law = commutes(other, edit("leace", (5, 4), 3))
    assert not law
    assert law.value > 1e-2
    assert "'fc'" in law.reason
    assert commutes(apart, apart)
    assert "no module in common" in commutes(apart, Affine({"other": apart["fc"]})).reason
    assert "translations" in commutes(Translation({}), Translation({})).reason
    assert commutes(Affine({"fc": Element.of((5, 4))}), apart)
    with pytest.raises(SliderError, match="do not mix"):
        commutes(Translation({"fc": lowrank((5, 4), 2)}), Translation({"fc": lowrank((4, 5), 2)}))


def test_half_of_what_a_translation_adds_to_an_ablated_direction_depends_on_the_order() -> None:
    """A value that can be worked out by hand: the share of the update that the projection takes away."""
    v = torch.nn.functional.normalize(torch.ones(5, dtype=torch.float64), dim=0)
    across = torch.linalg.qr(torch.stack([v, normal(5, seed=1)], 1)).Q[:, 1]
    row = 0.01 * torch.nn.functional.normalize(normal(4, seed=2), dim=0)
    update = Translation({"fc": LowRank(((v + across) / 2**0.5)[:, None], row[None], (5, 4))})
    projection = Affine({"fc": Element.of((5, 4), left=LowRank(-v[:, None], v[None], (5, 5)))})
    assert commutes(update, projection).value == pytest.approx(0.5**0.5)


def test_order_gap_sees_edits_outside_the_monoid() -> None:
    f = edit("translation", (5, 4), 1)
    rounding = Rounding()
    assert order_gap(f, rounding, {"fc": WEIGHT}) > 1e-4
    assert order_gap(f, Identity(), {"fc": WEIGHT}) == 0
    with pytest.raises(SliderError, match=r"Rounding is not in the monoid.*order_gap"):
        commutes(f, rounding)


def test_reasons_of_invertibility_and_idempotence() -> None:
    update = Translation({"fc": lowrank((5, 4), 2)})
    assert "taken away" in is_invertible(update).reason
    assert "add up" in is_idempotent(update).reason
    assert "changes nothing" in is_idempotent(Identity()).reason
    near = is_invertible(edit("uce", (5, 4), 1))
    assert near
    assert near.value < 1
    assert "R of 'fc'" in near.reason
    assert "'fc'" in is_idempotent(edit("memit", (5, 4), 1)).reason


def test_invertibility_has_the_singular_values_of_the_factor() -> None:
    f = edit("uce", (5, 4), 1)
    values = torch.linalg.svdvals(torch.eye(4) + f["fc"].right.dense())
    assert is_invertible(f).value == pytest.approx(float(values[-1] / values[0]))


def test_the_sum_associates_and_cutting_does_not() -> None:
    a, b, c = (Translation({"fc": lowrank((5, 4), 2, i)}) for i in range(3))
    assert is_associative(lambda x, y: x + y, a, b, c)
    law = is_associative(lambda x, y: compress(x + y, rank=1).update, a, b, c)
    assert not law
    assert law.value > 1e-2
    assert "differ by" in law.reason


def test_commuting_is_not_transitive() -> None:
    """Every edit commutes with the identity, and with what acts elsewhere; those need not commute."""
    edits = {"leace": edit("leace", (5, 4), 1), "none": Identity(), "steer": edit("steering", (5, 4), 2)}
    law = is_transitive(edits)
    assert not law
    assert law.broken == (("leace", "none", "steer"),)
    assert law.value == 1
    assert "'leace' commutes with 'none' and 'none' with 'steer'" in law.reason


def test_commuting_is_transitive_among_translations() -> None:
    law = is_transitive({str(i): Translation({"fc": lowrank((5, 4), 2, i)}) for i in range(4)})
    assert law
    assert "12 triples" in law.reason


@pytest.mark.parametrize("method", ["translation", "uce", "general"])
def test_taking_an_edit_back_leaves_the_more_the_coarser_the_numbers(method: str) -> None:
    f = edit(method, (5, 4), 1)
    residues = inverse_residue(
        f, {"fc": WEIGHT}, {"fc": BIAS}, (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    )
    values = [law.value for law in residues.values()]
    assert values == sorted(values)
    assert values[0] < 1e-12
    assert 1e-4 < values[-1] < 1
    assert residues[torch.float32]
    assert not residues[torch.bfloat16]
    assert "bfloat16" in residues[torch.bfloat16].reason


def test_what_has_no_inverse_has_no_residue() -> None:
    with pytest.raises(SliderError, match="singular"):
        inverse_residue(edit("rome", (5, 4), 1), {"fc": WEIGHT})


@pytest.mark.parametrize("name", METHODS)
def test_float32_elements_have_the_laws_of_float64_ones(name: str) -> None:
    """Tolerances follow the precision of the factors."""
    f = Affine({"fc": edit(name, (5, 4), 1)["fc"].to(torch.float32)})
    assert bool(is_idempotent(f)) == METHODS[name].idempotent
    assert bool(is_invertible(f)) == METHODS[name].invertible
    assert commutes(f, f)


def test_the_group_of_translations_is_abelian_and_the_monoid_is_not() -> None:
    names = [name for name in METHODS if name not in ("translation", "steering")]
    verdicts = [bool(commutes(edit(a, (5, 4), 1), edit(b, (5, 4), 2))) for a, b in itertools.combinations(names, 2)]
    assert not any(
        v for v, (a, b) in zip(verdicts, itertools.combinations(names, 2), strict=True) if {a, b} == {"rome", "uce"}
    )
    assert_close(as_matrix(Identity(), (2, 2))[:, :-1], torch.eye(6, dtype=torch.float64))
