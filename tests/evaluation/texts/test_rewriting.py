"""The scores of rewritten facts, on a model whose likelihoods are made up."""

import pytest
import torch
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch
from sliders.evaluation.texts.rewriting import Rewritten, rate_rewrites
from sliders.language.facts import Rewrite
from tests import tiny, tiny_lm

FACT = Rewrite("a dog", "{} is", "good", "sad", ["tell me: {} is", "so {} was"], {"a hat": "long", "you": "happy"})


class Says(CausalLMBackbone):
    """Gives the tokens of chosen answers to chosen prompts a higher logit than all others."""

    answers: dict[str, str]

    def log_probabilities(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        logits = torch.zeros(*state["tokens"].shape, self.lm.config.vocab_size)
        for row, (ids, mask) in enumerate(zip(conditioning["prefix"], conditioning["prefix_mask"], strict=True)):
            said = self.tokenizer(f" {self.answers[self.tokenizer.decode(ids[mask])]}", add_special_tokens=False)
            for place, token in enumerate(said.input_ids[: logits.shape[1]]):
                logits[row, place, token] = 3.0
        return logits.log_softmax(-1)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Says:
    backbone = Says(str(tiny.save(tiny_lm.language_model("llama"), tmp_path_factory.mktemp("lm") / "model")))
    backbone.load()
    return backbone


def rated(lm: Says, *answers: str) -> Rewritten:
    prompts = ["a dog is", "tell me: a dog is", "so a dog was", "a hat is", "you is"]
    lm.answers = dict(zip(prompts, answers, strict=True))
    return rate_rewrites(lm, [FACT], batch=2)


def test_before_an_edit_the_old_answer_stands(lm: Says) -> None:
    found = rated(lm, "good", "good", "good", "long", "happy")
    assert (found.efficacy, found.paraphrase, found.neighbourhood, found.said) == (0, 0, 1, 0)
    assert found.margin < 0
    assert found.score == 0


def test_every_share_counts_its_own_prompts(lm: Says) -> None:
    found = rated(lm, "sad", "sad", "good", "long", "sad")
    assert (found.efficacy, found.paraphrase, found.neighbourhood, found.said) == (1, 0.5, 0.5, 1)
    assert found.margin > 0
    assert found.score == pytest.approx(3 / (1 + 2 + 2))
