"""Dials other than sliders on a model, against edited weights: hinges, and shares of affine edits."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from sliders.algebra.closed_forms import erase_input, erase_output, onto, steer_input, steer_output, write
from sliders.algebra.edit import Affine, Edit
from sliders.algebra.laws import is_group
from sliders.algebra.slider import Dial, Hinge, Interpolated, Slider, hinge
from sliders.batch import rows_of
from sliders.errors import SliderError
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests.factory import normal, slider
from tests.runtime.test_attach import Small, snapshot

BIASED, BARE, CONV = "leave", "plain", "enter"


class Model(Small):
    """With a linear layer without a bias as well."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        with rows_of(len(x)):
            return self.plain(torch.tanh(super().forward(x)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().double().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return normal(3, 3, 6, 6, seed=5)


def ablation(model: nn.Module, name: str, seed: int = 1) -> Affine:
    shape = weight_shape(model, name)
    return Affine({name: erase_output(onto(normal(shape[0], 1, seed=seed)), None, shape)})


def leace(model: nn.Module, name: str) -> Affine:
    shape = weight_shape(model, name)
    width = torch.Size(shape[1:]).numel()
    return Affine({name: erase_input(onto(normal(width, 2, seed=2)), normal(width, seed=3), shape)})


def steering(model: nn.Module, name: str) -> Affine:
    shape = weight_shape(model, name)
    return Affine({name: steer_output(normal(shape[0], seed=4), shape)})


def steering_input(model: nn.Module, name: str) -> Affine:
    shape = weight_shape(model, name)
    return Affine({name: steer_input(normal(torch.Size(shape[1:]).numel(), seed=5), shape)})


def rome(model: nn.Module, name: str) -> Affine:
    shape = weight_shape(model, name)
    key = normal(torch.Size(shape[1:]).numel(), 1, seed=6)
    return Affine({name: write(key, key.T / (key.T @ key), normal(shape[0], 1, seed=7), shape)})


EDITS: list[Callable[[nn.Module, str], Affine]] = [ablation, leace, steering, steering_input, rome]


def edited(model: nn.Module, edit: Edit, x: Tensor) -> Tensor:
    """The oracle: the edited weights themselves."""
    with baked(model, edit):
        return model(x)


class TestPartial:
    @pytest.mark.parametrize("name", [BIASED, BARE, CONV, "block.conv"])
    @pytest.mark.parametrize("make", EDITS, ids=lambda make: make.__name__)
    def test_every_kind_of_edit_on_every_kind_of_layer(
        self, make: Callable, name: str, model: Model, x: Tensor
    ) -> None:
        dial = Interpolated("p", make(model, name))
        before, base = snapshot(model), model(x)
        with attach(model, [dial]) as dials:
            assert torch.equal(model(x), base)
            for position in (1.0, 0.4, -1.5):
                dials.set({"p": position})
                assert_close(model(x), edited(copy.deepcopy(bare(model)), dial.at(position), x))
                assert (model(x) - base).abs().max() > 1e-3
        assert snapshot(model) == before
        assert torch.equal(model(x), base)

    def test_composed_edits_act_from_both_sides(self, model: Model, x: Tensor) -> None:
        edit = ablation(model, BIASED) @ rome(model, BIASED) @ steering_input(model, BIASED)
        with attach(model, [Interpolated("p", edit)], {"p": 1.0}):
            assert_close(model(x), edited(copy.deepcopy(bare(model)), edit, x))

    def test_a_transposed_layer(self) -> None:
        torch.manual_seed(0)
        layer = nn.Sequential(Conv1D(4, 6)).double()
        x = normal(2, 3, 6, seed=1)
        for make in EDITS:
            edit = make(layer, "0")
            with attach(layer, [Interpolated("p", edit)], {"p": 1.0}):
                out = layer(x)
            assert_close(out, edited(layer, edit, x))

    def test_rows_have_their_own_shares(self, model: Model, x: Tensor) -> None:
        dial, shares = Interpolated("p", leace(model, BIASED)), [0.0, 1.0, -0.5]
        with attach(model, [dial]) as dials:
            dials.set({"p": torch.tensor(shares)})
            out = model(x)
        for row, share in enumerate(shares):
            assert_close(out[row : row + 1], edited(model, dial.at(share), x[row : row + 1]))

    def test_beside_a_slider_and_nested_displacements_add_up(self, model: Model, x: Tensor) -> None:
        dial, other = Interpolated("p", ablation(model, BIASED)), slider(model, {BIASED: 2, CONV: 1})
        total = Affine(other.at(0.7).elements()) + dial.at(1.0)
        before = snapshot(model)
        with attach(model, [other, dial], {"s": 0.7, "p": 1.0}):
            side_by_side = model(x)
        with attach(model, [other], {"s": 0.7}), attach(model, [dial], {"p": 1.0}):
            nested = model(x)
        with pytest.raises(ZeroDivisionError), attach(model, [dial], {"p": 1.0}):
            _ = 1 / 0
        assert snapshot(model) == before
        assert_close(side_by_side, edited(model, total, x))
        assert_close(nested, side_by_side)
        after = edited(model, dial.at(1.0) @ other.at(0.7), x)
        assert (side_by_side - after).abs().max() > 1e-3  # the ablation of the slider's part is another thing

    def test_what_does_not_fit(self, model: Model) -> None:
        torch.manual_seed(0)
        with (
            pytest.raises(SliderError, match=r"'p' changes 'leave'"),
            attach(model, [Interpolated("p", Affine({BIASED: steer_output(normal(5, seed=1), (5, 9))}))]),
        ):
            pass


class TestHinge:
    @pytest.fixture
    def sides(self, model: Model) -> tuple[Slider, Slider]:
        """Of two ranks, on layers of which they share one."""
        return slider(model, {BIASED: 2, CONV: 1}, "left", 1), slider(model, {BIASED: 3, BARE: 1}, "right", 2)

    @pytest.mark.parametrize("position", [-1.5, -1.0, 0.5, 1.0])
    def test_it_shows_the_left_side_below_0_and_the_right_above(
        self, position: float, model: Model, x: Tensor, sides: tuple[Slider, Slider]
    ) -> None:
        own, other = sides if position < 0 else sides[::-1]
        with attach(model, [own], {own.name: position}):
            wanted = model(x)
        with attach(model, [other], {other.name: position}):
            unwanted = model(x)
        both = hinge(*sides)
        with attach(model, [both], {both.name: position}):
            out = model(x)
        assert_close(out, wanted)
        assert (out - unwanted).abs().max() > 1e-2

    def test_rows_beside_a_slider(self, model: Model, x: Tensor, sides: tuple[Slider, Slider]) -> None:
        third = slider(model, {BIASED: 1}, "third", 3)
        both, positions = Hinge("both", *sides), [-1.0, 0.0, 2.0]
        with attach(model, [both, third], {"third": 0.5}) as dials:
            assert dials.names == ("both", "third")
            dials.set({"both": torch.tensor(positions)})
            out = model(x)
            dials.set({"both": 0.0, "third": 0.0})
            assert torch.equal(model(x), bare(model)(x))
        for row, position in enumerate(positions):
            update = both.at(position) + third.at(0.5)
            assert_close(out[row : row + 1], edited(model, update, x[row : row + 1]))

    def test_a_hinge_of_one_slider_is_the_slider(self, model: Model, x: Tensor, sides: tuple[Slider, Slider]) -> None:
        one = sides[0]
        assert is_group(Hinge("h", one, one))
        with attach(model, [one], {"left": -0.8}), attach(model, [Hinge("h", one, one)], {"h": 0.8}):
            assert_close(model(x), bare(model)(x))


class Turn(Dial):
    """A dial whose edits are no line."""

    def at(self, position: float) -> Edit:
        return Slider("s", slider(Model(), {BIASED: 1}).update).at(position**2)


def test_a_dial_that_is_no_line_is_refused(model: Model) -> None:
    with pytest.raises(SliderError, match="Turn"), attach(model, [Turn()]):
        pass


def bare(model: Model) -> Model:
    """A copy without hooks."""
    made = copy.deepcopy(model)
    for module in made.modules():
        module._forward_hooks.clear()
        vars(module).pop("forward", None)
    return made
