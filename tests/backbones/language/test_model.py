"""Language models of the usual architectures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch, repeat, take
from sliders.errors import SliderError
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.backbones.contract import PROMPTS, BackboneContract, row
from tests.factory import slider
from tests.training.runs import equal, randomize

SAID = ["a happy dog", "the day was sad and long", "it was"]


class LanguageContract(BackboneContract):
    """The further laws of models whose states are responses."""

    kind: str
    chat: str | None = None
    moving = ("tokens", "mask", "support")

    @classmethod
    def pipeline(cls) -> Any:
        return tiny_lm.language_model(cls.kind, cls.chat)

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return CausalLMBackbone(str(folder), support=5, prompt_tokens=48)

    @classmethod
    def three_states(cls, model: CausalLMBackbone) -> TensorBatch:
        """Responses of different lengths, with their support."""
        return model.complete(model.responses(SAID, 9), model.encode(PROMPTS[:3]))

    def read_export(self, folder: Path) -> None:
        lm, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert lm(**words("a happy person", return_tensors="pt")).logits.shape[-1] >= len(words)

    @pytest.mark.parametrize("prompt", ["a happy person", "you are sad.\n\nhow was your day", "", "x\n\n", "\n\nday"])
    @pytest.mark.parametrize("said", ["happy", " happy", "ppy person is sad", "é\u3042 z"])
    def test_a_response_has_the_same_tokens_under_every_prompt(
        self, model: CausalLMBackbone, prompt: str, said: str
    ) -> None:
        """And they are scored as the model itself scores prefix and response joined as ids."""
        conditioning, state = model.encode([prompt]), model.responses([said], 24)
        prefix = conditioning["prefix"][0][conditioning["prefix_mask"][0]]
        tokens = state["tokens"][0][state["mask"][0]]
        assert model.tokenizer.decode(tokens[:-1]) == said
        assert tokens[-1] == model.tokenizer.eos_token_id
        logits = model.lm(torch.cat([prefix, tokens])[None]).logits[0].log_softmax(-1)
        wanted = logits[len(prefix) - 1 : -1].gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(
            model.likelihood(state, conditioning)[0, : len(tokens)], wanted, atol=1e-4, rtol=1e-4
        )
        assert not model.likelihood(state, conditioning)[0, len(tokens) :].any()

    def test_the_support_is_what_the_base_finds_likeliest(self, model: CausalLMBackbone) -> None:
        state, conditioning = self.three_states(model), model.encode(PROMPTS[:3])
        whole = model.log_probabilities({k: state[k] for k in ("tokens", "mask")}, conditioning)
        assert whole.exp().sum(-1) == pytest.approx(torch.ones(3, 9), abs=1e-4)
        torch.testing.assert_close(model.predict(state, conditioning), whole.topk(5, -1).values)
        assert torch.equal(model.complete(state, conditioning)["support"], state["support"])

    def test_greedy_responses_are_those_of_generate(self, model: CausalLMBackbone) -> None:
        """The library's own loop, for prompts of different lengths at once."""
        conditioning = model.encode(PROMPTS)
        ours = model.respond(conditioning, [0] * 4, 12, temperature=0)
        theirs = model.lm.generate(
            conditioning["prefix"],
            attention_mask=conditioning["prefix_mask"].long(),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=1,
        )[:, conditioning["prefix"].shape[1] :]
        for k in range(4):
            said = ours["tokens"][k][ours["mask"][k]]
            assert torch.equal(theirs[k, : len(said)], said)
            assert len(said) == 12 or said[-1] == 1

    def test_a_sampled_response_depends_on_its_seed_alone(self, model: CausalLMBackbone) -> None:
        conditioning = model.encode(PROMPTS)
        together = model.respond(conditioning, [1, 2, 3, 4], 8)
        for k in range(4):
            alone = model.respond(row(conditioning, k), [k + 1], 8)
            assert torch.equal(alone["tokens"][alone["mask"]], together["tokens"][k][together["mask"][k]])
        same_prompt = repeat(row(conditioning, 0), 12)
        assert len({tuple(r) for r in model.respond(same_prompt, range(12), 6)["tokens"].tolist()}) > 3

    def test_sampling_follows_the_probabilities(self, model: CausalLMBackbone) -> None:
        conditioning = model.encode(["a person"])
        first = {"tokens": torch.zeros(1, 1, dtype=torch.long), "mask": torch.ones(1, 1, dtype=torch.bool)}
        share = model.log_probabilities(first, conditioning)[0, 0].exp()
        drawn = model.respond(repeat(conditioning, 800), range(800), 1)["tokens"][:, 0]
        found = torch.bincount(drawn, minlength=len(share)) / 800
        assert (found - share).abs().max() < 5 * (share.max() * (1 - share.max()) / 800) ** 0.5 + 0.01

    def test_layer_range_limits_the_groups(self, folder: Path) -> None:
        model = CausalLMBackbone(str(folder), slider_layers=(1, 1))
        model.load()
        for group in model.target_groups():
            found = model.select_targets([group])
            assert found
            assert all(".1." in name for name in found), group


class TestLlama(LanguageContract):
    kind, chat = "llama", tiny_lm.CHAT


class TestMistral(LanguageContract):
    kind = "mistral"


class TestQwen(LanguageContract):
    kind, chat = "qwen2", tiny_lm.CHAT


class TestGemma(LanguageContract):
    """Its template has no system role."""

    kind, chat = "gemma", tiny_lm.NO_SYSTEM


