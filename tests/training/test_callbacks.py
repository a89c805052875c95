"""What a run shows while it goes and leaves when it ends."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import DiffusionPipeline

from sliders.backbones.unet import UNetBackbone
from sliders.concept import Concept, Measure
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.settings import Settings
from sliders.formats import diffusers as slider_file
from sliders.runtime.adapter import Adapter
from sliders.training.callbacks import BakeModel, FinalReport, Probe, SliderWriter
from sliders.training.data import ConceptData
from sliders.training.module import SliderModule
from tests.training import runs

QUICK: Settings = {"steps": 2, "guidance": 2.0}


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    """One that can be measured."""
    (tmp_path / "prompts.txt").write_text("a person\na dog\n")
    measure = Measure("mood", tmp_path / "prompts.txt", "happy")
    return Concept("happy", "a person", ["a happy person"], ["a sad person"], measure=measure)


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    """The file of a random judge."""
    torch.manual_seed(0)
    AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8).save(tmp_path / "judge.safetensors")
    return tmp_path / "judge.safetensors"


def test_the_slider_is_written_at_the_interval_and_at_the_end(base: Path, tmp_path: Path) -> None:
    """Under the concept's name, from the first writing on a whole file."""
    file, norms = tmp_path / "happy.safetensors", []

    class Look(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            norms.append(slider_file.load(file).update.norm() if file.exists() else None)

    model = runs.module(base)
    runs.fit(model, tmp_path, 5, callbacks=[SliderWriter(every=2), Look()])
    assert norms[0] is None
    assert norms[1] == norms[2] != norms[3] == norms[4]
    written = slider_file.load(file)
    assert written.update.norm() == pytest.approx(model.slider().update.norm())
    assert json.loads(written.metadata["sliders.training"])["steps"] == 5


@pytest.mark.parametrize("how", [{"height": 23}, {"steps": 2000}], ids=str)
@pytest.mark.parametrize("callback", [Probe, FinalReport])
def test_pictures_that_cannot_be_are_known_before_the_first_step(
    base: Path, tmp_path: Path, callback: type[Probe | FinalReport], how: Settings
) -> None:
    curve = runs.Curve()
    with pytest.raises(SliderError, match=r"height is 23|2000 steps"):
        runs.fit(runs.module(base), tmp_path, 2, callbacks=[callback(how=how), curve])
    assert not curve.values


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_the_slider_is_written_when_the_training_is_interrupted(
    base: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    """As it was after the last step, without the command; a fault is no interruption."""

    class Interrupt(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 2:
                raise error

    with pytest.raises((SystemExit, ValueError)):
        runs.fit(runs.module(base), tmp_path, 5, callbacks=[SliderWriter(), Interrupt()])
    file = tmp_path / "happy.safetensors"
    assert file.exists() == (error is not ValueError)
    if file.exists():
        assert json.loads(slider_file.load(file).metadata["sliders.training"])["steps"] == 2


def test_a_probe_says_early_whether_the_concept_moves(
    base: Path, tmp_path: Path, concept: Concept, judge: Path
) -> None:
    curve = runs.Curve()
    probe = Probe(judge, every=2, scenes=2, how=QUICK)
    runs.fit(runs.module(base), tmp_path, 4, concept=concept, callbacks=[probe, curve])
    assert len(curve.values["probe_effect"]) >= 2
    assert all(value >= 0 for value in curve.values["probe_drift"])
    assert any(value != 0 for value in curve.values["probe_effect"])


@pytest.mark.parametrize("batches", [1, 3])
def test_a_probe_looks_once_at_a_step(base: Path, tmp_path: Path, batches: int) -> None:
    """Where gradients are accumulated a step is several batches; and at the base there is nothing to see."""
    seen: list[int] = []

    class Look(SliderWriter):
        def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
            seen.append(trainer.global_step)

    runs.fit(runs.module(base), tmp_path, 5, callbacks=[Look(every=2)], accumulate_grad_batches=batches)
    assert seen == [2, 4]


@pytest.mark.parametrize("make", [SliderWriter, Probe])
def test_a_probe_that_never_looks_is_an_error(make: Callable[..., L.Callback]) -> None:
    with pytest.raises(SliderError, match=r"every is 0; it must be at least 1"):
        make(every=0)


def test_a_probe_changes_nothing_in_the_training(base: Path, tmp_path: Path, concept: Concept, judge: Path) -> None:
    probe = Probe(judge, every=1, scenes=2, how=QUICK)
    with_probe = runs.fit(runs.module(base), tmp_path, 3, concept=concept, callbacks=[probe])
    assert runs.equal(with_probe, runs.fit(runs.module(base), tmp_path, 3, concept=concept))


def test_a_final_report_measures_what_the_file_then_says(
    base: Path, tmp_path: Path, concept: Concept, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = FinalReport(judge, dials=[-1, 0, 1], scenes=2, how=QUICK, oracle=True)
    runs.fit(runs.module(base), tmp_path, 2, concept=concept, callbacks=[report])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    written = json.loads(slider_file.load(tmp_path / "happy.safetensors").metadata["sliders.effect"])
    assert list(written["mean"].values()) == pytest.approx(metrics["slider"]["response"], abs=1e-3)
    assert metrics["dials"] == [-1, 0, 1]
    assert metrics["oracle"] is not None
    assert (tmp_path / "strip.png").stat().st_size > 1000
    assert (tmp_path / "dose_response.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert str(tmp_path / "happy.safetensors") in said
    assert "load_lora_weights" in said


@pytest.mark.parametrize("callback", [Probe, FinalReport])
def test_a_missing_judge_is_known_before_the_training(
    base: Path, tmp_path: Path, callback: type[Probe] | type[FinalReport]
) -> None:
    """Before anything is loaded: the model is not there either."""
    model = runs.module(base, backbone=UNetBackbone(str(tmp_path / "no-model")))
    with pytest.raises(SliderError, match="no-judge"):
        runs.fit(model, tmp_path, 2, callbacks=[callback(tmp_path / "no-judge")])


@pytest.mark.parametrize("callback", [Probe, FinalReport])
@pytest.mark.parametrize("wrong", ["attribute", "value", "pictures"])
def test_what_cannot_be_measured_is_known_before_the_training(
    tmp_path: Path, concept: Concept, judge: Path, callback: type[Probe] | type[FinalReport], wrong: str
) -> None:
    """Before anything is loaded."""
    assert concept.measure is not None
    measure = concept.measure if wrong == "pictures" else replace(concept.measure, **{wrong: "joy"})
    model = runs.module(tmp_path, backbone=UNetBackbone(str(tmp_path / "no-model")))
    made = callback(judge, scenes=0 if wrong == "pictures" else 1)
    with pytest.raises(SliderError, match="pictures is 0" if wrong == "pictures" else "'joy'"):
        runs.fit(model, tmp_path, 2, concept=replace(concept, measure=measure), callbacks=[made])


def test_dials_without_the_base_are_an_error() -> None:
    with pytest.raises(SliderError, match="dials"):
        FinalReport(dials=[-1, 1])


def test_a_baked_model_has_the_slider_in_its_weights(base: Path, tmp_path: Path) -> None:
    """And is a model of its own library; the base in memory is what it was."""
    model = runs.module(base, targets=["xattn", "text-encoder"])
    train = runs.trainer(tmp_path, 2, [SliderWriter(), BakeModel(-2.0)])
    train.fit(model, datamodule=ConceptData(runs.HAPPY, batch_size=2))
    assert model.adapter is None
    edit = slider_file.load(tmp_path / "happy.safetensors").at(-2.0)
    baked, fresh = UNetBackbone(str(tmp_path / "model")), runs.loaded(base)
    baked.load()
    written, kept = baked.state_dict(), model.backbone.state_dict()
    for name, weight in fresh.state_dict().items():
        module = name.removesuffix(".weight")
        wanted = edit.apply(module, weight) if module in edit and name != module else weight
        torch.testing.assert_close(written[name], wanted, msg=name)
        assert torch.equal(kept[name], weight), name
    assert baked.fingerprint() != fresh.fingerprint()
    DiffusionPipeline.from_pretrained(tmp_path / "model")
