"""Tiny language models of several architectures, and a concept for them."""

import pytest

from sliders.backbones.causal_lm import CausalLMBackbone
from sliders.concept import Concept
from tests import tiny, tiny_lm

MESSAGES = ["how was your day", "a dog", "the day was good", "tell me about the hat", "a sad person", "it was long"]


@pytest.fixture(scope="package")
def mood() -> Concept:
    return Concept(
        "mood", "you are a person", ["you are a happy person"], ["you are a sad person"], MESSAGES, modality="text"
    )


@pytest.fixture(scope="package", params=["llama", "gpt2", "neox"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    folder = tiny.save(tiny_lm.language_model(request.param), tmp_path_factory.mktemp(request.param) / "model")
    backbone = CausalLMBackbone(str(folder), support=5, prompt_tokens=48)
    backbone.load()
    return backbone
