"""Tiny language models of several architectures, and a concept for them."""

from pathlib import Path

import pytest

from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from tests import tiny, tiny_lm
from tests.editors import facts

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


@pytest.fixture(scope="package", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    """A gated feed-forward part without a bias, and one of GPT-2's kind with one; in float64."""
    return facts.load(request.param, tmp_path_factory.mktemp("lm"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the user's cache as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path
