"""A slider is a one-parameter group; a dial need not be."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Dial, Slider
from tests.factory import lowrank, normal

laws = settings(deadline=None, max_examples=25, derandomize=True)
positions = st.floats(-3, 3, allow_nan=False)
WEIGHT = normal(5, 4, seed=9)
SLIDER = Slider("smile", Translation({"fc": lowrank((5, 4), 2, seed=1)}), {"key": "value"})


@dataclass(frozen=True)
class Hinge(Dial):
    """One slider below 0 and another above."""

    left: Slider
    right: Slider

    def at(self, position: float) -> Translation:
        return (self.left if position < 0 else self.right).at(position)


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
        weight = dial.at(position).apply("fc", weight)
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


def test_other_dials_are_no_groups() -> None:
    """Control: the law above fails for a hinge across 0, and for a dial that is not linear."""
    hinge = Hinge(SLIDER, Slider("frown", Translation({"fc": lowrank((5, 4), 2, seed=2)})))
    assert_close(turned(hinge, 0.5, 0.5), turned(hinge, 1.0))
    assert (turned(hinge, 2.0, -1.0) - turned(hinge, 1.0)).abs().max() > 1e-2
    assert (turned(Square(SLIDER), 0.5, 0.5) - turned(Square(SLIDER), 1.0)).abs().max() > 1e-2


@laws
@given(positions)
def test_the_negative_has_its_ends_swapped(s: float) -> None:
    assert_close(turned(-SLIDER, s), turned(SLIDER, -s))
    assert (-SLIDER).name == "smile"
