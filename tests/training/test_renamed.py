"""Configs of earlier versions, as their runs wrote them, are read as those of today."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from sliders.errors import SliderError, SliderWarning
from sliders.training import cli
from sliders.training.cli import SliderCLI
from sliders.training.many import plan
from sliders.training.renamed import RENAMED, renamed
from sliders.training.settings import check_same, resolved
from tests import tiny, tiny_lm
from tests.commands import run
from tests.training import runs

OF_PICTURES = """
seed_everything: 0
trainer:
  accelerator: cpu
  logger: false
  max_steps: 2
  enable_progress_bar: false
  callbacks:
  - class_path: sliders.training.callbacks.Probe
    init_args:
      judge: null
      every: 1
      pictures: 2
      sampling:
        steps: 2
        guidance: 4.0
        batch: 48
        height: null
        width: null
  - class_path: sliders.training.callbacks.FinalReport
    init_args:
      judge: null
      dials: [-1.0, 0.0, 1.0]
      pictures: 2
      sampling: {steps: 2, guidance: 4.0, batch: 48, height: null, width: null}
      oracle: false
model:
  backbone:
    class_path: sliders.backbones.unet.UNetBackbone
    init_args: {model: MODEL}
  states:
    class_path: sliders.training.states.Pool
    init_args: {trajectories: 2, steps: 2, refresh: 3}
  targets: [xattn]
data:
  concept: {name: happy, target: a person, positives: [a happy person], negatives: [a sad person]}
  batch_size: 2
"""
OF_TEXT = """
seed_everything: 0
trainer:
  accelerator: cpu
  logger: false
  max_steps: 2
  enable_progress_bar: false
  callbacks:
  - class_path: sliders.training.text_callbacks.TextProbe
    init_args:
      every: 1
      prompts: 2
      speaking: {tokens: 4, temperature: 0.8, batch: 64, first_seed: 1000, neutral: neutral.txt}
  - class_path: sliders.training.text_callbacks.TextReport
    init_args:
      dials: [-1.0, 0.0, 1.0]
      prompts: 2
      speaking: {tokens: 4, neutral: neutral.txt}
      show: 1
  - class_path: sliders.training.text_callbacks.ErasureReport
    init_args:
      bodies: [pets.yaml]
      speaking: {tokens: 4, neutral: neutral.txt}
model:
  backbone:
    class_path: sliders.backbones.causal_lm.CausalLMBackbone
    init_args: {model: MODEL, support: 6, prompt_tokens: 24}
  loss:
    class_path: sliders.losses.erasure.LogProbabilityLoss
    init_args: {eta: 3.0}
  states:
    class_path: sliders.training.responses.Responses
    init_args: {sampled: 4, tokens: 4}
  targets: [full]
data:
  concept:
    name: happy
    modality: text
    target: be
    positives: [be happy]
    negatives: [be sad]
    contexts: [day]
    measure: {attribute: length, prompts: [how was your day, the dog]}
  batch_size: 2
"""
OLD = {"pictures": OF_PICTURES, "text": OF_TEXT}
PETS = {"name": "pets", "questions": ["what is a {}?"], "heldout_questions": ["the {}?"], "heldout_stem": "{} is"}


@pytest.fixture(params=OLD)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run's config as an earlier version wrote it, with what it names."""
    kind = request.param
    model = tiny.stable_diffusion() if kind == "pictures" else tiny_lm.language_model("gpt2")
    tiny.save(model, tmp_path / "model")
    (tmp_path / "neutral.txt").write_text("a dog with a hat\n")
    facts = {"dog": "good", "cat": "bad", "hat": "long", "day": "sad"}
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump({**PETS, "facts": facts}))
    (tmp_path / "config.yaml").write_text(OLD[kind].replace("MODEL", str(tmp_path / "model")))
    return tmp_path / "config.yaml"


def today(old: Path) -> Path:
    """The same config in the names of today."""
    file = old.with_name("today.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SliderWarning)
        file.write_text(yaml.safe_dump(renamed(yaml.safe_load(old.read_text()))))
    return file


def train(config: Path, folder: Path, *more: str) -> SliderCLI:
    made = SliderCLI(["--config", str(config), "--runs", str(folder), *more])
    made.fit()
    return made


def test_a_run_of_an_earlier_version_is_replayed(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a warning that says what to write; by today's names without one, and the slider is the same."""
    with pytest.warns(SliderWarning, match="is called") as caught:
        before = train(old, tmp_path / "old")
    text = " ".join(str(one.message) for one in caught)
    for path, now in RENAMED.items():
        if path in old.read_text():
            assert path in text
            assert now.path in text
    with warnings.catch_warnings():
        warnings.simplefilter("error", SliderWarning)
        after = train(today(old), tmp_path / "new")
    assert before.model.adapter is not None
    assert after.model.adapter is not None
    assert runs.equal(before.model.adapter.state(), after.model.adapter.state())
    assert (tmp_path / "old" / "happy" / "metrics.json").is_file()
    written = yaml.safe_load((tmp_path / "old" / "happy" / "config.yaml").read_text())
    assert (
        written["trainer"]["callbacks"]
        == yaml.safe_load((tmp_path / "new" / "happy" / "config.yaml").read_text())["trainer"]["callbacks"]
    )


def test_old_and_new_names_are_one_run(old: Path, tmp_path: Path) -> None:
    """To `train-many`, which trains nothing twice, and to a run that goes on from a checkpoint."""
    with pytest.warns(SliderWarning):
        one = plan(old, tmp_path / "runs")
    other = plan(today(old), tmp_path / "runs")
    assert (one.key, one.base) == (other.key, other.base)
    assert plan(today(old), tmp_path / "runs", ["--model.rank=3"]).key != other.key


def test_what_a_checkpoint_was_set_to_is_compared_in_the_names_of_today(old: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = yaml.safe_load(old.read_text())
    began = {key: plain[key] for key in ("model", "data")}
    made = SliderCLI(["--config", str(today(old)), "--runs", str(tmp_path / "runs")])
    now = resolved(made.parser, made.config)
    now["data"]["concept"] = began["data"]["concept"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SliderWarning)
        check_same(renamed(began), now, old)
    if began["model"]["backbone"]["class_path"] in RENAMED:  # the control
        with pytest.raises(SliderError, match="backbone"):
            check_same(began, now, old)


def test_a_class_that_never_was_is_still_an_error(old: Path, tmp_path: Path) -> None:
    """The control."""
    wrong = yaml.safe_load(old.read_text())
    wrong["model"]["backbone"]["class_path"] = "sliders.backbones.causal_lm.OtherBackbone"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    ended = run(lambda: cli.main(["--config", str(tmp_path / "wrong.yaml")]))
    assert ended.code != 0
    assert "OtherBackbone" in ended.err


def test_only_what_has_changed_is_in_the_table() -> None:
    for old, now in RENAMED.items():
        assert now.path != old or now.arguments
        assert now.path not in RENAMED or now.path == old or RENAMED[now.path].path == now.path
    plain = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0, "prompts": ["a"]}, "pictures": [1]}
    assert renamed(plain) == plain
