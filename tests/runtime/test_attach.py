"""Sliders on a model against dense weights, and the model afterwards."""

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.batch import rows_of
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.runtime.baking import baked
from sliders.runtime.layers import editable_modules, select_modules
from tests.factory import lowrank, moved, normal, slider

LAYERS = ["enter", "block.conv", "block.proj", "leave"]


class Small(nn.Module):
    """Convolutions, with stride and without bias, and linear layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = nn.ModuleDict(
            {"conv": nn.Conv2d(8, 6, (1, 3), padding=(0, 1), bias=False), "proj": nn.Linear(6, 8)}
        )
        self.norm = nn.LayerNorm(8)
        self.leave = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        with rows_of(len(x)):
            hidden = self.block["conv"](torch.tanh(self.enter(x)))
            tokens = self.block["proj"](hidden.flatten(2).transpose(1, 2))
            return self.leave(torch.tanh(self.norm(tokens)))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().double().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return normal(3, 3, 6, 6, seed=5)


@pytest.fixture
def a(model: Small) -> Slider:
    return slider(model, {"enter": 2, "block.proj": 3, "leave": 1}, "a", seed=1)


@pytest.fixture
def b(model: Small) -> Slider:
    """Overlaps with ``a`` in two layers, at other ranks."""
    return slider(model, {"block.conv": 1, "leave": 4, "enter": 1}, "b", seed=2)


def hooks(model: nn.Module) -> int:
    """How many hooks hang on all modules together."""
    return sum(
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def taken(model: nn.Module) -> int:
    """In place of how many modules something else runs."""
    return sum("forward" in vars(module) for module in model.modules())


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as it was: objects, storage, content, what is trained, what is attached."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "parameters": {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()},
        "content": {n: v.flatten().tolist() for n, v in model.state_dict().items()},
        "hooks": hooks(model) + taken(model),
        "attributes": sorted(vars(model)),
        "training": {name: module.training for name, module in model.named_modules()},
    }


class TestAttach:
    def test_one_slider_is_the_dense_update(self, model: Small, x: Tensor, a: Slider) -> None:
        base = model(x)
        for position in (-2.0, 0.3, 1.0):
            with attach(model, [a], {"a": position}):
                out = model(x)
            assert_close(out, moved(model, a.at(position))(x))
            assert (out - base).abs().max() > 1e-2

    def test_several_sliders_add_their_dense_updates(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        """Of mixed ranks, on linear and convolution layers, some of which both change."""
        c = slider(model, dict.fromkeys(LAYERS, 2), "c", seed=3)
        with attach(model, [a, b, c], {"a": 0.7, "b": -1.3, "c": 0.2}):
            out = model(x)
        assert_close(out, moved(model, a.at(0.7), b.at(-1.3), c.at(0.2))(x))
        assert (out - moved(model, a.at(-1.3), b.at(0.7), c.at(0.2))(x)).abs().max() > 1e-2

    def test_each_layer_is_changed(self, model: Small, x: Tensor) -> None:
        """Control of the above: none of the four layers is left out unseen."""
        base = model(x)
        for name in LAYERS:
            with attach(model, [slider(model, {name: 1}, "s")], {"s": 1.0}):
                assert (model(x) - base).abs().max() > 1e-2

    def test_dial_0_is_the_base_bit_for_bit(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        base = model(x)
        with attach(model, [a, b]) as dials:
            assert torch.equal(model(x), base)
            dials.set({"a": 1.0})
            assert not torch.equal(model(x), base)
            dials.set({"a": 0.0})
            assert torch.equal(model(x), base)
            dials.set({"a": torch.tensor([0.0, 1.0, 0.0])})
            assert torch.equal(model(x)[0], base[0])

    def test_dial_0_is_the_base_also_where_the_update_overflows(self, model: Small, x: Tensor, a: Slider) -> None:
        """0 times infinity is not 0, so nothing must be computed at all."""
        base = model(x)
        huge = Slider("huge", Translation({n: LowRank(u.B, u.A * 1e308, u.shape) for n, u in a.update.items()}))
        with attach(model, [huge]) as dials:
            assert torch.equal(model(x), base)
            dials.set({"huge": 1.0})
            assert not model(x).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_precision_is_the_models(self, dtype: torch.dtype, model: Small, x: Tensor, a: Slider) -> None:
        low, exact = copy.deepcopy(model).to(dtype), moved(model, a.at(1.0))(x)
        with attach(low, [a], {"a": 1.0}) as dials:
            out = low(x.to(dtype))
            dials.set({"a": 0.0})
            assert torch.equal(low(x.to(dtype)), copy.deepcopy(low)(x.to(dtype)))
        assert out.dtype == dtype
        assert (out - exact).abs().max() < 20 * torch.finfo(dtype).eps
        assert (out - model(x)).abs().max() > 100 * torch.finfo(torch.float16).eps

    def test_dials_move(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        with attach(model, [a, b], {"b": 0.5}) as dials:
            assert dials.names == ("a", "b")
            assert (float(dials["a"]), float(dials["b"])) == (0.0, 0.5)
            for position in (1.0, -1.0, 0.25):
                dials.set({"a": position})
                assert_close(model(x), moved(model, a.at(position), b.at(0.5))(x))

    def test_turned_restores(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        with attach(model, [a, b], {"a": 0.5}) as dials:
            before = model(x)
            with dials.turned({"a": -1.0, "b": 2.0}):
                assert_close(model(x), moved(model, a.at(-1.0), b.at(2.0))(x))
                with dials.turned({"b": torch.tensor([1.0, 0.0, -1.0])}):
                    assert_close(model(x)[1:2], moved(model, a.at(-1.0))(x[1:2]))
                assert_close(model(x), moved(model, a.at(-1.0), b.at(2.0))(x))
            assert torch.equal(model(x), before)
            with dials.turned({"a": 0.0}):
                assert not torch.equal(model(x), before)
            assert torch.equal(model(x), before)
            with pytest.raises(ZeroDivisionError), dials.turned({"b": 2.0}):
                raise ZeroDivisionError
            assert torch.equal(model(x), before)

    def test_turned_restores_what_a_bad_turn_began(self, model: Small, x: Tensor, a: Slider) -> None:
        with attach(model, [a], {"a": 0.5}) as dials:
            before = model(x)
            with pytest.raises(SliderError), dials.turned({"a": 2.0, "nobody": 1.0}):
                pass
            assert torch.equal(model(x), before)

    def test_rows_have_their_own_dials(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        positions = torch.tensor([-1.0, 0.0, 2.0])
        with attach(model, [a, b], {"b": 0.5}) as dials:
            with dials.turned({"a": positions}):
                together = model(x)
            for i, position in enumerate(positions.tolist()):
                dials.set({"a": position})
                assert_close(together[i : i + 1], model(x[i : i + 1]))
        assert_close(together[2:], moved(model, a.at(2.0), b.at(0.5))(x[2:]))

    def test_two_dials_for_each_row(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        """Rows of one vary with the rows of the other."""
        ones, others = [-1.0, 0.0, 2.0], [0.5, -0.5, 1.0]
        with attach(model, [a, b]) as dials:
            dials.set({"a": torch.tensor(ones), "b": torch.tensor(others)})
            together = model(x)
        for i in range(3):
            assert_close(together[i : i + 1], moved(model, a.at(ones[i]), b.at(others[i]))(x[i : i + 1]))

    def test_a_doubled_batch_has_every_dial_twice(self, model: Small, x: Tensor, a: Slider) -> None:
        """Guidance runs rows 0, 1, 2 and then 0, 1, 2 once more."""
        positions = [-1.0, 0.5, 2.0]
        doubled = torch.cat([x, x.flip(-1)])
        with attach(model, [a]) as dials:
            dials.set({"a": torch.tensor(positions)})
            out = model(doubled)
        for i in range(6):
            assert_close(out[i : i + 1], moved(model, a.at(positions[i % 3]))(doubled[i : i + 1]))

    def test_back_from_rows_to_one_number(self, model: Small, x: Tensor, a: Slider) -> None:
        with attach(model, [a]) as dials:
            for once in (-0.5, torch.tensor(1.5), torch.tensor([0.25])):
                dials.set({"a": torch.tensor([1.0, 2.0, 3.0])})
                dials.set({"a": once})
                for count in (1, 2, 3):  # any batch will do again
                    assert_close(model(x[:count]), moved(model, a.at(float(once)))(x[:count]))

    def test_dials_of_unlike_width_do_not_lose_rows(self, model: Small, a: Slider, b: Slider) -> None:
        """Turning one dial leaves the other as it was, or says that it cannot."""
        with attach(model, [a, b]) as dials:
            dials.set({"a": torch.tensor([1.0, 2.0, 3.0])})
            with pytest.raises(SliderError, match=r"5.*3|3.*5"):
                dials.set({"b": torch.arange(5.0)})
            assert dials["a"].tolist() == [1.0, 2.0, 3.0]
            with pytest.raises(SliderError):
                dials.set({"a": torch.arange(3.0), "b": torch.arange(2.0)})
            assert dials["a"].tolist() == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_a_batch_that_the_rows_do_not_fit_is_an_error(self, count: int, model: Small, x: Tensor, a: Slider) -> None:
        """Not three rows out of one, as broadcasting has it."""
        with attach(model, [a]) as dials:
            dials.set({"a": torch.tensor([1.0, 2.0, 3.0])})
            with pytest.raises(SliderError, match=rf"3.*{count}|{count}.*3"):
                model(torch.cat([x, x])[:count])

    def test_leaving_restores_everything(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        before, base = snapshot(model), model(x)
        with attach(model, [a, b], {"a": 1.0, "b": 1.0}):
            assert taken(model) == 4
            model(x)
        assert snapshot(model) == before
        assert torch.equal(model(x), base)

    def test_nested(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        before, base = snapshot(model), model(x)
        with attach(model, [a], {"a": 1.0}):
            outer = model(x)
            with attach(model, [b], {"b": -1.0}):
                assert_close(model(x), moved(model, a.at(1.0), b.at(-1.0))(x))
            assert torch.equal(model(x), outer)
        assert snapshot(model) == before
        assert torch.equal(model(x), base)

    def test_other_hooks_stay(self, model: Small, x: Tensor, a: Slider) -> None:
        seen: list[int] = []
        model.leave.register_forward_hook(lambda *_: seen.append(1))
        with attach(model, [a], {"a": 1.0}):
            model(x)
        model(x)
        assert len(seen) == 2

    def test_exceptions_restore_too(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        before, base = snapshot(model), model(x)
        with pytest.raises(ZeroDivisionError), attach(model, [a], {"a": 1.0}), attach(model, [b], {"b": 1.0}):
            raise ZeroDivisionError
        assert snapshot(model) == before
        assert torch.equal(model(x), base)

    def test_no_slider_is_no_change(self, model: Small, x: Tensor) -> None:
        with attach(model, []):
            assert hooks(model) + taken(model) == 0

    def test_the_slider_itself_is_left_alone(self, model: Small, x: Tensor, a: Slider) -> None:
        before = {name: (update.B.clone(), update.A.clone()) for name, update in a.update.items()}
        with attach(model, [a], {"a": 1.0}) as dials:
            dials.set({"a": 3.0})
            model(x)
        assert all(
            torch.equal(a.update[n].B, up) and torch.equal(a.update[n].A, down) for n, (up, down) in before.items()
        )


class TestFolding:
    """Dials that all rows share are multiplied into a second copy of the weights, which must never be out of date."""

    @pytest.mark.parametrize("values", [{"a": 1.0}, {"a": -0.5, "b": 2.0}], ids=str)
    def test_it_is_what_the_factors_say(
        self, model: Small, x: Tensor, a: Slider, b: Slider, values: dict[str, float]
    ) -> None:
        with attach(model, [a, b], values):
            folded = model(x)
        with attach(model, [a, b], values, fold=False):
            assert_close(folded, model(x))
        assert (folded - model(x)).abs().max() > 1e-2

    def test_the_layers_own_weights_stay(self, model: Small, x: Tensor, a: Slider) -> None:
        before = snapshot(model)["content"]
        with attach(model, [a], {"a": 1.0}):
            model(x)
            assert snapshot(model)["content"] == before

    def test_weights_that_change_below_it_are_seen(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        """Baked edits come and go, in the same memory even, and weights are written to."""
        with attach(model, [a], {"a": 1.0}):
            for position in (1.0, -2.0, 0.5):
                with baked(model, b.at(position)):
                    assert_close(model(x), moved(model, a.at(1.0))(x))
                assert_close(model(x), moved(model, a.at(1.0))(x))
            model.leave.weight.data.mul_(2)
            with torch.no_grad():
                model.leave.weight.mul_(2)
            assert_close(model(x), moved(model, a.at(1.0))(x))

    def test_what_already_runs_in_place_of_a_layer_still_runs(self, model: Small, x: Tensor, a: Slider) -> None:
        plain = model.leave.forward
        model.leave.forward = lambda input: plain(input) + 1
        base = moved(model, a.at(0.5))(x) + 1
        with attach(model, [a], {"a": 0.5}):
            assert_close(model(x), base)
        assert taken(model) == 1

    def test_its_memory_format_is_the_layers(self, model: Small, x: Tensor, a: Slider) -> None:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with attach(model, [a], {"a": 1.0}):
            assert_close(model(x), moved(model, a.at(1.0))(x))

    def test_gradients_pass_through_it(self, model: Small, x: Tensor, a: Slider) -> None:
        """Those of what it is folded into, too, after inference on the same dials."""
        x.requires_grad_(True)
        dense = moved(model, a.at(1.0)).requires_grad_(True)
        dense(x).square().sum().backward()
        wanted, x.grad = x.grad, None
        with attach(model, [a], {"a": 1.0}):
            with torch.inference_mode():
                model(x)
            model(x).square().sum().backward()
            assert_close(x.grad, wanted)
            model.requires_grad_(True)
            for _ in range(2):
                model.zero_grad()
                model(x).square().sum().backward()
        assert_close(model.leave.weight.grad, dense.leave.weight.grad)

    def test_dials_may_move_before_the_backward_pass(self, model: Small, x: Tensor, a: Slider) -> None:
        x.requires_grad_(True)
        (wanted,) = torch.autograd.grad(moved(model, a.at(1.0))(x).square().sum(), x)
        with attach(model, [a], {"a": 1.0}) as dials:
            with torch.no_grad():
                model(x)
            out = model(x)
            dials.set({"a": 2.0})
            with torch.no_grad():
                model(x)
            (got,) = torch.autograd.grad(out.square().sum(), x)
        assert_close(got, wanted)

    def test_moving_dials_keeps_nothing(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        def living() -> int:
            gc.collect()
            return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

        counts = []
        with attach(model, [a, b]) as dials:
            for moves in (2, 50, 50):
                for k in range(moves):
                    dials.set({"a": k / 10 + 0.1, "b": -k / 20})
                    model(x)
                counts.append(living())
        assert counts[0] == counts[1] == counts[2]


class TestAttachErrors:
    """Each names what is wrong, and leaves the model as it was."""

    @pytest.fixture(autouse=True)
    def _untouched(self, model: Small) -> Iterator[None]:
        before = snapshot(model)
        yield
        assert snapshot(model) == before

    def test_equal_names(self, model: Small, a: Slider) -> None:
        with pytest.raises(SliderError, match="'a'"), attach(model, [a, a]):
            pass

    def test_unknown_dial(self, model: Small, a: Slider, b: Slider) -> None:
        with pytest.raises(SliderError, match=r"'c'.*a, b"), attach(model, [a, b], {"c": 1.0}):
            pass
        with attach(model, [a, b]) as dials, pytest.raises(SliderError, match=r"'c'.*a, b"):
            dials.set({"c": 1.0})
        with attach(model, [a, b]) as dials, pytest.raises(SliderError, match=r"'c'.*a, b"):
            dials["c"]

    def test_absent_module(self, model: Small, a: Slider) -> None:
        absent = Slider("far", Translation({"leave": lowrank((5, 8), 1), "block.absent": lowrank((4, 4), 1)}))
        with pytest.raises(SliderError, match=r"'far'.*'block\.absent'"), attach(model, [a, absent]):
            pass

    @pytest.mark.parametrize(
        ("module", "shape"),
        [("leave", (5, 9)), ("enter", (8, 27)), ("enter", (8, 3, 1, 1)), ("norm", (8, 8)), ("block", (8, 8))],
    )
    def test_shapes_that_do_not_fit(self, module: str, shape: tuple[int, ...], model: Small, a: Slider) -> None:
        misfit = Slider("misfit", Translation({"block.proj": lowrank((8, 6), 1), module: lowrank(shape, 1)}))
        for order in ([a, misfit], [misfit, a]):
            with pytest.raises(SliderError, match=f"'misfit'.*'{module}'") as caught, attach(model, order):
                pass
            assert str(shape) in str(caught.value)


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 6), (2, 5, 4)),
    "linear on vectors": (nn.Linear(4, 6, bias=False), (2, 4)),
    "convolution": (nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 7)),
    "dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (2, 4, 7, 7)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
    "reflecting": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(4, 4, 3), (2, 4, 7, 7)),
    "in one dimension": (nn.Conv1d(4, 6, 3), (2, 4, 7)),
    "GPT-2's, transposed and square": (Conv1D(4, 4), (2, 5, 4)),
    "embedding": (nn.Embedding(4, 4), (2, 4)),
    "norm": (nn.LayerNorm(4), (2, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKindOfLayer:
    """What is offered for a slider works in training and after it; the rest is refused, not changed wrongly."""

    def made(self, kind: str) -> tuple[nn.Module, Tensor, Slider]:
        layer, shape = KINDS[kind]
        model = nn.Sequential(copy.deepcopy(layer)).double()
        x = torch.randint(4, shape) if kind == "embedding" else normal(*shape, seed=1)
        weight = model[0].get_parameter("weight")
        return model, x, Slider("s", Translation({"0": lowrank(tuple(weight.shape), 2, seed=1)}))

    def test_attached(self, kind: str) -> None:
        model, x, s = self.made(kind)
        if editable_modules(model):
            with attach(model, [s], {"s": 1.0}):
                out = model(x)
            assert_close(out, moved(model, s.update)(x))
        else:
            with pytest.raises(SliderError, match="'0'"), attach(model, [s], {"s": 1.0}):
                pass

    def test_in_training(self, kind: str) -> None:
        model, x, _ = self.made(kind)
        if not editable_modules(model):
            return  # `select_modules` does not give it
        with Adapter(model, editable_modules(model), rank=2, alpha=2) as adapter:
            randomise(adapter)
            with adapter.dial(torch.ones(len(x))), rows_of(len(x)):
                out = model(x)
            update = adapter.update()
        assert_close(out, moved(model, update)(x), atol=1e-5, rtol=1e-5)

    def test_most_kinds_are_offered(self, kind: str) -> None:
        """Control: that refusing all of them does not pass."""
        if kind in ("linear", "linear on vectors", "convolution", "strided"):
            assert editable_modules(self.made(kind)[0]) == ["0"]


def randomise(adapter: Adapter, seed: int = 3) -> None:
    """Some state in the middle of a training."""
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed + i))


class TestAdapter:
    @pytest.fixture
    def adapter(self, model: Small) -> Iterator[Adapter]:
        """With alpha other than the rank, on linear and convolution layers."""
        with Adapter(model.float(), LAYERS, rank=2, alpha=3.0) as adapter:
            yield adapter

    @pytest.fixture
    def x(self) -> Tensor:
        return normal(3, 3, 6, 6, seed=5, dtype=torch.float32)

    def test_it_starts_at_the_identity(self, model: Small, x: Tensor) -> None:
        base = model.float()(x)
        with Adapter(model, LAYERS, rank=2, alpha=3.0) as adapter:
            assert torch.equal(model(x), base)
            with adapter.dial(torch.tensor([2.0, -1.0, 1.0])):
                assert torch.equal(model(x), base)
            assert adapter.update().norm() == 0

    def test_off_is_the_base_bit_for_bit(self, model: Small, x: Tensor) -> None:
        base = model.float()(x)
        with Adapter(model, LAYERS, rank=2, alpha=3.0) as adapter:
            randomise(adapter)
            assert torch.equal(model(x), base)
            with adapter.dial(torch.ones(3)):
                assert not torch.equal(model(x), base)
            assert torch.equal(model(x), base)

    def test_it_agrees_with_attach(self, adapter: Adapter, model: Small, x: Tensor) -> None:
        """Alpha is folded in once, on each kind of layer, with a dial for each row."""
        randomise(adapter)
        positions = torch.tensor([-1.0, 0.5, 2.0])
        with adapter.dial(positions):
            trained = model(x)
        finished = Slider("s", adapter.update())
        adapter.remove()
        with attach(model, [finished]) as dials:
            dials.set({"s": positions})
            out = model(x)
        assert_close(out, trained, atol=1e-5, rtol=1e-5)
        assert_close(out[2:], moved(model, finished.at(2.0))(x[2:]), atol=1e-5, rtol=1e-5)
        assert (out - model(x)).abs().amax(dim=(1, 2)).min() > 1e-2

    def test_update_by_hand(self, adapter: Adapter) -> None:
        randomise(adapter)
        update = adapter.update()
        assert update.modules == tuple(LAYERS)
        down, up = list(adapter.parameters())[-2:]
        assert_close(update["leave"].dense(), 1.5 * up @ down)
        assert {u.rank for u in update.values()} == {2}
        assert {u.B.dtype for u in update.values()} == {torch.float32}

    def test_update_is_a_copy(self, adapter: Adapter) -> None:
        randomise(adapter)
        update = adapter.update()
        before = {name: part.dense() for name, part in update.items()}
        randomise(adapter, seed=50)
        assert all(torch.equal(part.dense(), before[name]) for name, part in update.items())

    def test_a_doubled_batch_has_every_dial_twice(self, adapter: Adapter, model: Small, x: Tensor) -> None:
        randomise(adapter)
        positions = torch.tensor([-1.0, 0.5, 2.0])
        doubled = torch.cat([x, x.flip(-1)])
        with adapter.dial(positions):
            out = model(doubled)
        for i in range(6):
            with adapter.dial(positions[i % 3 : i % 3 + 1]):
                assert_close(out[i : i + 1], model(doubled[i : i + 1]), atol=1e-5, rtol=1e-5)

    def test_dials_nest_and_come_back(self, adapter: Adapter, model: Small, x: Tensor) -> None:
        randomise(adapter)
        base = model(x)
        with adapter.dial(torch.ones(3)):
            outer = model(x)
            with adapter.dial(-torch.ones(3)):
                assert not torch.equal(model(x), outer)
            assert torch.equal(model(x), outer)
            with pytest.raises(ZeroDivisionError), adapter.dial(-torch.ones(3)):
                raise ZeroDivisionError
            assert torch.equal(model(x), outer)
        assert torch.equal(model(x), base)

    def test_only_the_adapter_is_trained(self, adapter: Adapter, model: Small, x: Tensor) -> None:
        randomise(adapter)
        with adapter.dial(torch.ones(3)):
            model(x).square().sum().backward()
        trained = {id(parameter) for parameter in adapter.parameters()}
        assert len(trained) == 2 * len(LAYERS)
        for parameter in model.parameters():
            assert (id(parameter) in trained) == parameter.requires_grad
            assert (id(parameter) in trained) == (parameter.grad is not None and bool(parameter.grad.any()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_masters_are_float32(self, dtype: torch.dtype, model: Small, x: Tensor) -> None:
        """In a model of lower precision, which still computes in its own."""
        with Adapter(model.to(dtype), LAYERS, rank=2, alpha=3.0) as adapter:
            assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
            randomise(adapter)
            with adapter.dial(torch.ones(3)):
                assert model(x.to(dtype)).dtype == dtype

    @pytest.mark.parametrize("trainable", [(), ("enter.weight", "leave.bias", "norm.weight")])
    def test_remove_restores_everything(self, trainable: tuple[str, ...], model: Small, x: Tensor) -> None:
        model.float().eval()
        for name in trainable:
            model.get_parameter(name).requires_grad_(True)
        before, base = snapshot(model), model(x)
        adapter = Adapter(model, LAYERS, rank=2, alpha=3.0)
        randomise(adapter)
        with adapter.dial(torch.ones(3)):
            model(x)
        assert snapshot(model) != before
        adapter.remove()
        assert snapshot(model) == before
        assert torch.equal(model(x), base)
        adapter.remove()  # once more does no harm
        assert snapshot(model) == before

    def test_as_a_context_it_is_removed_after_an_exception(self, model: Small) -> None:
        before = snapshot(model.float())
        with pytest.raises(ZeroDivisionError), Adapter(model, LAYERS, rank=2, alpha=3.0):
            raise ZeroDivisionError
        assert snapshot(model) == before

    def test_state_round_trip(self, adapter: Adapter, model: Small, x: Tensor) -> None:
        randomise(adapter)
        with adapter.dial(torch.ones(3)):
            before = model(x)
            state = adapter.state()
            randomise(adapter, seed=50)
            assert not torch.equal(model(x), before)  # and the state is a copy, so what comes back is the old one
            adapter.load_state(state)
            assert torch.equal(model(x), before)

    def test_a_state_goes_from_one_adapter_to_another(self, model: Small, x: Tensor) -> None:
        with Adapter(model.float(), LAYERS, rank=2, alpha=3.0) as first:
            randomise(first)
            state, update = first.state(), first.update()
        with Adapter(model, LAYERS, rank=2, alpha=3.0) as second:
            second.load_state(state)
            for name, part in second.update().items():
                assert torch.equal(part.dense(), update[name].dense())

    def test_touches(self, adapter: Adapter) -> None:
        assert adapter.touches(["block"])
        assert adapter.touches(["absent", "leave"])
        assert not adapter.touches(["conv", "blo", "norm"])

    def test_layers_whose_names_end_alike_are_left_alone(self) -> None:
        """PEFT takes a list of names for the ends of names."""
        model = nn.ModuleDict({"proj": nn.Linear(3, 3), "block": nn.ModuleDict({"proj": nn.Linear(3, 3)})})
        before = snapshot(model)
        with Adapter(model, ["proj"], rank=1, alpha=1.0):
            assert type(model.get_submodule("block.proj")) is nn.Linear
        assert snapshot(model) == before

    @pytest.mark.parametrize("modules", [["absent"], ["enter", "absent"], ["enter", "norm"], []])
    def test_layers_that_cannot_be_adapted(self, modules: list[str], model: Small) -> None:
        before = snapshot(model.float())
        with pytest.raises(SliderError, match=modules[-1] if modules else "no layer"):
            Adapter(model, modules, rank=2, alpha=3.0)
        assert snapshot(model) == before

    @pytest.mark.parametrize("module", ["enter", "leave"])
    def test_a_finished_slider_beside_one_in_training(self, module: str, adapter: Adapter, model: Small) -> None:
        x = normal(3, 3, 6, 6, seed=5, dtype=torch.float32)
        randomise(adapter)
        weight = model.get_submodule(module).get_parameter("weight")
        finished = Slider("s", Translation({module: lowrank(tuple(weight.shape), 2, seed=1, dtype=torch.float32)}))
        with attach(model, [finished], {"s": 0.5}), adapter.dial(torch.ones(3)):
            out = model(x)
        update = adapter.update()
        adapter.remove()
        assert_close(out, moved(model, finished.at(0.5), update)(x), atol=1e-5, rtol=1e-5)


class TestSelectModules:
    def test_editable_modules(self, model: Small) -> None:
        assert editable_modules(model) == LAYERS

    @pytest.mark.parametrize(
        ("patterns", "chosen"),
        [
            (["conv"], ["block.conv"]),
            (["leave", "^enter$"], ["enter", "leave"]),  # the model's order
            ([r"block\."], ["block.conv", "block.proj"]),
            (["proj", r"^block"], ["block.conv", "block.proj"]),  # once each
            ([], []),
        ],
    )
    def test_patterns(self, patterns: list[str], chosen: list[str], model: Small) -> None:
        assert select_modules(model, patterns) == chosen

    def test_candidates(self, model: Small) -> None:
        assert select_modules(model, ["e"], ["leave", "block.conv"]) == ["leave"]

    def test_a_pattern_that_matches_nothing_names_the_nearest(self, model: Small) -> None:
        with pytest.raises(SliderError, match=r"'block\.porj'.* block\.proj"):
            select_modules(model, ["enter", "block.porj"])

    def test_no_regular_expression(self, model: Small) -> None:
        with pytest.raises(SliderError, match=r"'conv\('.*regular expression"):
            select_modules(model, ["conv("])


class TestBaked:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_it_equals_attach(self, dtype: torch.dtype, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        model, x = model.to(dtype), x.to(dtype)
        base = model(x)
        with attach(model, [a, b], {"a": 0.75, "b": -0.5}):
            attached = model(x)
        with baked(model, a.at(0.75) + b.at(-0.5)):
            merged = model(x)
        assert merged.dtype == dtype
        assert (merged - attached).abs().max() < 20 * torch.finfo(dtype).eps
        assert (merged - base).abs().max() > 0.1

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_it_restores_the_very_tensors(self, dtype: torch.dtype, model: Small, x: Tensor, a: Slider) -> None:
        model, x = model.to(dtype), x.to(dtype)
        before, base = snapshot(model), model(x)
        with baked(model, a.at(1.0)):
            assert snapshot(model) != before
        assert snapshot(model) == before
        assert torch.equal(model(x), base)

    def test_nested_and_after_an_exception(self, model: Small, x: Tensor, a: Slider, b: Slider) -> None:
        before = snapshot(model)
        with pytest.raises(ZeroDivisionError), baked(model, a.at(1.0)), baked(model, b.at(1.0)):
            raise ZeroDivisionError
        assert snapshot(model) == before

    def test_all_kinds_of_layers_are_baked(self, model: Small, x: Tensor) -> None:
        everywhere = slider(model, dict.fromkeys(LAYERS, 2))
        with baked(model, everywhere.at(1.0)):
            out = model(x)
        assert_close(out, moved(model, everywhere.update)(x))

    @pytest.mark.parametrize(
        ("module", "shape"),
        [("absent", (4, 4)), ("leave", (5, 1)), ("leave", (4, 8)), ("block", (4, 4)), ("enter", (8, 27))],
    )
    def test_what_does_not_fit(self, module: str, shape: tuple[int, ...], model: Small) -> None:
        before = snapshot(model)
        edit = Translation({"block.proj": lowrank((8, 6), 1), module: lowrank(shape, 1)})
        with pytest.raises(SliderError, match=f"'{module}'"), baked(model, edit):
            pass
        assert snapshot(model) == before


def test_snapshot_sees_each_kind_of_change(model: Small) -> None:
    """Control: what the tests above call "as it was" notices the least of changes."""
    changes = [
        lambda m: m.leave.weight.data[0, 0].mul_(1 + 1e-12),
        lambda m: setattr(m.leave.weight, "data", m.leave.weight.data.clone()),
        lambda m: setattr(m.leave, "weight", nn.Parameter(m.leave.weight.data)),
        lambda m: setattr(m, "leave", copy.copy(m.leave)),
        lambda m: m.leave.register_forward_hook(lambda *_: None),
        lambda m: m.enter.weight.requires_grad_(True),
        lambda m: setattr(m, "peft_config", {}),
        lambda m: m.norm.train(not m.norm.training),
    ]
    for change in changes:
        before = snapshot(model)
        change(model)
        assert snapshot(model) != before


def test_moved_is_the_dense_sum(model: Small) -> None:
    """Control of the oracle itself."""
    update = LowRank(torch.ones(5, 1).double(), torch.ones(1, 8).double(), (5, 8))
    assert_close(moved(model, Translation({"leave": update})).leave.weight, model.leave.weight + 1)
