"""The main job on the embedded flow model: sliders of one concept act on a transformer as they do on a UNet."""

import json
from pathlib import Path

import pytest
import torch

from sliders.algebra.slider import Slider
from sliders.backbones.rehearsed.backbone import PipelineBackbone
from sliders.cli import main as cli
from sliders.concept import Concept
from sliders.evaluation.pictures.dose import DoseResponse, dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, sample_dial, scenes
from sliders.formats import diffusers as slider_file
from sliders.resources.shipped import CALLS
from sliders.runtime.attach import attach
from tests import clients
from tests.commands import ROOT, run
from tests.factory import random_like

pytestmark = pytest.mark.slow

MODEL, SHIPPED = ROOT / "data/avatars/flow", ROOT / "data/avatars/flow_sliders"
CONCEPTS = ("smile", "surprise", "glasses", "beard", "hair_length", "hair_darkness")


@pytest.fixture(scope="module")
def backbone() -> PipelineBackbone:
    made = PipelineBackbone("avatars-flow")
    made.load()
    return made


@pytest.fixture(scope="module")
def judge() -> AttributeJudge:
    return AttributeJudge.load(ROOT / "data/avatars/judge.safetensors")


def test_the_model_follows_its_captions(backbone: PipelineBackbone, judge: AttributeJudge) -> None:
    """The control for everything below."""
    expressions = judge.values["expression"]
    wanted = [Scene(f"a {e} person".replace("a angry", "an angry"), s) for e in expressions for s in range(6)]
    read = judge.probabilities(sample(backbone, wanted))["expression"].argmax(-1)
    asked = torch.arange(len(expressions)).repeat_interleave(6)
    assert (read == asked).float().mean() >= 0.8


def measured(backbone: PipelineBackbone, judge: AttributeJudge, slider: Slider, name: str) -> DoseResponse:
    """The dose response at -1, 0 and 1 on 16 held-out scenes."""
    concept, dials = Concept.load(ROOT / f"data/avatars/concepts/{name}.yaml"), [-1.0, 0.0, 1.0]
    assert concept.measure is not None
    with attach(backbone, [slider]) as attached:
        turn = lambda v: attached.turned({slider.name: v})  # noqa: E731
        pictures = sample_dial(backbone, turn, scenes(concept.heldout(), 16), dials, Sampling(steps=12))
    return dose_response(judge, concept.measure, pictures, dials)


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_shipped_slider_moves_its_concept(name: str, backbone: PipelineBackbone, judge: AttributeJudge) -> None:
    """Each was trained with its config in `configs/flow/`; docs/two_architectures.md has all dials."""
    low, base, high = measured(backbone, judge, slider_file.load(SHIPPED / f"{name}.safetensors"), name).response
    assert low < base < high
    assert high - low >= 0.4


def test_a_random_slider_of_the_same_norm_does_nothing(backbone: PipelineBackbone, judge: AttributeJudge) -> None:
    """The control: it is the direction that matters, not the size."""
    trained = slider_file.load(SHIPPED / "smile.safetensors")
    dose = measured(backbone, judge, random_like(trained), "smile")
    assert max(abs(r - dose.response[1]) for r in dose.response) < 0.15


def test_plain_diffusers_shows_the_same_pictures(backbone: PipelineBackbone, tmp_path: Path) -> None:
    """A process that never imports this package loads the file and turns the dial."""
    file, call, without = SHIPPED / "smile.safetensors", CALLS["avatars-flow"], ("text_encoder_3", "tokenizer_3")
    theirs = clients.pictures(MODEL, file, [-1.0, 1.5], tmp_path, call, without)
    wanted = [Scene(prompt, seed) for prompt, seed in zip(clients.PROMPTS, clients.SEEDS, strict=True)]
    how = Sampling(steps=clients.STEPS, guidance=clients.GUIDANCE)
    base = sample(backbone, wanted, how)
    assert ((base + 1) / 2 - theirs["base"]).abs().max() <= 1e-4
    with attach(backbone, [slider_file.load(file)]) as dials:
        for dial in (-1.0, 1.5):
            dials.set({"smile": dial})
            ours = sample(backbone, wanted, how)
            assert ((ours + 1) / 2 - theirs[str(dial)]).abs().max() <= 1e-4
            assert (ours - base).abs().max() > 0.1
    assert torch.equal(sample(backbone, wanted, how), base)


def test_explain_names_the_word_that_does_what_it_does(tmp_path: Path) -> None:
    """Asked of the predictions, as of any model of pictures; the layers that read a prompt are a UNet's alone."""
    ended = run(cli.main, "explain", SHIPPED / "smile.safetensors", "--words", 40, "--out", tmp_path)
    assert ended.code == 0, ended.err
    found = {one["title"]: one["entries"] for one in json.loads((tmp_path / "explain.json").read_text())["reads"]}
    assert set(found) == {"Prompts whose predictions change most", "Words that do what it does"}
    assert found["Words that do what it does"][0][0] == "happy"
