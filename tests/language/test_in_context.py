"""Tasks in prompts, and how often they are done."""

import random
from pathlib import Path

import pytest
import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.errors import SliderError
from sliders.language.in_context import Task, first_tokens, next_tokens, solved
from tests import tiny, tiny_lm

TASK = Task("pets", {"dog": "dogs", "hat": "hats", "day": "days", "person": "people"}, {"cat": "cats"})


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    folder = tiny.save(tiny_lm.language_model("llama"), tmp_path_factory.mktemp("lm") / "model")
    backbone = CausalLMBackbone(str(folder), prompt_tokens=96)
    backbone.load()
    return backbone


def test_a_prompt_shows_other_examples_and_asks_for_the_word() -> None:
    prompt = TASK.prompt("dog", 3, random.Random(0))
    assert prompt.endswith("Q: dog\nA:")
    assert all(f"Q: {word}\nA: {answer}\n\n" in prompt for word, answer in TASK.examples.items() if word != "dog")
    assert "dogs" not in prompt
    assert TASK.prompt("cat", 0, random.Random(0)) == "Q: cat\nA:"


def test_shuffled_answers_are_the_same_answers_elsewhere() -> None:
    plain, mixed = (TASK.prompt("cat", 4, random.Random(3), shuffled) for shuffled in (False, True))
    assert plain != mixed
    assert sorted(plain.split()) == sorted(mixed.split())


def test_the_next_token_is_that_of_the_model_alone(lm: CausalLMBackbone) -> None:
    prompts = ["how was your day", "a dog"]
    found = next_tokens(lm, lm.encode_plain(prompts))
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            alone = lm.lm(lm.tokenizer(prompt, return_tensors="pt").input_ids).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(found[row], alone, atol=1e-4, rtol=1e-4)


def test_solved_counts_the_likeliest_first_token(lm: CausalLMBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says "dogs" to everything."""
    says = torch.zeros(lm.lm.config.vocab_size)
    says[first_tokens(lm, ["dogs"])] = 3.0
    always = says.log_softmax(-1)
    monkeypatch.setattr(lm, "log_probabilities", lambda state, _: always.expand(*state["tokens"].shape, -1))
    right, likely = solved(lm, TASK, {"dog": "dogs", "hat": "a", "day": "x", "person": "we"}, 1)
    assert right == 0.25
    other = float(always.min())
    assert likely == pytest.approx(other + 3.0 / 4)


def test_what_is_wrong_with_a_task_is_said(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("name: x\nexamples: {a: b}\nheldout: {a: c}")
    with pytest.raises(SliderError, match="'a' is an example and held out"):
        Task.load(file)
    file.write_text("name: x")
    with pytest.raises(SliderError, match="cannot read the task"):
        Task.load(file)
    with pytest.raises(SliderError, match="4 examples, but 5"):
        TASK.prompt("cat", 5, random.Random(0))