class TestGPT2(LanguageContract):
    """Its layers keep their weights transposed."""

    kind = "gpt2"


class TestNeoX(LanguageContract):
    kind = "neox"


class TestPhi(LanguageContract):
    kind = "phi"


class TestHiddenStates(LanguageContract):
    """Predictions in representation space."""

    kind = "llama"
    moving = ("tokens", "mask")

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return CausalLMBackbone(str(folder), hidden_layers=[1, 2], prompt_tokens=48)

    def test_they_are_those_after_the_blocks(self, model: CausalLMBackbone) -> None:
        conditioning, state = model.encode(["a person"]), model.responses(["happy"], 6)
        seen: list[torch.Tensor] = []
        block = model.lm.model.layers[1].register_forward_hook(
            lambda _, __, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
        )
        predicted = model.predict(state, conditioning)
        block.remove()
        assert predicted.shape == (1, 2, 6, 16)
        torch.testing.assert_close(predicted[:, 1], seen[0][:, -6:])

    def test_the_support_is_what_the_base_finds_likeliest(self, model: CausalLMBackbone) -> None:
        """There is none."""
        state = model.responses(SAID, 9)
        assert model.complete(state, model.encode(PROMPTS[:3])) is state


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("lm") / "model")


def made(folder: Path, **options: Any) -> CausalLMBackbone:
    model = CausalLMBackbone(str(folder), **options)
    model.load()
    return model


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("day", "<user>day</s><assistant>"),
        ("be sad\n\nday", "<system>be sad</s><user>day</s><assistant>"),
        ("\n\nday\n\nnight", "<user>day\n\nnight</s><assistant>"),
    ],
)
def test_a_prompt_is_an_instruction_a_blank_line_and_a_message(llama: Path, prompt: str, text: str) -> None:
    assert made(llama).render(prompt) == text


def test_without_a_system_role_the_instruction_begins_the_message(tmp_path: Path) -> None:
    model = made(tiny.save(tiny_lm.language_model("gemma", tiny_lm.NO_SYSTEM), tmp_path / "m"))
    assert model.render("be sad\n\nday") == "[user] be sad\n\nday</s>[model] "


def test_without_a_template_the_text_is_taken_as_it_is(llama: Path) -> None:
    plain = made(llama, chat=False)
    assert plain.render("be sad\n\nday") == "be sad\n\nday"
    assert plain.render("\n\nday") == "day"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_layers": [0]}, ["hidden_layers", "1 to 3"]),
        ({"hidden_layers": [4]}, ["hidden_layers", "1 to 3"]),
        ({"slider_layers": (0, 3)}, ["slider_layers", "0 to 2"]),
        ({"support": 1}, ["support"]),
    ],
)
def test_wrong_options_are_errors(llama: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SliderError) as caught:
        made(llama, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_template_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="chat template"):
        made(tiny.save(tiny_lm.language_model("llama"), tmp_path / "m"), chat=True)


def test_a_prompt_that_is_too_long_is_an_error(llama: Path) -> None:
    with pytest.raises(SliderError, match="prompt_tokens is 8"):
        made(llama, prompt_tokens=8).encode(["how was your day and how was the night after the day"])


def test_likelihood_sees_the_prompt(llama: Path) -> None:
    """The negative control of everything above: another prompt, other numbers."""
    model = made(llama)
    state = model.responses(["happy"], 6)
    one, two = (model.likelihood(state, model.encode([p])) for p in ("a dog", "you are sad\n\na dog"))
    assert (one - two).abs().max() > 1e-3
    assert take(state, torch.tensor([0]))["tokens"].shape == (1, 6)


@pytest.mark.slow
def test_compiled_it_is_the_same_model(tmp_path: Path) -> None:
    """With a slider attached, with one in training, and when they are gone, with the same weights bit by bit."""
    folder = str(tiny.save(tiny_lm.language_model("llama"), tmp_path / "lm"))
    said: list[dict[str, torch.Tensor]] = []
    for compiled in (False, True):
        model = CausalLMBackbone(folder, prompt_tokens=48, compile=compiled)
        model.load()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        names = model.select_targets(["attention"])[:1]  # each one breaks the graph
        state, prompt = model.responses(SAID[:2], 6), model.encode(PROMPTS[:2])
        answers: dict[str, torch.Tensor] = {}
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            answers["base"] = model.predict(state, prompt)
            assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
            with attach(model, [slider(model, dict.fromkeys(names, 2))], {"s": 1.0}):
                answers["attached"] = model.predict(state, prompt)
        with Adapter(model, names, 2, 2.0) as adapter:
            randomize(adapter)
            with adapter.dial(torch.tensor([1.0, -2.0])):
                model.predict(state, prompt).square().mean().backward()
            answers |= {f"gradient {k}": p.grad for k, p in enumerate(adapter.parameters()) if p.grad is not None}
        with torch.no_grad():
            answers["base again"] = model.predict(state, prompt)  # a graph made anew may round otherwise
        assert equal(before, model.state_dict())
        said.append(answers)
    for name, wanted in said[0].items():
        torch.testing.assert_close(said[1][name], wanted, rtol=1e-3, atol=1e-3, msg=name)
    assert float((said[0]["attached"] - said[0]["base"]).abs().max()) > 1e-2


def test_hidden_states_are_not_compiled() -> None:
    with pytest.raises(SliderError, match="compile"):
        CausalLMBackbone("smollm2", hidden_layers=[1], compile=True)
