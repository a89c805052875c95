"""What a run on a language model shows while it goes and leaves when it ends."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept, Measure
from sliders.errors import SliderError
from sliders.evaluation.settings import Settings
from sliders.evaluation.texts.knowledge import evaluate_erasure
from sliders.evaluation.texts.sampling import TextSampling
from sliders.formats import peft
from sliders.losses.erasure import LogProbabilityLoss
from sliders.resources.paths import Source
from sliders.training.callbacks import FinalReport, Probe
from sliders.training.erasure import ErasureReport
from sliders.training.states import Responses
from tests import tiny, tiny_lm
from tests.training import runs


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    """One that can be measured."""
    (tmp_path / "heldout.txt").write_text("how was your day\nthe dog\n")
    (tmp_path / "neutral.txt").write_text("a dog with a hat\n")
    measure = Measure("length", tmp_path / "heldout.txt")
    return Concept("mood", "be", ["be happy"], ["be sad"], ["day"], measure=measure, modality="text")


@pytest.fixture
def how(tmp_path: Path) -> Settings:
    """A few words."""
    return {"tokens": 6, "neutral": Source(tmp_path / "neutral.txt")}


def module(folder: Path) -> Any:
    """A short training of a tiny language model, whose slider soon does something."""
    tiny.save(tiny_lm.language_model("gpt2"), folder / "lm")
    backbone = CausalLMBackbone(str(folder / "lm"), support=6, prompt_tokens=24)
    loss, states = LogProbabilityLoss(3.0), Responses(sampled=4, tokens=4)
    return runs.module(folder, states, backbone=backbone, loss=loss, targets=["full"], lr=0.3)


def test_a_run_shows_and_leaves_what_it_has_learnt(
    concept: Concept, how: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, curve = module(tmp_path), runs.Curve()
    callbacks = [Probe(every=2, scenes=2, how=how), curve, FinalReport(dials=[-1, 0, 1], scenes=2, how=how)]
    runs.fit(model, tmp_path, 5, concept=concept, callbacks=callbacks)
    assert len(curve.values["probe_effect"]) == 4, "first known at the second step"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dials"] == [-1, 0, 1]
    assert metrics["divergence"][1] == 0
    assert min(metrics["divergence"][0], metrics["divergence"][2]) > 1e-3
    assert (tmp_path / "samples.md").exists()
    assert (tmp_path / "dose_response.png").exists()
    written = peft.load(tmp_path / "mood")
    assert json.loads(written.metadata["sliders.effect"])["mean"].keys() == {"-1", "0", "+1"}
    shown = capsys.readouterr().out
    for words in (str(tmp_path / "mood"), "sliders generate", "PeftModel.from_pretrained", "how was your day"):
        assert words in shown


def test_a_concept_without_a_score_has_a_probe_all_the_same(concept: Concept, how: Settings, tmp_path: Path) -> None:
    assert concept.measure is not None
    curve, plain = runs.Curve(), replace(concept, measure=replace(concept.measure, attribute=""))
    runs.fit(module(tmp_path), tmp_path, 2, concept=plain, callbacks=[Probe(every=1, scenes=2, how=how), curve])
    assert "loss" in curve.values
    assert "probe_effect" not in curve.values


@pytest.mark.parametrize("heat", [0.0, 1.5])
def test_an_erasure_is_reported_as_it_is_asked_for(
    heat: float, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the temperature and length that are given, with one held-out wording."""
    facts = {"dog": "good", "cat": "bad", "hat": "long", "day": "sad"}
    body = {"name": "pets", "questions": ["what is a {}?"], "heldout_questions": ["the {}?"], "heldout_stem": "{} is"}
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump({**body, "facts": facts}))
    asked: list[tuple[int, float]] = []
    respond = CausalLMBackbone.respond

    def watch(model: CausalLMBackbone, conditioning: Any, seeds: Any, tokens: int, temperature: float = 1.0) -> Any:
        asked.append((tokens, temperature))
        return respond(model, conditioning, seeds, tokens, temperature)

    model, report = module(tmp_path), ErasureReport([tmp_path / "pets.yaml"], TextSampling(6, heat))
    runs.fit(model, tmp_path, 1, concept=concept)
    monkeypatch.setattr(CausalLMBackbone, "respond", watch)
    evaluate_erasure(model.backbone, model.adapter.dial, report.bodies, report.speaking)
    assert asked == [(24, 0), (24, 0), (6, heat), (6, heat)], "what is known takes the likeliest tokens"


@pytest.mark.parametrize("kind", ["probe", "report"])
@pytest.mark.parametrize("wrong", ["score", "prompts", "measure"])
def test_what_cannot_be_measured_is_known_before_the_training(
    kind: str, wrong: str, concept: Concept, how: Settings, tmp_path: Path
) -> None:
    """Before the weights are read."""
    assert concept.measure is not None
    count = 3 if wrong == "prompts" else 2
    measure = {"score": replace(concept.measure, attribute="joy"), "prompts": concept.measure, "measure": None}[wrong]
    callback = (
        Probe(every=1, scenes=count, how=how) if kind == "probe" else FinalReport(dials=[0], scenes=count, how=how)
    )
    model = module(tmp_path)
    with pytest.raises(
        SliderError, match={"score": "joy", "prompts": "measured on 2 prompts", "measure": "'measure'"}[wrong]
    ):
        runs.fit(model, tmp_path, 1, concept=replace(concept, measure=measure), callbacks=[callback])
    assert model.backbone.lm is None


def test_a_missing_neutral_text_is_known_before_the_training(concept: Concept, tmp_path: Path) -> None:
    report = FinalReport(dials=[0], scenes=2, how={"neutral": Source(tmp_path / "absent.txt")})
    with pytest.raises(SliderError, match=r"absent\.txt"):
        runs.fit(module(tmp_path), tmp_path, 1, concept=concept, callbacks=[report])


@pytest.mark.parametrize(
    ("given", "words"),
    [({"judge": Path("a-judge")}, "a-judge reads pictures"), ({"how": {"steps": 2}}, "no TextSampling")],
    ids=["judge", "how"],
)
def test_what_is_of_pictures_is_known_before_the_training(
    given: dict[str, Any], words: str, concept: Concept, tmp_path: Path
) -> None:
    for callback in (Probe(scenes=2, **given), FinalReport(scenes=2, **given)):
        with pytest.raises(SliderError, match=words):
            runs.fit(module(tmp_path), tmp_path, 1, concept=concept, callbacks=[callback])


def test_an_oracle_is_of_pictures(concept: Concept, tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="oracle"):
        runs.fit(module(tmp_path), tmp_path, 1, concept=concept, callbacks=[FinalReport(scenes=2, oracle=True)])
