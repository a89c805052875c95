"""The main job on a real language model: a slider that moves what it says, used in plain PEFT."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sliders.backbones.language.model import CausalLMBackbone
from sliders.evaluation.texts.knowledge import Facts, ask
from sliders.formats import peft
from sliders.resources.fetch import fetch
from sliders.runtime.attach import attach
from tests import clients

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REPORT = (
    "[{class_path: sliders.training.callbacks.FinalReport, "
    "init_args: {judge: null, dials: [-2, -1, 0, 1, 2], scenes: 20, how: {tokens: 24}}}]"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training of the default config, as a user starts it; gives the run folder."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "train.py", "--config", "configs/smollm2/sentiment.yaml", "--runs", str(runs)]
    command += ["--trainer.max_steps", "12", "--model.optimizer.init_args.lr", "3e-3", "--trainer.callbacks", REPORT]
    command += ["--model.states.init_args.sampled", "24", "--model.states.init_args.tokens", "28"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(runs / "sentiment" / "sentiment") in done.stdout.replace("\n", "")
    return runs / "sentiment"


@pytest.fixture(scope="module")
def backbone() -> CausalLMBackbone:
    """SmolLM2-135M-Instruct."""
    made = CausalLMBackbone()
    made.load()
    return made


def test_what_it_says_follows_the_dial_and_neutral_text_does_not(run: Path) -> None:
    """The whole training and nine dials are in docs/language_table.md; this is a quarter of it."""
    found = json.loads((run / "metrics.json").read_text())
    low, _, base, _, high = found["response"]
    assert high - low >= 0.6
    assert low < base < high + found["error"][4]
    for k in (1, 3):
        assert found["perplexity"][k] == pytest.approx(found["perplexity"][2], rel=0.1)
    assert found["divergence"][2] == 0
    assert found["log_odds"] == sorted(found["log_odds"])
    assert max(found["repetition"]) < 0.1


def test_plain_peft_gives_the_same_logits(run: Path, backbone: CausalLMBackbone, tmp_path: Path) -> None:
    """And dial 0, and the model afterwards, are the base bit for bit."""
    theirs = clients.logits(fetch("smollm2"), run / "sentiment", [-1.0, 1.5], tmp_path)
    tokens = backbone.tokenizer(clients.TEXT, return_tensors="pt")
    with torch.no_grad(), clients.in_float64(backbone.lm):
        base = backbone.lm(**tokens).logits
        torch.testing.assert_close(theirs["base"], base, atol=1e-4, rtol=0)
        with attach(backbone, [peft.load(run / "sentiment")]) as dials:
            assert torch.equal(backbone.lm(**tokens).logits, base)
            for dial in (-1.0, 1.5):
                dials.set({"sentiment": dial})
                ours = backbone.lm(**tokens).logits
                assert (ours - base).abs().max() > 0.1
                torch.testing.assert_close(theirs[str(dial)], ours, atol=1e-4, rtol=0)
        assert torch.equal(backbone.lm(**tokens).logits, base)


def test_the_model_knows_what_is_erased_elsewhere(backbone: CausalLMBackbone) -> None:
    """The control of every erasure: it was there before."""
    body = Facts.load(ROOT / "data/text/facts/capitals.yaml")
    assert ask(backbone, body, subjects=list(body.facts)[:8]).accuracy >= 0.9
