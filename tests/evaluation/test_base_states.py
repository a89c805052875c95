"""Where predictions are compared, on tiny models of both kinds."""

import pytest
import torch

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.diffusion import DiffusionBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import BETWEEN, Concept
from sliders.evaluation.base_states import BaseStates, Behaviour, picture_states, text_states
from sliders.evaluation.pictures.sampling import Sampling, scenes
from sliders.evaluation.texts.sampling import TextSampling
from sliders.formula import plausible
from sliders.runtime.attach import attach
from sliders.studies.behavioural_laws import interaction, oracle_gap, path
from tests import tiny_lm
from tests.evaluation.conftest import random_slider
from tests.formats.test_peft import mixed

MESSAGES = ["how was your day", "tell me about the dog", "a hat"]
HAPPY = Concept("happy", "a person", ["a happy person"], ["a sad person"], modality="text")
LONG = Concept("long", "a person", ["a long day"], ["a hat", "a dog"], modality="text")
HOW = TextSampling(tokens=6, batch=2)


@pytest.fixture(scope="module")
def speaker() -> CausalLMBackbone:
    made, model = CausalLMBackbone("tiny", support=12), tiny_lm.language_model("llama")
    made.use(model.lm, model.tokenizer)
    return made


@pytest.fixture(scope="module")
def said(speaker: CausalLMBackbone) -> BaseStates:
    return text_states(speaker, "a person", MESSAGES, HOW)


class TestText:
    def test_states_are_the_bases_own_responses(self, speaker: CausalLMBackbone, said: BaseStates) -> None:
        asked = speaker.encode(["a person" + BETWEEN + message for message in MESSAGES])
        own = speaker.respond(asked, [1000, 1001, 1002], 6, 0.8)
        assert torch.equal(said.state["tokens"], own["tokens"])
        assert said.base.shape == (3, 6, 12)
        assert (said.scenes, said.contexts) == (3, MESSAGES)
        torch.testing.assert_close(said.predict(), said.base)

    def test_a_token_counts_by_its_probability(self, said: BaseStates) -> None:
        change = torch.zeros_like(said.base)
        change[1, 0, 0] = 2.0
        found = said.squared(change)
        assert found.tolist() == pytest.approx([0, 4 * float(said.base[1, 0, 0].exp()), 0])
        counts = said.base.exp() * plausible(said.base, 0.05) * said.state["mask"][..., None]
        torch.testing.assert_close(said.weight.expand_as(counts).float(), counts)

    def test_the_oracle_of_several_concepts_adds_their_directions(
        self, speaker: CausalLMBackbone, said: BaseStates
    ) -> None:
        answers = {}
        for prompt in ("a happy person", "a sad person", "a long day", "a hat", "a dog"):
            conditioning = speaker.encode([prompt + BETWEEN + message for message in MESSAGES])
            with torch.no_grad():
                answers[prompt] = speaker.predict(said.state, conditioning)
        happy = answers["a happy person"] - answers["a sad person"]
        long = answers["a long day"] - (answers["a hat"] + answers["a dog"]) / 2
        wanted = said.base + 0.5 * happy - 2 * long
        change = said.oracle([(HAPPY, 0.5), (LONG, -2.0)])
        moves = said.weight.expand_as(change) > 0
        assert moves.any()
        for k, t in moves.any(-1).nonzero().tolist():
            share = wanted[k, t][moves[k, t]].softmax(-1) * said.base[k, t][moves[k, t]].exp().sum()
            torch.testing.assert_close((said.base + change)[k, t][moves[k, t]].exp(), share, atol=1e-5, rtol=1e-4)
        assert said.oracle([(HAPPY, 0.0)]).abs().max() < 1e-5

    def test_laws_of_language(self, speaker: CausalLMBackbone, said: BaseStates) -> None:
        a, b = mixed(speaker, "a", 1), mixed(speaker, "b", 2)
        with attach(speaker, [a, b]) as dials:
            told = Behaviour(said, dials)
            assert interaction(told, "a", "b", {}).gap.value > 0.05
            assert path(told, "a", {}).size[-1] > 0
            assert oracle_gap(told, [("a", HAPPY, 1.0)], {}, {"a": 1.0}).gap.value > 0.1
            assert oracle_gap(told, [("a", HAPPY, 1.0)], {}, {}).gap.value == pytest.approx(1)  # nothing done


class TestPictures:
    @pytest.fixture
    def here(self, base: AbstractBackbone) -> BaseStates:
        assert isinstance(base, DiffusionBackbone)
        return picture_states(base, scenes(["a person", "a dog"], 2), Sampling(steps=4, guidance=2.0, batch=3))

    def test_rows_belong_to_scenes(self, here: BaseStates) -> None:
        assert here.scene.tolist() == [0, 1]
        assert here.prompts == ["a person", "a dog"]
        torch.testing.assert_close(here.predict(), here.base)
        assert here.squared(torch.ones_like(here.base)).tolist() == [here.base[0].numel()] * 2

    def test_the_oracle_adds_directions(self, base: AbstractBackbone, here: BaseStates) -> None:
        happy = Concept("happy", "a person", ["a happy person"], ["a sad person"], contexts=[" with a hat"])
        with torch.no_grad():
            sides = [base.predict(here.state, base.encode([text] * 2)) for text in ("a happy person", "a sad person")]
        torch.testing.assert_close(here.oracle([(happy, -1.5)]), -1.5 * (sides[0] - sides[1]), atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize("target", ["xattn", "text-encoder"])
    def test_each_position_is_asked_once(self, target: str, base: AbstractBackbone, here: BaseStates) -> None:
        with attach(base, [random_slider(base, target)]) as dials:
            told = Behaviour(here, dials)
            one = told.change({"random": 1.0})
            assert told.change({"random": 1.0, "other": 0.0}) is one
            assert told.change({}).abs().max() < 1e-6
            assert one.abs().max() > 1e-3
            assert not dials["random"].any()
