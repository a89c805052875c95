"""The affine monoid: every method against its dense oracle, and every law of all of them, with its control."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import erase_output, onto
from sliders.algebra.distance import distance, size
from sliders.algebra.edit import Affine, Chain, Edit, Identity, Translation
from sliders.algebra.element import Element, unit_extremes, unit_singular_values
from sliders.algebra.laws import is_idempotent, is_invertible
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from tests.algebra.cases import METHODS, SHAPES, Rounding, edit, element_in_gauge, width
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=12, derandomize=True)
methods = st.sampled_from(sorted(METHODS))
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**16)
INVERTIBLE = [name for name, method in METHODS.items() if method.invertible]
PROJECTIONS = [name for name, method in METHODS.items() if not method.invertible]


def layer(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    return normal(*shape, seed=seed + 11), normal(shape[0], seed=seed + 12)


def after(shape: tuple[int, ...], seed: int, *edits: Edit) -> Tensor:
    """``[W b]`` when the edits are applied one after the other."""
    weight, bias = layer(shape, seed)
    for step in edits:
        weight, edited = step.apply_layer("fc", weight, bias)
        assert edited is not None
        bias = edited
    return torch.cat([weight.flatten(1), bias[:, None]], 1)


@pytest.mark.parametrize("name", METHODS)
@laws
@given(shapes, seeds)
def test_an_element_does_what_the_method_does(name: str, shape: tuple[int, ...], seed: int) -> None:
    element, oracle = METHODS[name].draw(shape, seed)
    weight, bias = layer(shape, seed)
    edited, edited_bias = element.apply(weight, bias)
    wanted, wanted_bias = oracle(weight.flatten(1), bias)
    assert edited.shape == weight.shape
    assert_close(edited.flatten(1), wanted)
    assert_close(edited_bias, wanted_bias)
    assert (edited - weight).abs().max() + (wanted_bias - bias).abs().max() > 1e-2  # control: it does something


@laws
@given(methods, methods, shapes, seeds)
def test_closure(one: str, two: str, shape: tuple[int, ...], seed: int) -> None:
    """The composition is again one element, and does what the two do in turn."""
    f, g = edit(one, shape, seed), edit(two, shape, seed + 1)
    assert isinstance(f @ g, Affine)
    assert_close(after(shape, seed, f @ g), after(shape, seed, g, f))


def test_the_order_of_a_composition_is_seen() -> None:
    """Control: the other order is another map."""
    f, g = edit("rome", (5, 4), 1), edit("uce", (5, 4), 2)
    assert (after((5, 4), 0, f @ g) - after((5, 4), 0, f, g)).abs().max() > 1e-2


@laws
@given(methods, methods, methods, shapes, seeds)
def test_associativity(one: str, two: str, three: str, shape: tuple[int, ...], seed: int) -> None:
    f, g, h = (edit(name, shape, seed + i) for i, name in enumerate((one, two, three)))
    assert distance((f @ g) @ h, f @ (g @ h)) < 1e-9 * (1 + size(f @ (g @ h)))
    assert_close(after(shape, seed, (f @ g) @ h), after(shape, seed, h, g, f), rtol=1e-6, atol=1e-6)


@laws
@given(methods, shapes, seeds)
def test_the_identity_is_neutral(name: str, shape: tuple[int, ...], seed: int) -> None:
    f, one = edit(name, shape, seed), Identity()
    assert f @ one is f
    assert one @ f is f
    assert one.inverse() is one
    assert torch.equal(
        after(shape, seed, one), torch.cat([layer(shape, seed)[0].flatten(1), layer(shape, seed)[1][:, None]], 1)
    )
    assert distance(Affine({"fc": Element.of(shape)}), one) == 0


@pytest.mark.parametrize("name", INVERTIBLE)
@laws
@given(shapes, seeds)
def test_inverses(name: str, shape: tuple[int, ...], seed: int) -> None:
    f = edit(name, shape, seed)
    assert is_invertible(f)
    scale = 1e-7 * (1 + size(f)) * (1 + size(f.inverse()))
    assert distance(f.inverse() @ f, Identity()) < scale
    assert distance(f @ f.inverse(), Identity()) < scale
    start = after(shape, seed)
    assert float((after(shape, seed, f, f.inverse()) - start).abs().max()) < 10 * scale


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_projections_have_no_inverse_and_say_why(name: str, shape: tuple[int, ...]) -> None:
    """Control of the inverses, and what the message names: the module, the factor and the singular value."""
    f = edit(name, shape, 3)
    law = is_invertible(f)
    factor = "L" if name in ("ablation", "leace") else "R"
    with pytest.raises(SliderError, match=rf"'fc'.*factor {factor} is singular.*smallest singular value \d.\de[+-]"):
        f.inverse()
    assert not law
    assert f"factor {factor}" in law.reason
    assert law.value < 1e-12


@pytest.mark.parametrize("name", METHODS)
@laws
@given(shapes, seeds)
def test_idempotence_is_that_of_the_projections(name: str, shape: tuple[int, ...], seed: int) -> None:
    """The methods that are not idempotent are the control of those that are."""
    f = edit(name, shape, seed)
    law = is_idempotent(f)
    assert bool(law) == METHODS[name].idempotent
    assert law.value < 1e-8 if METHODS[name].idempotent else law.value > 1e-3
    if law:
        assert_close(after(shape, seed, f, f), after(shape, seed, f), atol=1e-8, rtol=1e-6)


@laws
@given(st.sampled_from(["ablation", "leace", "translation", "steering"]), shapes, seeds, st.floats(-2, 2))
def test_sums_and_numbers_are_those_of_displacements(one: str, shape: tuple[int, ...], seed: int, s: float) -> None:
    f, g = edit(one, shape, seed), edit("leace", shape, seed + 1)
    start = after(shape, seed)
    assert_close(after(shape, seed, f + g), after(shape, seed, f) + after(shape, seed, g) - start)
    assert_close(after(shape, seed, s * f), start + s * (after(shape, seed, f) - start))


def test_what_is_no_sum_in_the_monoid_is_refused() -> None:
    left, right, both = (edit(name, (5, 4), 1) for name in ("leace", "uce", "general"))
    with pytest.raises(SliderError, match=r"'fc'.*compose them with @"):
        _ = left + right
    with pytest.raises(SliderError, match=r"'fc'.*both sides"):
        _ = both * 0.5
    assert both * 1.0 is not None
    assert size(both * 0.0) == 0


def test_a_translation_adds_to_an_affine_edit() -> None:
    update = Translation({"fc": lowrank((5, 4), 2), "other": lowrank((3, 2), 1)})
    f = edit("ablation", (5, 4), 1)
    for total in (f + update, update + f):
        assert set(total.modules) == {"fc", "other"}
        assert_close(after((5, 4), 0, total), after((5, 4), 0, f) + after((5, 4), 0, update) - after((5, 4), 0))


OPERATIONS: dict[str, Callable[[Element, Element], Element]] = {
    "__matmul__": lambda f, g: f @ g,
    "__add__": lambda f, g: f + f,
    "__mul__": lambda f, g: f * 0.5,
    "__rmul__": lambda f, g: 0.5 * f,
    "inverse": lambda f, g: g.inverse(),
    "trim": lambda f, g: f.trim(),
    "with_bias": lambda f, g: f.with_bias(),
    "to": lambda f, g: f.to(torch.float64),
    "of": lambda f, g: Element.of(f.shape, f.left, f.right, f.shift),
}


@pytest.mark.parametrize("name", OPERATIONS)
@laws
@given(shapes, seeds)
def test_no_operation_on_elements_depends_on_the_gauge(name: str, shape: tuple[int, ...], seed: int) -> None:
    one, two = METHODS["leace"].draw(shape, seed)[0], METHODS["general"].draw(shape, seed)[0]
    plain = OPERATIONS[name](one, two)
    turned = OPERATIONS[name](element_in_gauge(one, seed), element_in_gauge(two, seed + 5))
    assert distance(Affine({"fc": plain}), Affine({"fc": turned})) < 1e-9
    weight, bias = layer(shape, seed)
    assert_close(plain.apply(weight, bias)[0], turned.apply(weight, bias)[0])


def test_the_gauge_test_sees_what_acts_on_factors() -> None:
    """Control."""
    one = METHODS["leace"].draw((5, 4), 1)[0]

    def averaged(e: Element) -> Affine:
        return Affine(
            {"fc": Element(e.shape, LowRank(e.left.B.clamp_max(0.1), e.left.A, e.left.shape), e.right, e.shift)}
        )

    assert distance(averaged(one), averaged(element_in_gauge(one, 2))) > 1e-3


def test_every_operation_on_elements_is_in_the_gauge_test() -> None:
    # apply is in every case of it, displacement has a test of its own; the others are no numbers
    exempt = {"apply", "displacement", "has_bias", "sides", "dtype"}
    public = {n for n, v in vars(Element).items() if callable(v) or isinstance(v, (property, staticmethod))}
    own = {n for n in public if not n.startswith("_") or n in ("__matmul__", "__add__", "__mul__", "__rmul__")}
    assert own - exempt == set(OPERATIONS)


@laws
@given(st.integers(1, 6), st.integers(0, 8), seeds)
def test_singular_values_from_the_factors(n: int, rank: int, seed: int) -> None:
    part = lowrank((n, n), rank, seed)
    values = unit_singular_values(part)
    full = torch.cat([values, torch.ones(n - len(values), dtype=torch.float64)]).sort(descending=True).values
    assert_close(full, torch.linalg.svdvals(torch.eye(n) + part.dense()))


def test_what_stretches_all_directions_has_no_1_among_its_singular_values() -> None:
    stretch = LowRank(2 * torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), (4, 4))
    assert unit_extremes(stretch) == pytest.approx((3, 3))
    assert is_invertible(Affine({"fc": Element.of((5, 4), right=stretch)})).value == pytest.approx(1)
    assert unit_extremes(stretch.compress(1)) == pytest.approx((1, 3))
    assert unit_extremes(LowRank.zero((4, 4))) == (1, 1)


def test_trimming_keeps_the_map_and_drops_columns() -> None:
    f = edit("ablation", (5, 4), 1)
    power = f @ f @ f @ f
    assert power["fc"].left.rank == 4
    assert power.trim()["fc"].left.rank == 1
    assert distance(power.trim(), power) < 1e-12


def test_a_layer_without_a_bias() -> None:
    """A bias of 0 stands for none; there is one afterwards only where the edit makes it."""
    weight, _ = layer((5, 4), 0)
    f, steer = edit("ablation", (5, 4), 1), edit("steering", (5, 4), 1)
    edited, none = f.apply_layer("fc", weight, None)
    assert none is None
    assert_close(f.apply("fc", weight), edited)
    same, made = steer.apply_layer("fc", weight, None)
    assert_close(same, weight)
    assert made is not None
    assert made.abs().max() > 0
    with pytest.raises(SliderError, match=r"'fc' a bias.*apply_layer"):
        steer.apply("fc", weight)


def test_other_modules_and_precisions() -> None:
    f = edit("general", (5, 4), 1)
    weight, bias = layer((5, 4), 0)
    one, two = f.apply_layer("elsewhere", weight, bias)
    assert torch.equal(one, weight)
    assert two is not None
    assert torch.equal(two, bias)
    low, low_bias = f.apply_layer("fc", weight.to(torch.bfloat16), bias.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert low_bias is not None
    assert low_bias.dtype == torch.bfloat16
    wanted = f.apply_layer("fc", weight.to(torch.bfloat16).double(), bias.to(torch.bfloat16).double())[0]
    assert_close(low, wanted.to(torch.bfloat16), atol=0, rtol=0)  # rounded once


def test_unlike_precisions_mix_in_the_wider_one() -> None:
    f, g = edit("general", (5, 4), 1), edit("uce", (5, 4), 2)
    low = Affine({"fc": g["fc"].to(torch.float32)})
    assert (f @ low)["fc"].dtype == (low @ f)["fc"].dtype == torch.float64
    assert distance(f @ low, f @ g) < 1e-5
    assert float(lowrank((5, 4), 2).inner(lowrank((5, 4), 2).to(torch.float32)) - lowrank((5, 4), 2).norm() ** 2) < 1e-5


def test_unlike_shapes_are_refused_by_the_modules_name() -> None:
    f, g = edit("leace", (5, 4), 1), edit("leace", (4, 5), 1)
    for mix in (lambda: f @ g, lambda: f + g, lambda: f.apply("fc", torch.zeros(4, 5))):
        with pytest.raises(SliderError, match=r"'fc'.*\(5, 4\)"):
            mix()
    with pytest.raises(SliderError, match=r"do not act on a weight of shape \(5, 4\)"):
        Element((5, 4), LowRank.zero((5, 5)), LowRank.zero((6, 6)), LowRank.zero((5, 4)))


def test_an_eraser_needs_a_projection() -> None:
    with pytest.raises(SliderError, match="no projection"):
        erase_output(lowrank((5, 5), 2), None, (5, 4))
    v = normal(5, 1, seed=1)
    assert onto(torch.cat([v, 2 * v], 1)).rank == 1


def test_what_is_outside_the_monoid_is_a_chain() -> None:
    """It still composes and associates as maps do, and says that it has no inverse or factors."""
    f, r = edit("leace", (5, 4), 1), Rounding()
    chain = (f @ r) @ f
    assert isinstance(chain, Chain)
    assert len(chain.steps) == 3
    assert chain.modules == ("fc",)
    assert_close(after((5, 4), 0, chain), after((5, 4), 0, f @ (r @ f)), atol=0, rtol=0)
    assert_close(after((5, 4), 0, chain), after((5, 4), 0, f, r, f), atol=0, rtol=0)
    assert (after((5, 4), 0, f @ r) - after((5, 4), 0, r @ f)).abs().max() > 1e-4  # control: order is kept
    with pytest.raises(SliderError, match="rounds the weight to bfloat16 has no inverse"):
        (r @ f).inverse()
    with pytest.raises(SliderError, match="Chain is not in the monoid"):
        size(chain)
    assert torch.equal(r.apply_layer("other", *layer((5, 4), 0))[0], layer((5, 4), 0)[0])


def test_a_chain_of_edits_with_inverses_has_one() -> None:
    f, g = edit("general", (5, 4), 1), edit("uce", (5, 4), 2)
    assert_close(after((5, 4), 0, Chain([f, g]), Chain([f, g]).inverse()), after((5, 4), 0))


def test_width_counts_the_kernel() -> None:
    assert width((4, 2, 2, 1)) == 4
