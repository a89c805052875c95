"""Sliders on models that are moved to another device or precision, or run by somebody else, after they are attached."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Interpolated, Slider
from sliders.batch import rows_of
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from tests.factory import lowrank, moved, normal, slider
from tests.runtime.test_attach import LAYERS, Small, randomise
from tests.runtime.test_dials import leace

ROWS = torch.tensor([1.0, -0.5, 2.0])


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return normal(3, 3, 6, 6, seed=5, dtype=torch.float32)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as accelerators do; the meta device lets some pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim() > 0]
        if len({x.device.type for x in given}) > 1 and "copy" not in func.name():
            raise RuntimeError(f"{func.name()} of tensors of two devices")
        return func(*args, **(kwargs or {}))


def test_what_stays_behind_is_found() -> None:
    """Control of the tests below."""
    one, other = torch.ones(2, 3, device="meta"), torch.ones(4, 3)
    nn.functional.linear(one, other)  # by itself it does not mind
    with OneDevice(), pytest.raises(RuntimeError, match="two devices"):
        nn.functional.linear(one, other)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dial", [0.7, ROWS], ids=["shared", "of each row"])
@pytest.mark.parametrize("before", [False, True], ids=["turned after", "turned before"])
def test_attached_sliders_follow_to_another_device(
    fold: bool, dial: float | Tensor, before: bool, model: Small, x: Tensor
) -> None:
    """Also if they ran where they were first; a slider and an edit that reads the layer's constant."""
    dials = [slider(model, dict.fromkeys(LAYERS, 2)), Interpolated("p", leace(model, "leave"))]
    with attach(model, dials, fold=fold) as turned:
        if before:
            turned.set({"s": dial, "p": dial})
            model(x)
        model.to("meta")
        turned.set({"s": dial, "p": dial})
        with OneDevice():
            assert model(x.to("meta")).device.type == "meta"


def test_a_slider_in_training_follows_to_another_device(model: Small, x: Tensor) -> None:
    with Adapter(model, LAYERS, 2, 2.0) as adapter, adapter.dial(ROWS):
        model(x)
        model.to("meta")
        with OneDevice():
            model(x.to("meta")).sum().backward()
        assert {p.grad.device.type for p in adapter.parameters() if p.grad is not None} == {"meta"}


def test_one_fitted_on_another_that_was_attached_before_the_move(model: Small, x: Tensor) -> None:
    first = slider(model, dict.fromkeys(LAYERS, 1), "first")
    with attach(model, [first], {"first": 1.0}), Adapter(model, LAYERS, 2, 2.0) as adapter, adapter.dial(ROWS):
        model.to("meta")
        with OneDevice():
            model(x.to("meta")).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dial", [0.7, ROWS], ids=["shared", "of each row"])
def test_attached_sliders_follow_to_another_precision_and_back(
    dtype: torch.dtype, dial: float | Tensor, model: Small, x: Tensor
) -> None:
    with attach(model, [slider(model, dict.fromkeys(LAYERS, 2))]) as turned:
        turned.set({"s": dial})
        wanted = model(x)
        model.to(dtype)
        assert_close(model(x.to(dtype)).float(), wanted, atol=0.05, rtol=0.05)
        assert model(x.to(dtype)).dtype == dtype
    small = copy.deepcopy(model).float()  # the weights were rounded; the factors were not
    with attach(small, [slider(small, dict.fromkeys(LAYERS, 2))]) as turned:
        turned.set({"s": dial})
        there = small(x)
        small.to(dtype)
        small(x.to(dtype))
        small.float()
        assert torch.equal(small(x), there)


def names(model: nn.Module) -> dict[str, list[str]]:
    """Of all that a model says that it has."""
    return {
        "modules": [name for name, _ in model.named_modules()],
        "parameters": [name for name, _ in model.named_parameters()],
        "buffers": [name for name, _ in model.named_buffers()],
        "state": list(model.state_dict()),
    }


