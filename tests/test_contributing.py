"""The family, the loss and the source of states that `CONTRIBUTING.md` shows are what it says, as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sliders
from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch
from sliders.losses.erasure import ErasureLoss, Prediction
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


def test_the_laws_are_inherited() -> None:
    """A class that lacks a part of the contract would not be collected."""
    assert not getattr(TestPoints, "__abstractmethods__", None)


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
