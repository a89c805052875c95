"""Translations form an abelian group; an edit that is none shows that the checks can tell."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import erase_output, onto
from sliders.algebra.edit import Affine, Edit, Translation
from sliders.errors import SliderError
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=25, derandomize=True)
SHAPES = {"fc": (5, 4), "conv": (4, 3, 3, 2), "out": (2, 5)}
WEIGHTS = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}


@st.composite
def translations(draw: st.DrawFn) -> Translation:
    """On any of the modules, of any rank."""
    modules = draw(st.sets(st.sampled_from(sorted(SHAPES))))
    return Translation({m: lowrank(SHAPES[m], draw(st.integers(1, 5)), draw(st.integers(0, 999))) for m in modules})


def after(*edits: Edit) -> dict[str, Tensor]:
    """The weights when the edits are applied one after the other."""
    weights = {name: weight.clone() for name, weight in WEIGHTS.items()}
    for edit in edits:
        weights |= {name: edit.apply(name, weights[name]) for name in edit.modules}
    return weights


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in WEIGHTS)


def ablation() -> Edit:
    """``W -> (I - v v^T) W``: idempotent and not invertible, so nothing of what holds for translations."""
    return Affine({"fc": erase_output(onto(torch.ones(5, 1, dtype=torch.float64)), None, (5, 4))})


@laws
@given(translations(), translations())
def test_translations_commute(a: Translation, b: Translation) -> None:
    assert differ(after(a, b), after(b, a)) < 1e-12
    assert differ(after(a + b), after(b + a)) < 1e-12


@laws
@given(translations(), translations())
def test_the_sum_is_one_after_the_other(a: Translation, b: Translation) -> None:
    assert differ(after(a + b), after(a, b)) < 1e-12
    assert differ(after(a - b), after(a, -b)) < 1e-12
    assert set((a + b).modules) == set(a.modules) | set(b.modules)


@laws
@given(translations(), translations(), translations())
def test_translations_associate(a: Translation, b: Translation, c: Translation) -> None:
    assert differ(after((a + b) + c), after(a + (b + c))) < 1e-12


@laws
@given(translations())
def test_translations_invert(a: Translation) -> None:
    assert differ(after(a, -a), WEIGHTS) < 1e-12
    assert differ(after(a - a), WEIGHTS) < 1e-12


@laws
@given(translations(), translations(), st.floats(-2, 2))
def test_numbers_distribute(a: Translation, b: Translation, s: float) -> None:
    assert differ(after((a + b) * s), after(s * a, s * b)) < 1e-12


def test_an_ablation_neither_commutes_nor_inverts() -> None:
    """Control: the same measures see an edit that is not a translation."""
    a, projection = Translation({"fc": lowrank((5, 4), 2, seed=1)}), ablation()
    assert differ(after(a, projection), after(projection, a)) > 1e-2
    assert differ(after(projection, projection), after(projection)) < 1e-12
    assert differ(after(projection), WEIGHTS) > 1e-2  # done once more it does not come back


@laws
@given(translations(), translations())
def test_composing_translations_gives_one(a: Translation, b: Translation) -> None:
    assert isinstance(a @ b, Translation)
    assert differ(after(a @ b), after(b, a)) < 1e-12
    assert differ(after(a @ a.inverse()), WEIGHTS) < 1e-12
    assert differ(after(Affine(a.elements())), after(a)) < 1e-12


def test_a_translation_leaves_the_bias() -> None:
    bias = normal(5, seed=1)
    for module in ("fc", "elsewhere"):
        kept = Translation({"fc": lowrank((5, 4), 2)}).apply_layer(module, WEIGHTS["fc"], bias)[1]
        assert kept is not None
        assert kept is not bias
        assert torch.equal(kept, bias)


def test_apply_leaves_the_weight_and_other_modules() -> None:
    a = Translation({"fc": lowrank((5, 4), 2, seed=1)})
    before = {name: weight.clone() for name, weight in WEIGHTS.items()}
    moved = a.apply("fc", WEIGHTS["fc"])
    other = a.apply("out", WEIGHTS["out"])
    assert_close(moved, WEIGHTS["fc"] + a["fc"].B @ a["fc"].A)
    assert torch.equal(other, WEIGHTS["out"])
    assert other is not WEIGHTS["out"]
    assert differ(before, WEIGHTS) == 0


def test_apply_keeps_the_weights_precision() -> None:
    a = Translation({"fc": lowrank((5, 4), 2)})
    assert a.apply("fc", WEIGHTS["fc"].to(torch.bfloat16)).dtype == torch.bfloat16


def test_apply_rounds_once() -> None:
    """A merged weight in low precision is the exact one rounded, not a sum of rounded factors."""
    a = Translation({"fc": lowrank((40, 30), 8).to(torch.float32)})
    weight = torch.zeros(40, 30, dtype=torch.bfloat16)
    assert_close(a.apply("fc", weight), a["fc"].dense().to(torch.bfloat16), atol=0, rtol=0)


def test_norm_is_that_of_all_modules_together() -> None:
    a = Translation({m: lowrank(shape, 2, seed=i) for i, (m, shape) in enumerate(SHAPES.items())})
    together = torch.cat([update.dense().flatten() for update in a.values()])
    assert a.norm() == pytest.approx(float(together.norm()))
    assert Translation({}).norm() == 0


def test_a_translation_does_not_follow_the_dict_it_was_made_of() -> None:
    updates = {"fc": lowrank((5, 4), 2)}
    a = Translation(updates)
    updates.clear()
    assert a.modules == ("fc",)


@pytest.mark.parametrize("mix", [Translation.__add__, Translation.__sub__])
def test_unlike_shapes_are_refused_by_the_modules_name(
    mix: Callable[[Translation, Translation], Translation],
) -> None:
    a, b = (Translation({"the.module": lowrank(shape, 2)}) for shape in ((5, 4), (4, 5)))
    with pytest.raises(SliderError, match=r"the\.module"):
        mix(a, b)


@pytest.mark.parametrize("shape", [(1, 4), (5, 1), (6, 4)])
def test_a_weight_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    """Two of these would broadcast in silence."""
    with pytest.raises(SliderError, match="fc"):
        Translation({"fc": lowrank((5, 4), 2)}).apply("fc", torch.zeros(shape, dtype=torch.float64))
