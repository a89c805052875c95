"""Where a subject ends, what is read there, and what is found to write there."""

from pathlib import Path

import pytest
import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.contrast import writer
from sliders.errors import SliderError
from sliders.language.facts import Rewrite, read_rewrites
from sliders.language.recall import Asked, from_end, keys, outputs, reading, run
from tests.editors import facts

ODD = ["a dog", "dog's", "a person is", "Zoë", "東京", "🐶", "a 🐶 b", "x", "sad\u00a0dog", "St. John", "hat-"]


@pytest.mark.parametrize("subject", ODD)
@pytest.mark.parametrize("prompt", ["{}", "{} is", "the day of {} was", "tell me about the {}s", "“{}”, a day"])
def test_the_last_token_of_a_subject_is_the_last_that_holds_a_byte_of_it(
    lm: CausalLMBackbone, subject: str, prompt: str
) -> None:
    """By bytes: the tokens up to it spell the subject's end, and those before it do not."""
    before, _, after = prompt.partition("{}")
    text = before + subject + after
    ids = lm.tokenizer(text, add_special_tokens=False).input_ids
    place = len(ids) - from_end(lm, text, len(before + subject))

    tokens = lm.tokenizer.convert_ids_to_tokens(ids)  # a character for every byte
    assert sum(map(len, tokens)) == len(text.encode())
    wanted = len((before + subject).encode())
    assert sum(map(len, tokens[:place])) < wanted <= sum(map(len, tokens[: place + 1]))


def test_prompts_of_unlike_lengths_keep_their_places(lm: CausalLMBackbone) -> None:
    asked = Asked.about(lm, "a dog", ["{} is", "how was the day of {}? it was", "{}"])
    ids = asked.prompts["prefix"]
    for row, back in enumerate(asked.back.tolist()):
        assert lm.tokenizer.decode(ids[row, : ids.shape[1] - back + 1]).endswith("dog")
    states, mask = run(lm, asked.prompts, 1)
    assert states.shape[:2] == mask.shape
    for row, own in enumerate(asked.at_subject(states)):
        assert torch.equal(own, states[row, states.shape[1] - int(asked.back[row])])


def test_a_subject_of_nothing_is_an_error(lm: CausalLMBackbone) -> None:
    with pytest.raises(SliderError, match="no token"):
        from_end(lm, "a dog", 0)


def test_keys_are_the_mean_of_what_the_layer_is_given(lm: CausalLMBackbone) -> None:
    layer = writer(lm, 1)
    prompts = ["{} is", "the day of {}"]
    found = keys(lm, [layer], [Asked.about(lm, "a dog", prompts)])[layer]
    alone = []
    for prompt in prompts:
        asked = Asked.about(lm, "a dog", [prompt])
        with reading(lm, [layer]) as seen:
            run(lm, asked.prompts)
        alone.append(seen[layer][0, -int(asked.back[0])])
    torch.testing.assert_close(found[:, 0], torch.stack(alone).mean(0))
    assert not lm.get_submodule(layer)._forward_pre_hooks


def test_outputs_have_the_bias_in_them(lm: CausalLMBackbone) -> None:
    layer = writer(lm, 1)
    nothing = outputs(lm, layer, torch.zeros(keys_width(lm, layer), 1, dtype=torch.float64))
    bias = getattr(lm.get_submodule(layer), "bias", None)
    torch.testing.assert_close(nothing[:, 0], torch.zeros(16, dtype=torch.float64) if bias is None else bias.detach())


def keys_width(lm: CausalLMBackbone, layer: str) -> int:
    return keys(lm, [layer], [Asked.about(lm, "a dog", ["{}"])])[layer].shape[0]


def test_facts_are_read_and_what_is_wrong_with_them_is_said(place: Path) -> None:
    file = facts.facts(place)
    one, two = read_rewrites(file)
    assert isinstance(one, Rewrite)
    assert (one.subject, one.old, one.new, one.neighbours) == ("a dog", "good", "sad", {"you": "good"})
    assert read_rewrites(file, ["the hat"]) == [two]
    with pytest.raises(SliderError, match="no fact about 'x'; it has a dog, the hat"):
        read_rewrites(file, ["x"])
    file.write_text(facts.FACTS.replace("of {} is", "of it is"))
    with pytest.raises(SliderError, match=r"needs one \{\}"):
        read_rewrites(file)
    file.write_text("- nothing: here")
    with pytest.raises(SliderError, match="cannot read the facts"):
        read_rewrites(file)
