"""A slider is a one-parameter group; a dial need not be."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.closed_forms import erase_output, onto
from sliders.algebra.edit import Affine, Edit, Translation
from sliders.algebra.laws import is_additive, is_group
from sliders.algebra.slider import Dial, Interpolated, Slider, hinge
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=25, derandomize=True)
positions = st.floats(-3, 3, allow_nan=False)
WEIGHT = normal(5, 4, seed=9)
SLIDER = Slider("smile", Translation({"fc": lowrank((5, 4), 2, seed=1)}), {"key": "value"})


@dataclass(frozen=True)
class Square(Dial):
    """A dial that is not linear."""

    slider: Slider

    def at(self, position: float) -> Translation:
        return self.slider.at(position * abs(position))


def turned(dial: Dial, *steps: float) -> Tensor:
    """The weight after the dial's edits at all these positions, one after the other."""
    weight = WEIGHT
    for position in steps:
        step: Edit = dial.at(position)
        weight = step.apply("fc", weight)
    return weight


@laws
@given(positions, positions)
def test_a_slider_is_a_one_parameter_group(s: float, t: float) -> None:
    assert_close(turned(SLIDER, s, t), turned(SLIDER, s + t))
    assert_close(turned(SLIDER, s, t), turned(SLIDER, t, s))
    assert_close(turned(SLIDER, s, -s), WEIGHT)


def test_dial_0_is_the_identity_exactly() -> None:
    assert torch.equal(turned(SLIDER, 0.0), WEIGHT)


def test_dial_1_is_the_update() -> None:
    assert_close(turned(SLIDER, 1.0), WEIGHT + SLIDER.update["fc"].dense())
    assert_close(turned(SLIDER, -0.5), WEIGHT - 0.5 * SLIDER.update["fc"].dense())


FROWN = Slider("frown", Translation({"fc": lowrank((5, 4), 2, seed=2), "out": lowrank((2, 5), 1)}))
ABLATION = Affine({"fc": erase_output(onto(normal(5, 1, seed=3)), None, (5, 4))})


def test_other_dials_are_no_groups() -> None:
    """Control: the law above fails for a hinge across 0, and for a dial that is not linear."""
    both = hinge(SLIDER, FROWN)
    assert_close(turned(both, 0.5, 0.5), turned(both, 1.0))
    assert (turned(both, 2.0, -1.0) - turned(both, 1.0)).abs().max() > 1e-2
    assert (turned(Square(SLIDER), 0.5, 0.5) - turned(Square(SLIDER), 1.0)).abs().max() > 1e-2


@laws
@given(positions)
def test_a_hinge_has_the_left_sliders_left_and_the_right_ones_right(s: float) -> None:
    side = SLIDER if s < 0 else FROWN
    assert_close(turned(hinge(SLIDER, FROWN), s), turned(side, s), atol=0, rtol=0)


def test_a_hinge_at_0_is_the_identity_and_has_a_name() -> None:
    both = hinge(SLIDER, FROWN)
    assert torch.equal(turned(both, 0.0), WEIGHT)
    assert torch.equal(turned(both, -0.0), WEIGHT)
    assert both.name == "smile|frown"
    assert set(both.at(1.0).modules) == {"fc", "out"}


def test_the_laws_tell_groups_from_other_dials() -> None:
    assert is_group(SLIDER)
    assert is_additive(SLIDER)
    assert is_group(hinge(SLIDER, SLIDER))  # one update on both sides is a slider
    for dial in (Square(SLIDER), hinge(SLIDER, FROWN)):
        assert not is_group(dial)
        assert not is_additive(dial)


def test_a_hinge_breaks_the_group_across_0_alone_and_says_so() -> None:
    both = hinge(SLIDER, FROWN)
    law = is_group(both)
    assert law.value > 1e-2
    assert {tuple(sorted(float(s) < 0 for s in pair)) for pair in law.broken} == {(False, True)}
    assert "on either side of 0 it holds" in law.reason
    assert is_group(both, (0.5, 1.0, 2.0))
    assert is_group(both, (-0.5, -1.0))
    assert "on either side" not in is_group(Square(SLIDER)).reason


def test_a_part_of_an_ablation_is_additive_but_no_group() -> None:
    """What it adds to the weights is on a line; doing one half twice is three quarters of it."""
    dial = Interpolated("ablate", ABLATION)
    assert_close(turned(dial, 0.0), WEIGHT)
    assert_close(turned(dial, 1.0), ABLATION.apply("fc", WEIGHT))
    assert_close(turned(dial, 0.5, 0.5), turned(dial, 0.75))
    assert is_additive(dial)
    law = is_group(dial)
    assert not law
    assert "is not what" in law.reason
    assert is_group(Interpolated("steer", Affine(SLIDER.update.elements())))  # control: a translation's parts are one


def test_a_dial_that_does_nothing_is_a_group() -> None:
    assert is_group(Slider("nothing", Translation({})))


@laws
@given(positions)
def test_the_negative_has_its_ends_swapped(s: float) -> None:
    assert_close(turned(-SLIDER, s), turned(SLIDER, -s))
    assert (-SLIDER).name == "smile"