def test_an_attached_model_has_the_names_that_it_had(model: Small, x: Tensor) -> None:
    """Also after it has run and been moved, folded and beside."""
    before = names(model)
    with attach(model, [slider(model, dict.fromkeys(LAYERS, 2))]) as turned:
        for dial in (0.7, ROWS):
            turned.set({"s": dial})
            model(x)
            assert names(model.double()) == before
            model(x.double())
            model.float()
    model.leave.register_buffer("up", torch.ones(1), persistent=False)
    assert names(model) != before, "the control: what a layer that keeps factors as buffers would show"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_factors_in_training_stay_in_float32(dtype: torch.dtype, model: Small, x: Tensor) -> None:
    with Adapter(model, LAYERS, 2, 2.0) as adapter:
        randomise(adapter)
        before = adapter.state()
        model.to(dtype)
        assert {p.dtype for p in model.parameters()} == {dtype, torch.float32}
        assert all(torch.equal(value, before[name]) for name, value in adapter.state().items())
        with adapter.dial(ROWS):
            out = model(x.to(dtype))
            out.float().sum().backward()
        assert out.dtype == dtype
        assert {p.grad.dtype for p in adapter.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_on_a_base_of_low_precision_the_update_is_right_up_to_the_rounding_of_its_layers(
    dtype: torch.dtype, scale: float
) -> None:
    """However the factors share its size; against float64."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 48)).to(dtype).requires_grad_(False)
    exact, x = copy.deepcopy(layer).double(), normal(3, 5, 64, seed=1).to(dtype)
    update = lowrank((48, 64), 4, 7)
    made = Slider("s", Translation({"0": LowRank(update.B / scale, update.A * scale, update.shape)}))
    with attach(layer, [made]) as dials, rows_of(3):
        dials.set({"s": ROWS})
        out = layer(x)
    for row, position in enumerate(ROWS.tolist()):
        wanted = moved(exact, made.at(position))(x[row].double())
        rounding = torch.finfo(dtype).eps * wanted.abs().max()
        assert (out[row].double() - wanted).abs().max() < rounding
        assert (exact(x[row].double()) - wanted).abs().max() > 20 * rounding


class TestDeclared:
    """Whoever runs a model says how many rows it is run on."""

    def test_nobody_said(self) -> None:
        layer, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(3, 4)
        with attach(layer, [slider(layer, {"0": 1})]) as dials:
            dials.set({"s": 0.5})
            layer(x)
            dials.set({"s": ROWS})
            with pytest.raises(SliderError, match=r"'0'.*rows_of"):
                layer(x)
        with Adapter(layer, ["0"], 1, 1.0) as adapter:
            with adapter.dial(torch.ones(1)):
                layer(x)
            with adapter.dial(ROWS), pytest.raises(SliderError, match=r"'0'.*rows_of"):
                layer(x)

    @pytest.mark.parametrize("layer", [nn.Linear(4, 4), Conv1D(4, 4)])
    def test_rows_whose_tokens_lie_behind_one_another(self, layer: nn.Module) -> None:
        model, x = nn.Sequential(copy.deepcopy(layer)), normal(6, 4, seed=1, dtype=torch.float32)
        made = slider(model, {"0": 2})
        with attach(model, [made]) as dials:
            dials.set({"s": ROWS})
            with rows_of(3, tokens=2):
                out = model(x)
            with rows_of(3), pytest.raises(SliderError, match="'0'"):
                model(x)
        for row, position in enumerate(ROWS.tolist()):
            part = slice(2 * row, 2 * row + 2)
            assert_close(out[part], moved(model, made.at(position))(x[part]))

    def test_a_backward_pass_computes_layers_anew_on_what_they_were_run_on(self) -> None:
        """In another thread, as on an accelerator, where nobody has declared anything."""
        model, x = nn.Sequential(nn.Linear(4, 4)), normal(6, 4, seed=1, dtype=torch.float32)
        found = []
        for anew in (False, True):
            with Adapter(model.requires_grad_(False), ["0"], 2, 2.0) as adapter:
                randomise(adapter)
                with adapter.dial(ROWS), rows_of(3, tokens=2):
                    out = checkpoint(model, x, use_reentrant=False) if anew else model(x)
                failed: list[Exception] = []

                def back(again: bool, adapter: Adapter = adapter, out: Tensor = out, failed: list = failed) -> None:
                    try:
                        with adapter.dial(ROWS, again):
                            out.square().sum().backward(retain_graph=True)
                    except SliderError as error:
                        failed.append(error)

                for again in (False, True) if anew else (True,):
                    thread = threading.Thread(target=back, args=(again,))
                    thread.start()
                    thread.join()
                assert len(failed) == anew  # the control: without being told it knows nothing
                found.append([p.grad for p in adapter.parameters()])
        for one, other in zip(*found, strict=True):
            assert_close(one, other)
