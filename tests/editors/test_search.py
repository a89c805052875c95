"""The search for a value on tiny models: it says the new answer, within its limit, and leaves what the subject is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sliders.backbones.language.model import CausalLMBackbone
from sliders.editors.contrast import writer
from sliders.editors.search import ESSENCE, PrefixCachedPrompts, Prefixes
from sliders.errors import SliderError
from sliders.language.facts import read_rewrites
from sliders.language.recall import Asked, answering, keys, outputs
from tests.editors import facts
from tests.factory import normal

PROMPTS = ["{} is", "how was the day of {}? it was", "{}", "tell me about the hat, the dog and {}, who"]


def test_beginnings_are_words_of_the_text_and_none(place: Path) -> None:
    drawn = Prefixes(facts.texts(place), count=3, words=2).draw(5)
    assert drawn[0] == ""
    assert len(drawn) == 4
    for beginning in drawn[1:]:
        assert beginning.endswith(". ")
        assert any(beginning.removesuffix(". ") in line for line in facts.LINES)
    assert drawn == Prefixes(facts.texts(place), count=3, words=2).draw(5)
    assert drawn != Prefixes(facts.texts(place), count=3, words=2).draw(6)
    with pytest.raises(SliderError, match=r"prefixes.count is 99, but .*text.txt has 33 lines"):
        Prefixes(facts.texts(place), count=99).draw(0)


@torch.no_grad()
@pytest.mark.parametrize("subject", ["a dog", "x", "Zoë"])
def test_what_is_read_once_and_went_on_from_is_a_whole_pass(lm: CausalLMBackbone, subject: str) -> None:
    """Also with the layer's answer at the subject changed, where the whole pass changes it by its place."""
    asked, answer, layer = Asked.about(lm, subject, PROMPTS), " a sad person", writer(lm, 1)
    told, shift = PrefixCachedPrompts(lm, asked, answer), normal(16, seed=1)
    said = lm.responses([answer] * len(PROMPTS), len(told.answer), end=False)
    whole = lm.log_probabilities(said, asked.prompts)
    torch.testing.assert_close(told.log_probabilities(), whole, atol=1e-5, rtol=1e-4)

    def by_place(out: Tensor) -> Tensor:
        out = out.clone()
        out[torch.arange(len(out)), out.shape[1] - len(told.answer) - asked.back] += shift
        return out

    with answering(lm, layer, by_place):
        changed = lm.log_probabilities(said, asked.prompts)
    with answering(lm, layer, lambda out: torch.cat([out[:, :1] + shift, out[:, 1:]], 1)):
        torch.testing.assert_close(told.log_probabilities(), changed, atol=1e-5, rtol=1e-4)
    assert (changed - whole).abs().max() > 1e-2


@torch.no_grad()
def test_nothing_need_stand_before_the_subject(lm: CausalLMBackbone) -> None:
    asked = Asked.about(lm, "x", ["{} is", "{}"])
    said = lm.responses([" sad"] * 2, 1, end=False)
    found = PrefixCachedPrompts(lm, asked, lm.tokenizer.decode(said["tokens"][0])).log_probabilities()[:, :1]
    torch.testing.assert_close(found, lm.log_probabilities(said, asked.prompts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("replaces", [True, False])
def test_the_search_makes_the_new_answer_likely_within_its_limit(
    lm: CausalLMBackbone, place: Path, replaces: bool
) -> None:
    fact, layer = read_rewrites(facts.facts(place))[0], writer(lm, 1)
    how = facts.search(place)
    asked = how.asked(lm, fact, 0)
    start = outputs(lm, layer, keys(lm, [layer], [asked])[layer])[:, 0] if replaces else None
    size = 3.0
    move = how.move(lm, layer, fact, start, size, 0)
    assert 0 < move.norm() <= how.limit * size * (1 + 1e-9)

    said = lm.responses([f" {fact.new}"] * len(asked.back), 8, end=False)
    length = int(said["mask"].sum(1).max())
    said = {name: value[:, :length] for name, value in said.items()}

    def likely(shift: Tensor) -> float:
        def change(out: Tensor) -> Tensor:
            out = out.clone()
            rows, columns = torch.arange(len(out)), out.shape[1] - length - asked.back
            out[rows, columns] = (out[rows, columns] if start is None else start) + shift
            return out

        with torch.no_grad(), answering(lm, layer, change):
            return float(lm.likelihood(said, asked.prompts).mean())

    before = likely(torch.zeros_like(move))
    others = [likely(move.norm() * normalize(normal(len(move), seed=k), dim=0)) for k in range(10)]
    assert likely(move) > before
    assert likely(move) > max(others)  # control: as far in other directions
    assert torch.equal(move, how.move(lm, layer, fact, start, size, 0))


def test_the_essence_holds_the_value_back(lm: CausalLMBackbone, place: Path) -> None:
    """Control: without it, what the subject is drifts."""
    fact, layer = read_rewrites(facts.facts(place))[0], writer(lm, 1)
    how, essence = facts.search(place), Asked.about(lm, fact.subject, [ESSENCE])
    said = lm.responses(["."], 1, end=False)

    def drift(weight: float) -> Tensor:
        move = replace(how, essence=weight).move(lm, layer, fact, None, 3.0, 0)

        def change(out: Tensor) -> Tensor:
            out = out.clone()
            out[0, out.shape[1] - 1 - int(essence.back[0])] += move
            return out

        with torch.no_grad():
            base = lm.log_probabilities(said, essence.prompts)
            with answering(lm, layer, change):
                found = lm.log_probabilities(said, essence.prompts)
        return (found.exp() * (found - base)).sum()

    assert drift(1e4) < 0.5 * drift(0.0)
