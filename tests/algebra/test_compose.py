"""Sums, compression and orthogonalising: what is exact, and that the reported errors are the true ones."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.compose import Composition, combine, compose, compress, inner, orthogonalise
from sliders.algebra.edit import Affine, Translation
from sliders.algebra.pairs import pairwise
from sliders.algebra.slider import Interpolated, Slider, hinge
from sliders.errors import SliderError
from tests.algebra.cases import in_gauge
from tests.factory import lowrank

laws = settings(deadline=None, max_examples=12, derandomize=True)
SHAPES = {"fc": (6, 5), "conv": (4, 3, 2, 2)}
seeds = st.integers(0, 2**16)


def slider(name: str, seed: int, rank: int = 2) -> Slider:
    return Slider(name, Translation({m: lowrank(shape, rank, seed + i) for i, (m, shape) in enumerate(SHAPES.items())}))


def flat(update: Translation) -> Tensor:
    """Every entry of every module, in one row."""
    return torch.cat(
        [update[m].dense().flatten() if m in update else torch.zeros(math.prod(s)).double() for m, s in SHAPES.items()]
    )


def check_report(result: Composition, wanted: Translation, *inputs: Translation) -> None:
    """The errors and the survival that a composition reports are those of the dense weights."""
    assert result.error == pytest.approx(
        float((flat(result.update) - flat(wanted)).norm() / flat(wanted).norm()), abs=1e-9
    )
    for module, error in result.errors.items():
        gap = (result.update[module].dense() - wanted[module].dense()).norm() / wanted[module].dense().norm()
        assert error == pytest.approx(float(gap), abs=1e-9)
    for survived, x in zip(result.survived, inputs, strict=True):
        assert survived == pytest.approx(float(flat(result.update) @ flat(x) / flat(x).square().sum()), abs=1e-9)


@laws
@given(seeds, st.floats(-1, 1), st.floats(-1, 1))
def test_combining_is_the_sum_at_the_dials(seed: int, s: float, t: float) -> None:
    a, b = slider("a", seed), slider("b", seed + 9, rank=3)
    some = Slider("c", Translation({"fc": lowrank((6, 5), 1, seed)}))
    total = combine([(a, s), (b, t), (some, 1.0)])
    assert_close(flat(total), s * flat(a.update) + t * flat(b.update) + flat(some.update))
    assert total["fc"].rank == 6
    assert total["conv"].rank == 5


def test_combining_takes_hinges_and_refuses_what_is_no_translation() -> None:
    a, b = slider("a", 1), slider("b", 2)
    assert_close(flat(combine([(hinge(a, b), -0.5), (b, 1.0)])), flat(b.update) - 0.5 * flat(a.update))
    with pytest.raises(SliderError, match="Interpolated gives an edit that is no translation"):
        combine([(Interpolated("p", Affine(a.update.elements())), 1.0)])


def test_combining_refuses_unlike_weights_by_name() -> None:
    other = Slider("b", Translation({"fc": lowrank((5, 6), 2)}))
    with pytest.raises(SliderError, match=r"'fc'"):
        combine([(slider("a", 1), 1.0), (other, 1.0)])
    assert len(combine([])) == 0


@laws
@given(seeds, st.integers(0, 4))
def test_compress_reports_its_error(seed: int, rank: int) -> None:
    update = slider("a", seed, rank=4).update
    for result in (compress(update, rank=rank), compress(update, total_rank=2 * rank)):
        check_report(result, update, update)
        assert sum(part.rank for part in result.update.values()) <= 2 * rank
    spread, even = compress(update, total_rank=2 * rank).error, compress(update, rank=rank).error
    assert spread <= even + 1e-12
    assert (even > 1e-3) == (rank < 4)  # control: it loses something where it must


@laws
@given(seeds, st.floats(0.01, 0.9))
def test_compress_to_a_tolerance_takes_no_more_rank_than_it_needs(seed: int, tolerance: float) -> None:
    update = slider("a", seed, rank=4).update
    result = compress(update, tolerance=tolerance)
    assert result.error <= tolerance + 1e-12
    spent = sum(part.rank for part in result.update.values())
    assert compress(update, total_rank=spent - 1).error > tolerance
    assert compress(update, tolerance=0).error < 1e-12
    assert compress(update, tolerance=1).error == pytest.approx(1)


@pytest.mark.parametrize("given_", [{}, {"rank": 1, "tolerance": 0.1}, {"total_rank": -1}])
def test_compress_takes_exactly_one_limit(given_: dict[str, int]) -> None:
    with pytest.raises(SliderError, match="exactly one"):
        compress(slider("a", 1).update, **given_)
    assert compress(Translation({}), total_rank=3).error == 0


@laws
@given(seeds)
def test_orthogonalising_makes_zero_what_it_says(seed: int) -> None:
    a, b = slider("a", seed), slider("b", seed + 9)
    by_inner, by_columns, by_rows = (orthogonalise(b, a, by) for by in ("inner", "columns", "rows"))
    for result in (by_inner, by_columns, by_rows):
        check_report(result, b.update, b.update)
        for module in SHAPES:
            assert abs(float(result.update[module].inner(a.update[module]))) < 1e-10
            assert abs(float(b.update[module].inner(a.update[module]))) > 1e-10  # control
    assert by_inner.error <= min(by_columns.error, by_rows.error) + 1e-12  # it is the least change
    for module in SHAPES:
        theirs, kept = a.update[module].dense().flatten(1), by_columns.update[module].dense().flatten(1)
        assert_close(theirs.T @ kept, torch.zeros(theirs.shape[1], theirs.shape[1], dtype=torch.float64))
        kept = by_rows.update[module].dense().flatten(1)
        assert_close(theirs @ kept.T, torch.zeros(len(theirs), len(theirs), dtype=torch.float64))
        assert by_rows.update[module].rank == b.update[module].rank
    for result in (by_columns, by_rows):
        assert float(pairwise([a, Slider("b", result.update)]).interference[0, 1]) < 1e-6


@laws
@given(seeds)
def test_orthogonalising_against_several_is_against_their_span(seed: int) -> None:
    """Also where one of them is in the span of the others."""
    a, b, c = slider("a", seed, 1), slider("b", seed + 9), slider("c", seed + 18, 1)
    twice = Slider("twice", a.update * 2.0)
    for by in ("inner", "columns", "rows"):
        result = orthogonalise(b, [a, c, twice], by)
        check_report(result, b.update, b.update)
        one_by_one = orthogonalise(Slider("b", orthogonalise(b, a, by).update), c, by)
        for module in SHAPES:
            kept = result.update[module]
            for other in (a, c):
                gaps = {
                    "inner": kept.inner(other.update[module]),
                    "columns": (other.update[module].T @ kept.unfolded()).norm(),
                    "rows": (other.update[module].unfolded() @ kept.T).norm(),
                }
                assert abs(float(gaps[by])) < 1e-9
            assert abs(float(one_by_one.update[module].inner(a.update[module]))) > 1e-9  # control: c brings a back
        assert result.error >= orthogonalise(b, a, by).error - 1e-12


def test_orthogonalising_leaves_modules_that_the_other_does_not_change() -> None:
    a, b = Slider("a", Translation({"fc": lowrank((6, 5), 2)})), slider("b", 1)
    result = orthogonalise(b, a, "columns")
    assert result.update["conv"] is b.update["conv"]
    assert result.errors["conv"] < 1e-12
    nothing = orthogonalise(b, Slider("zero", b.update * 0.0), "inner")
    assert nothing.error < 1e-12
    assert nothing.survived == pytest.approx((1.0,))


@laws
@given(seeds)
def test_composing_does_not_depend_on_the_gauge(seed: int) -> None:
    a, b = slider("a", seed), slider("b", seed + 9)
    x, y = (Slider(s.name, Translation({m: in_gauge(u, seed) for m, u in s.update.items()})) for s in (a, b))
    assert_close(flat(combine([(x, 0.5), (y, 2.0)])), flat(combine([(a, 0.5), (b, 2.0)])))
    assert_close(flat(compress(x.update, total_rank=2).update), flat(compress(a.update, total_rank=2).update))
    for by in ("inner", "columns", "rows"):
        assert_close(flat(orthogonalise(y, x, by).update), flat(orthogonalise(b, a, by).update))
    assert inner(x.update, y.update) == pytest.approx(inner(a.update, b.update))


class TestCompose:
    """A slider that is several."""

    def test_it_adds_their_edits_and_their_names(self) -> None:
        parts = [slider(name, seed) for name, seed in (("a", 1), ("b", 2))]
        for at, positions in ((1.0, (1.0, 1.0)), ([1.5, -0.5], (1.5, -0.5))):
            made = compose(*parts, at=at)
            wanted = parts[0].at(positions[0]) + parts[1].at(positions[1])
            for module in wanted:
                assert_close(made.update[module].dense(), wanted[module].dense())
            assert made.name == "a+b"
        assert compose(*parts, name="both").name == "both"

    def test_the_base_is_kept_where_all_have_it(self) -> None:
        known = {"sliders.base_model": "avatars", "sliders.effect": "2"}
        one, two = (replace(slider(name, seed), metadata=known) for name, seed in (("a", 1), ("b", 2)))
        assert compose(one, two).metadata == {"sliders.base_model": "avatars"}
        other = replace(slider("c", 3), metadata={"sliders.base_model": "another"})
        assert compose(one, other).metadata == {}

    @pytest.mark.parametrize("given", [([], 1.0), ([1, 2], [1.0])], ids=["none", "too few positions"])
    def test_a_position_for_each(self, given: tuple[list[int], float | list[float]]) -> None:
        with pytest.raises(SliderError, match="one each"):
            compose(*(slider(str(seed), seed) for seed in given[0]), at=given[1])
