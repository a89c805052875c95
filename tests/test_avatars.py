"""The main job on the embedded model: a slider that works, measured, and used in plain diffusers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sliders.algebra.slider import Slider
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Concept, read_prompts
from sliders.evaluation.pictures.dose import DoseResponse, dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample, sample_dial, scenes
from sliders.formats import diffusers as slider_file
from sliders.runtime.attach import attach
from tests import clients
from tests.factory import random_like

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODEL, JUDGE = ROOT / "data/avatars/model", ROOT / "data/avatars/judge.safetensors"
CONCEPT = ROOT / "data/avatars/concepts/smile.yaml"
REPORT = (
    "[{class_path: sliders.training.callbacks.FinalReport, "
    "init_args: {judge: avatars, scenes: 64, dials: [-2, -1, 0, 1, 2]}}]"
)
SPARE = (
    "[{class_path: sliders.training.callbacks.FinalReport, init_args: {judge: avatars, scenes: 2, dials: [0, 1]}}, "
    "{class_path: sliders.training.callbacks.BakeModel}]"
)


@pytest.fixture(scope="module")
def backbone() -> UNetBackbone:
    """The embedded model."""
    made = UNetBackbone(str(MODEL))
    made.load()
    return made


@pytest.fixture(scope="module")
def judge() -> AttributeJudge:
    """The embedded judge."""
    return AttributeJudge.load(JUDGE)


def train(config: str, runs: Path, callbacks: str) -> Path:
    """Run `train.py` as a user does; gives the run folder."""
    command = [sys.executable, "train.py", "--config", f"configs/avatars/{config}.yaml", "--runs", str(runs)]
    command += ["--trainer.callbacks", callbacks]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = runs / config
    assert str(folder / f"{config}.safetensors") in done.stdout
    assert str(folder / "strip.png") in done.stdout
    return folder


@pytest.fixture(scope="module")
def smile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the default config, with a report on 64 held-out scenes."""
    return train("smile", tmp_path_factory.mktemp("runs"), REPORT)


def test_the_model_follows_its_captions(backbone: UNetBackbone, judge: AttributeJudge) -> None:
    """The control for everything below: a named expression is in the picture, an unnamed one need not be."""
    expressions = judge.values["expression"]
    wanted = [Scene(f"a {e} person".replace("a angry", "an angry"), s) for e in expressions for s in range(8)]
    read = judge.probabilities(sample(backbone, wanted))["expression"].argmax(-1)
    asked = torch.arange(len(expressions)).repeat_interleave(8)
    assert (read == asked).float().mean() >= 0.8


def test_a_run_leaves_what_it_says(smile: Path) -> None:
    """Everything of the run folder is there and readable."""
    for name in ("smile.safetensors", "strip.png", "dose_response.png", "metrics.json", "config.yaml"):
        assert (smile / name).stat().st_size > 0, name
    assert list((smile / "checkpoints").glob("*.ckpt"))
    assert json.loads((smile / "metrics.json").read_text())["slider"]["attribute"] == "expression"


def measure(backbone: UNetBackbone, judge: AttributeJudge, slider: Slider, dials: list[float]) -> DoseResponse:
    """The slider's dose-response on 24 held-out scenes."""
    concept = Concept.load(CONCEPT)
    assert concept.measure is not None
    wanted = scenes(concept.heldout(), 24)
    with attach(backbone, [slider]) as attached:
        pictures = sample_dial(backbone, lambda v: attached.turned({slider.name: v}), wanted, dials)
    return dose_response(judge, concept.measure, pictures, dials)


def test_the_smile_dial(smile: Path) -> None:
    """P(happy) rises with the dial and little else moves."""
    dose = json.loads((smile / "metrics.json").read_text())["slider"]
    assert dose["pictures"] == 64
    response = dict(zip(dose["dials"], dose["response"], strict=True))
    drift = {dial: one["change"] for dial, one in zip(dose["dials"], dose["drift"], strict=True)}
    assert dose["spearman"] >= 0.9
    assert response[-2.0] <= 0.05
    assert response[1.0] >= 0.6
    assert response[2.0] >= 0.9
    assert max(drift[1.0], drift[-1.0]) <= 0.08, drift
    assert max(drift[2.0], drift[-2.0]) <= 0.12, drift


def test_a_random_slider_of_the_same_norm_does_nothing(
    smile: Path, backbone: UNetBackbone, judge: AttributeJudge
) -> None:
    """The control: it is the direction that matters, not the size."""
    trained = slider_file.load(smile / "smile.safetensors")
    control = random_like(trained)
    assert control.update.norm() == pytest.approx(trained.update.norm(), rel=1e-3)
    dose = measure(backbone, judge, control, [-1.0, 0.0, 1.0])
    assert max(abs(r - dose.response[1]) for r in dose.response) < 0.1


def test_plain_diffusers_shows_the_same_pictures(smile: Path, backbone: UNetBackbone, tmp_path: Path) -> None:
    """A process that never imports this package loads the file and turns the dial."""
    file = smile / "smile.safetensors"
    theirs = clients.pictures(MODEL, file, [-1.0, 1.5], tmp_path)
    wanted = [Scene(prompt, seed) for prompt, seed in zip(clients.PROMPTS, clients.SEEDS, strict=True)]
    how = Sampling(steps=clients.STEPS, guidance=clients.GUIDANCE)
    base = sample(backbone, wanted, how)
    assert ((base + 1) / 2 - theirs["base"]).abs().max() <= 1e-4
    with attach(backbone, [slider_file.load(file)]) as dials:
        assert torch.equal(sample(backbone, wanted, how), base)
        for dial in (-1.0, 1.5):
            dials.set({"smile": dial})
            ours = sample(backbone, wanted, how)
            assert ((ours + 1) / 2 - theirs[str(dial)]).abs().max() <= 1e-4
            assert (ours - base).abs().max() > 0.1
    assert torch.equal(sample(backbone, wanted, how), base)


def test_erasing(tmp_path: Path, backbone: UNetBackbone, judge: AttributeJudge) -> None:
    """Sunglasses do not come any more when they are asked for; what else is asked for still does."""
    model = train("erase_sunglasses", tmp_path, SPARE) / "model"
    erased = UNetBackbone(str(model))
    erased.load()
    assert erased.fingerprint() != backbone.fingerprint()
    asking = read_prompts(ROOT / "data/avatars/prompts/sunglasses.txt")
    column = judge.column("glasses", "sunglasses")

    def rate(which: UNetBackbone) -> float:
        read = judge.probabilities(sample(which, scenes(asking, 40)))["glasses"].argmax(-1)
        return (read == column).float().mean().item()

    assert rate(backbone) >= 0.9
    assert rate(erased) <= 0.15
    others = {"glasses": "wearing glasses", "beard": "with a beard"}
    for attribute, words in others.items():
        value = judge.column(attribute, attribute)
        wanted = [Scene(f"a person, {words}", 100 + s) for s in range(24)]
        rates = [
            (judge.probabilities(sample(which, wanted))[attribute].argmax(-1) == value).float().mean().item()
            for which in (backbone, erased)
        ]
        assert abs(rates[0] - rates[1]) <= 0.1, (attribute, rates)
