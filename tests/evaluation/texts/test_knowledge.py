"""What a language model knows, and what it knows after an edit."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from sliders.backbones.language.model import CausalLMBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.evaluation.texts.knowledge import Facts, ask, evaluate_erasure, write_erasure_report
from sliders.evaluation.texts.sampling import TextSampling
from tests import tiny, tiny_lm

BODY = Facts(
    "pets",
    ["what is a {}?"],
    ["tell me about the {}", "how is a {}?"],
    "the {} is",
    {"dog": "good", "cat": "bad", "hat": "long", "day": "sad", "person": "happy"},
)


class Knows(CausalLMBackbone):
    """A model whose likelihoods are made up: it knows some answers, and forgets them when ``dial`` is 1."""

    def __init__(self, folder: Path, knows: set[str]) -> None:
        super().__init__(str(folder), prompt_tokens=64)
        self.knows, self.dial = knows, 0.0

    def likelihood(self, state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        prompts = [self.tokenizer.decode(i[m]) for i, m in zip(*conditioning.values(), strict=True)]
        right = [
            any(
                s in self.knows and p.endswith(BODY.heldout_stem.format(s)) and BODY.facts[s] == said.strip()
                for s in BODY.facts
            )
            for p, said in zip(prompts, self.text(state), strict=True)
        ]
        likes = torch.tensor([1.0 if r and not self.dial else 0.0 for r in right])
        noise = torch.tensor([(hash_of(p + t) % 97) / 1000 for p, t in zip(prompts, self.text(state), strict=True)])
        return (-3 + likes + noise)[:, None] * state["mask"] / state["mask"].sum(1, keepdim=True)

    def turn(self, dials: Tensor) -> AbstractContextManager[None]:
        self.dial = float(dials[0])
        return nullcontext()


def hash_of(text: str) -> int:
    """The same number in every process."""
    return sum((k + 1) * ord(c) for k, c in enumerate(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("lm") / "model")


def made(folder: Path, knows: set[str]) -> Knows:
    model = Knows(folder, knows)
    model.load()
    return model


def test_accuracy_counts_what_is_known(folder: Path) -> None:
    known = ask(made(folder, set(BODY.facts)), BODY)
    assert (known.accuracy, known.chance, known.questions) == (1.0, 0.25, 10)
    assert ask(made(folder, {"dog"}), BODY, subjects=["dog"]).accuracy == 1
    assert ask(made(folder, set()), BODY).accuracy < 0.8


def test_wrong_answers_are_right_elsewhere_and_the_same_every_time() -> None:
    for subject, right in BODY.facts.items():
        others = BODY.others(subject, 3)
        assert others == BODY.others(subject, 3)
        assert right not in others
        assert set(others) < set(BODY.facts.values())


def test_an_erasure_is_seen(folder: Path, tmp_path: Path) -> None:
    model = made(folder, set(BODY.facts))
    neutral = tmp_path / "neutral.txt"
    neutral.write_text("the dog is happy\na long day\n")
    erased = evaluate_erasure(model, model.turn, [BODY], TextSampling(tokens=6, neutral=neutral), answers=3)
    before, after = erased.known[0]
    assert before.accuracy == 1
    assert after.accuracy < 0.8
    assert len(erased.answers) == 3
    assert erased.perplexity[0] == pytest.approx(erased.perplexity[1])
    write_erasure_report(erased, tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"erasure.json", "answers.md"}
    assert "pets" in str(next(iter(erased.table().columns[0].cells)))


def test_facts_are_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(yaml.safe_dump(BODY.__dict__))
    assert Facts.load(file) == BODY


@pytest.mark.parametrize("text", ["", "name: x", "name: [", "unknown: 1"])
def test_what_is_no_body_of_facts_is_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "facts.yaml"
    file.write_text(text)
    with pytest.raises(SliderError, match=r"facts\.yaml"):
        Facts.load(file)
    with pytest.raises(SliderError, match="nowhere"):
        Facts.load(tmp_path / "nowhere.yaml")


def test_few_facts_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump({**BODY.__dict__, "facts": {"dog": "good", "cat": "bad"}}))
    with pytest.raises(SliderError, match="at least four"):
        Facts.load(file)
