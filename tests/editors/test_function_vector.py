"""Function vectors on tiny models: which heads count, by hand, and where the vector is added."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.language.network import joined
from sliders.editors.contrast import writer
from sliders.editors.function_vector import FunctionVector, attention_outputs, head_effects, mean_heads
from sliders.errors import SliderError
from sliders.language.in_context import Task, first_tokens, next_tokens
from sliders.language.recall import outputs, run
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests.editors import facts
from tests.factory import normal

TASK = """
name: pets
examples: {dog: dogs, hat: hats, day: days, person: people, sad: sadder}
heldout: {good: better}
"""
PROMPT = "Q: dog\nA: hats\n\nQ: day\nA:"


@pytest.fixture(scope="module", params=["llama", "gpt2", "neox"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    return facts.load(request.param, tmp_path_factory.mktemp("lm"))


def editor(folder: Path, block: int = 1, heads: int = 2) -> FunctionVector:
    file = folder / "task.yaml"
    file.write_text(TASK)
    return FunctionVector(file, block, heads, shots=2, prompts=5, trials=3)


@contextmanager
def one_head(model: CausalLMBackbone, layer: str, head: int, mean: Tensor) -> Iterator[None]:
    """By hand: a whole pass with one head's output at the last token replaced."""

    def change(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = args[0].clone()
        width = len(mean)
        own[:, -1, head * width : (head + 1) * width] = mean
        return (own, *args[1:])

    hook = model.get_submodule(layer).register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def test_the_effect_of_a_head_is_what_a_whole_pass_with_it_replaced_shows(model: CausalLMBackbone) -> None:
    layers = attention_outputs(model)
    means = normal(3, 2, 8, seed=1)
    effects = head_effects(model, layers, means, PROMPT, "days")
    asked, right = model.encode_plain([PROMPT]), first_tokens(model, ["days"])[0]

    def probability() -> Tensor:
        empty = {name: value[:, :0] for name, value in zip(("tokens", "mask"), asked.values(), strict=True)}
        return model.lm(**joined(empty, asked)).logits[0, -1].softmax(-1)[right]

    base = probability()
    for block, layer in enumerate(layers):
        for head in range(2):
            with one_head(model, layer, head, means[block, head]):
                torch.testing.assert_close(effects[block, head].double(), probability() - base, atol=1e-6, rtol=1e-4)
    assert effects.abs().min() > 0


@torch.no_grad()
def test_a_head_s_own_output_put_in_has_no_effect(model: CausalLMBackbone) -> None:
    layers = attention_outputs(model)
    means = mean_heads(model, layers, [("day", PROMPT)])
    torch.testing.assert_close(head_effects(model, layers, means, PROMPT, "days"), torch.zeros(3, 2), atol=1e-6, rtol=0)


@torch.no_grad()
def test_all_heads_together_are_what_attention_adds_to_the_last_token(model: CausalLMBackbone, place: Path) -> None:
    """The vector of all heads of all blocks is the sum of the attention layers' mean outputs without their biases."""
    made = editor(place, heads=6)
    (target,) = made.fit(model).modules
    task, chance = Task.load(made.task), random.Random(0)
    words = chance.choices(list(task.examples), k=made.prompts)
    prompts = [task.prompt(word, made.shots, chance) for word in words]
    total = torch.zeros(16, dtype=torch.float64)
    seen: list[Tensor] = []
    for layer in attention_outputs(model):
        module = model.get_submodule(layer)
        hook = module.register_forward_hook(lambda _, __, out: seen.append(out[:, -1]))
        run(model, model.encode_plain(prompts))
        hook.remove()
        bias = getattr(module, "bias", None)
        total += seen.pop().mean(0) - (0 if bias is None else bias)
    shift = made.fit(model).apply_layer(target, torch.zeros(weight_shape(model, target)), torch.zeros(16))[1]
    assert shift is not None
    torch.testing.assert_close(shift.double(), total, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_vector_is_added_after_its_block_and_nowhere_before(model: CausalLMBackbone, place: Path) -> None:
    edit = editor(place).fit(model)
    target = writer(model, 1)
    assert edit.modules == (target,)
    asked = model.encode_plain(["a dog is"])
    before = [run(model, asked, block)[0] for block in (0, 1)]
    zero = torch.zeros(weight_shape(model, target)[1], 1, dtype=torch.float64)
    answer = outputs(model, target, zero)[:, 0]
    with baked(model, edit):
        after = [run(model, asked, block)[0] for block in (0, 1)]
        vector = outputs(model, target, zero)[:, 0] - answer
    assert torch.equal(after[0], before[0])
    assert vector.norm() > 1e-3
    torch.testing.assert_close(after[1] - before[1], vector.expand_as(after[1]), atol=1e-5, rtol=1e-4)


def test_one_seed_gives_one_vector_and_the_best_heads_are_taken(model: CausalLMBackbone, place: Path) -> None:
    made = editor(place, heads=1)
    layers = attention_outputs(model)
    task, chance = Task.load(made.task), random.Random(7)
    with torch.no_grad():
        means = mean_heads(model, layers, made._asked(task, chance, made.prompts))
        tried = made._asked(task, chance, made.trials, shuffled=True)
        every = [head_effects(model, layers, means, prompt, task.examples[word]) for word, prompt in tried]
        effects = torch.stack(every).sum(0)
    block, head = divmod(int(effects.argmax()), 2)
    alone = torch.zeros_like(means[0])
    alone[head] = means[block, head]
    both = outputs(model, layers[block], torch.stack([alone.flatten(), torch.zeros(16).double()], 1))
    target = writer(model, 1)
    for _ in range(2):
        shift = made.fit(model, 7).apply_layer(target, torch.zeros(weight_shape(model, target)), torch.zeros(16))[1]
        assert shift is not None
        torch.testing.assert_close(shift.double(), both[:, 0] - both[:, 1], atol=1e-5, rtol=1e-5)


def test_afterwards_nothing_hangs_on_the_model(model: CausalLMBackbone, place: Path) -> None:
    before = next_tokens(model, model.encode_plain([PROMPT]))
    editor(place).fit(model)
    assert torch.equal(next_tokens(model, model.encode_plain([PROMPT])), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_wrong_is_said(model: CausalLMBackbone, place: Path) -> None:
    with pytest.raises(SliderError, match="heads is 7; the model has 6"):
        editor(place, heads=7).fit(model)
    with pytest.raises(SliderError, match="no block 5"):
        editor(place, block=5).fit(model)
    assert editor(place).describe() == "task from 2 examples, 2 heads, added after block 1"
