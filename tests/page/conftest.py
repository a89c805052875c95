"""A session on tiny models, with sliders of both."""

from pathlib import Path

import pytest
from torch import Tensor

from sliders.algebra.closed_forms import steer_output
from sliders.algebra.edit import Affine
from sliders.algebra.slider import Interpolated, Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Concept
from sliders.editors.uce import UCE
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from sliders.formats.metadata import describe
from sliders.page.library import Library
from sliders.page.requests import Canvas, Speech
from sliders.page.safety import OutputFolder
from sliders.page.session import Session
from sliders.runtime.layers import weight_shape
from tests import tiny, tiny_lm
from tests.evaluation.conftest import random_slider
from tests.factory import normal

HAPPY = Concept("happy", "a person", ["a happy person"], ["a sad person", "a dog"])
MOOD = Concept("mood", "you are a person", ["you are a happy person"], ["you are a sad person"], modality="text")
UNHAPPY = UCE({"happy": "sad"}, ["a {} person", "a dog with a {} hat"], ["a person with a hat"])
UNHAT = UCE({"hat": "dog"}, ["a {}", "a person with a {}"])

CANVAS = Canvas("a person", 3, 4, 2.0)
SEEN = 1e-3
"""A change of a picture that no rounding makes."""


def plain(painter: UNetBackbone, canvas: Canvas = CANVAS) -> Tensor:
    """The base's picture, made without the demo."""
    return sample(painter, [Scene(canvas.prompt, canvas.seed)], Sampling(canvas.steps, canvas.guidance))[0]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def answers(session: Session, user: str, positions: dict[str, float], tokens: int = 12) -> tuple[str, str]:
    """The finished texts."""
    *_, last = session.write(user, Speech("how was your day", tokens=tokens, temperature=0.0), positions)
    return last


def described(concept: Concept, model: AbstractBackbone, target: str, name: str = "") -> Slider:
    """A random slider that says what it is, as one that was trained does."""
    update = random_slider(model, target).update
    said = describe(concept, model.base_model, model.class_path, model.fingerprint(), 2, 2.0, [target], 1.5, {})
    return Slider(name or concept.name, update, {**said, "sliders.name": name or concept.name})


def edited(editor: UCE, model: UNetBackbone, name: str) -> Interpolated:
    """A fitted edit that says what it is, as its file does."""
    edit = editor.fit(model)
    return Interpolated(name, edit, {**editor.metadata(model, 0, edit.modules), "sliders.name": name})


def steered(model: CausalLMBackbone, name: str = "steer") -> Interpolated:
    """A steering vector: a bias where there was none."""
    layer = "lm.model.layers.1.mlp.down_proj"
    shape = weight_shape(model, layer)
    said = {"sliders.base_fingerprint": model.fingerprint(), "sliders.modality": "text", "sliders.name": name}
    return Interpolated(name, Affine({layer: steer_output(normal(shape[0], seed=3).float() * 4, shape)}), said)


@pytest.fixture
def few_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a model is asked with when an update is explained: two prompts in place of all that are shipped."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "some.txt").write_text("a person\na happy dog with a hat\n")
    monkeypatch.setattr("sliders.studies.explain.reads.PROMPTS", dict.fromkeys(("image", "text"), folder))
    return folder


@pytest.fixture(scope="package")
def painter(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    """A tiny model of pictures."""
    model = UNetBackbone(str(tiny.save(tiny.stable_diffusion(), tmp_path_factory.mktemp("base") / "sd")))
    model.load()
    return model


@pytest.fixture(scope="package")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> CausalLMBackbone:
    """A tiny language model."""
    folder = tiny.save(tiny_lm.language_model("llama", tiny_lm.CHAT), tmp_path_factory.mktemp("base") / "lm")
    model = CausalLMBackbone(str(folder), prompt_tokens=64)
    model.load()
    return model


@pytest.fixture
def session(painter: UNetBackbone, speaker: CausalLMBackbone, tmp_path: Path) -> Session:
    """With three sliders of pictures, one of them on the text encoder, and one of language."""
    images = [
        described(HAPPY, painter, "xattn"),
        described(HAPPY, painter, "selfattn", "other"),
        described(HAPPY, painter, "text-encoder", "words"),
    ]
    texts = [described(MOOD, speaker, "attention")]
    return Session(
        painter, speaker, Library(images), Library(texts, "text"), OutputFolder(tmp_path / "outputs"), None, 2**20
    )
