"""The family, medium, loss and source of states that `CONTRIBUTING.md` shows are what it says, as they stand."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sliders
from sliders import media
from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError
from sliders.evaluation.base_states import Behaviour
from sliders.losses.erasure import ErasureLoss, Prediction
from sliders.media.base import medium_of
from sliders.studies.scenes import states_for
from sliders.training.callbacks import FinalReport, Probe
from sliders.training.states import Pool
from tests import tiny
from tests.backbones.contract import BackboneContract
from tests.commands import ROOT
from tests.training import runs

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


def shown(name: str) -> Any:
    """The class of a block."""
    (code,) = [block for block in BLOCKS if f"class {name}(" in block]
    names: dict[str, Any] = {"__name__": name.lower()}
    exec(code, names)
    return names[name]


def written(name: str, folder: Path) -> Path:
    """A block as the file that it says it is."""
    (code,) = [block for block in BLOCKS if f"class {name}(" in block]
    file = folder / f"{name.lower()}.py"
    file.write_text(code)
    return file


Points, HuberLoss, Starts = shown("Points"), shown("HuberLoss"), shown("Starts")


class Field:
    """A tiny model of points, which saves as a folder."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.components = {"field": nn.Sequential(nn.Linear(29, 32), nn.Tanh(), nn.Linear(32, 2))}

    def to(self, dtype: torch.dtype) -> "Field":
        """In another precision."""
        self.components["field"].to(dtype)
        return self

    def save_pretrained(self, folder: Path) -> None:
        """Write it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.components["field"].state_dict(), folder / "points.safetensors")


class TestPoints(BackboneContract):
    """The laws of every family."""

    @classmethod
    def pipeline(cls) -> Any:
        return Field()

    @classmethod
    def backbone(cls, folder: Path) -> AbstractBackbone:
        return Points(str(folder))

    @classmethod
    def three_states(cls, model: Any) -> TensorBatch:
        return {"points": model.start([3, 1, 4]), "time": torch.tensor([1.0, 0.5, 0.25])}

    def read_export(self, folder: Path) -> None:
        model = self.loaded(folder)
        assert model.predict(self.three_states(model), model.encode(["a"] * 3)).shape == (3, 2)


def test_a_slider_is_trained_on_a_new_family(tmp_path: Path) -> None:
    model = Points(str(tiny.save(Field(), tmp_path / "model")))
    settings: dict[str, Any] = {"targets": ["full"], "steps": 20, "lr": 0.02, "progress": False}
    made = sliders.train(model, runs.HAPPY, config="smile", out=tmp_path, **settings)
    state, asked = TestPoints.three_states(model), model.encode(["a person"] * 3)
    base = model.predict(state, asked)
    with sliders.attach(model, [sliders.load(tmp_path / "happy.safetensors")]) as dials:
        assert torch.equal(model.predict(state, asked), base)
        dials.set({"happy": 1.0})
        moved = model.predict(state, asked) - base
    wanted = model.predict(state, model.encode(["a happy person"] * 3))
    wanted = wanted - model.predict(state, model.encode(["a sad person"] * 3))
    assert float(torch.cosine_similarity(moved.flatten(), wanted.flatten(), 0)) > 0.5
    assert made.update.norm() > 0


def test_a_new_loss_is_least_at_the_formula_s_target_and_bends() -> None:
    base, direction, dial = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, -2.0])
    target = dial[:, None].expand(2, 3)

    def at(student: torch.Tensor, loss: Any) -> torch.Tensor:
        return loss(Prediction(student, base, direction, dial))

    assert not at(target, HuberLoss()).any()
    assert (at(target + 1, HuberLoss()) > 0).all()
    grown = [float((at(target + 8, loss) / at(target + 4, loss))[0]) for loss in (HuberLoss(), ErasureLoss())]
    assert grown[0] < 2.1
    assert grown[1] == pytest.approx(4)  # the control: a square


def test_a_new_loss_and_a_new_source_train_and_resume_bit_by_bit(tmp_path: Path) -> None:
    base = tiny.save(tiny.stable_diffusion(), tmp_path / "base")

    def module() -> Any:
        return runs.module(base, Starts(steps=3), loss=HuberLoss(eta=2.0))

    whole = runs.fit(module(), tmp_path / "whole", 4, every=2)
    assert runs.equal(runs.fit(module(), tmp_path / "rest", 4, resume=tmp_path / "whole" / "2.ckpt"), whole)
    pool = runs.module(base, Pool(trajectories=2, steps=3), loss=HuberLoss(eta=2.0))
    assert not runs.equal(runs.fit(pool, tmp_path / "pool", 4), whole), "the control: other states"


class Flat(Points):
    """The same model, of what is another medium."""

    modality = "plane"


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The block's file among those of media."""
    monkeypatch.setattr(media, "__path__", [*media.__path__, str(written("Plane", tmp_path).parent)])
    yield
    sys.modules.pop("sliders.media.plane", None)


def test_a_modality_without_a_file_is_an_error() -> None:
    """The control of what follows."""
    with pytest.raises(SliderError, match="'modality' is 'plane'"):
        replace(runs.HAPPY, modality="plane")


@pytest.mark.usefixtures("plane")
def test_a_new_medium_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training on it has its probe and its report, and the commands and the studies find what they need."""
    concept = replace(runs.HAPPY, modality="plane")
    model, curve = Flat(str(tiny.save(Field(), tmp_path / "model"))), runs.Curve()
    module = runs.module(tmp_path, Pool(trajectories=4, steps=3), lr=0.05, targets=["full"], backbone=model)
    watched = [Probe(every=2, scenes=3, how={"steps": 3}), curve, FinalReport(dials=[-1, 0, 1], scenes=2)]
    runs.fit(module, tmp_path, 6, concept=concept, callbacks=watched)
    assert curve.values["probe_effect"][-1] > 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert torch.tensor(metrics["points"]).shape == (3, 2, 2)
    assert f"points   {tmp_path / 'metrics.json'}" in capsys.readouterr().out
    slider = module.slider()
    module.detach_slider()
    medium: Any = medium_of(model)
    medium.preview(model, concept, [-1.0, 0.0, 1.0], 2, None, tmp_path)
    medium.generate(model, ["a person"], [1, 2], [slider], {slider.name: 1.0}, None, None)
    medium.evaluate(model, slider, None, [-1.0, 0.0, 1.0], 2, None, tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 3 + 1 + 3
    states = states_for(model, [slider], 3)
    with sliders.attach(model, [slider]) as dials:
        assert Behaviour(states, dials).change({slider.name: 1.0}).abs().max() > 0


@pytest.mark.usefixtures("plane")
def test_a_setting_that_a_medium_has_not_is_known_before_the_training(tmp_path: Path) -> None:
    module = runs.module(tmp_path, backbone=Flat(str(tmp_path / "no-model")))
    concept, probe = replace(runs.HAPPY, modality="plane"), Probe(how={"tokens": 3})
    with pytest.raises(SliderError, match=r"no Walking: .*tokens"):
        runs.fit(module, tmp_path, 1, concept=concept, callbacks=[probe])
