"""Steering vectors on tiny language models."""

import pytest
import torch
from torch import Tensor

from sliders.algebra.laws import commutes
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.editors.contrast import ResponseSampling, writer
from sliders.editors.steering import fit_steering
from sliders.errors import SliderError
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape


def hidden(model: CausalLMBackbone, prompt: str, layers: list[int]) -> Tensor:
    with torch.no_grad():
        return model.hidden(model.responses(["a long day"], 12), model.encode([prompt]), layers)


def test_the_vector_is_added_after_its_block_and_nowhere_before(model: CausalLMBackbone, mood: Concept) -> None:
    steering = fit_steering(model, mood, [1])
    (name,) = steering.modules
    assert name == writer(model, 1)
    before = hidden(model, "x", [1, 2])
    with baked(model, steering * 2.0):
        after = hidden(model, "x", [1, 2])
    shift = steering.apply_layer(name, torch.zeros(weight_shape(model, name)), torch.zeros(16))[1]
    assert shift is not None
    assert shift.norm() > 1e-3
    assert torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1] - before[:, 1], (2 * shift).expand(1, 12, -1), atol=1e-4, rtol=1e-4)


def test_it_is_the_mean_difference_of_the_two_sides(model: CausalLMBackbone, mood: Concept) -> None:
    """By hand, over the same responses; swapping the sides turns it round."""
    steering = fit_steering(model, mood, [1], ResponseSampling(tokens=6))
    sums, count = torch.zeros(16), 0
    messages = mood.contexts
    assert isinstance(messages, list)
    with torch.no_grad():
        for k, message in enumerate(messages):
            said = model.respond(model.encode([f"{mood.target}\n\n{message}"]), [k], 6)
            sides = [
                model.hidden(said, model.encode([f"{side}\n\n{message}"]), [2])[0, 0]
                for side in (mood.positives[0], mood.negatives[0])
            ]
            sums += ((sides[0] - sides[1]) * said["mask"][0][:, None]).sum(0)
            count += int(said["mask"].sum())
    shape = weight_shape(model, writer(model, 1))
    shift = steering.apply_layer(writer(model, 1), torch.zeros(shape), torch.zeros(16))[1]
    torch.testing.assert_close(shift, sums / count, atol=1e-4, rtol=1e-3)


def test_steering_is_a_translation_so_that_two_of_them_commute(model: CausalLMBackbone, mood: Concept) -> None:
    one, two = fit_steering(model, mood, [1]), fit_steering(model, mood, [1], ResponseSampling(tokens=8), seed=50)
    assert commutes(one, two)
    assert commutes(one, two).reason


def test_afterwards_the_model_is_the_base_bit_for_bit(model: CausalLMBackbone, mood: Concept) -> None:
    layer = model.get_submodule(writer(model, 1))
    bias, before = layer.bias, hidden(model, "x", [3])
    with baked(model, fit_steering(model, mood, [1])):
        assert not torch.equal(hidden(model, "x", [3]), before)
    assert layer.bias is bias
    assert torch.equal(hidden(model, "x", [3]), before)


def test_a_block_that_is_not_there_is_an_error(model: CausalLMBackbone, mood: Concept) -> None:
    with pytest.raises(SliderError, match="no block 7"):
        fit_steering(model, mood, [7])
    with pytest.raises(SliderError, match="give at least one"):
        fit_steering(model, mood, [])
