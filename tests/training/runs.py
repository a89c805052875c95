"""Short trainings of a tiny model, and counters of what they do."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch, rows
from sliders.concept import Concept
from sliders.losses.erasure import ErasureLoss
from sliders.runtime.adapter import Adapter
from sliders.training.data import ConceptData, StepBatch
from sliders.training.module import SliderModule
from sliders.training.states import Pool, StateSource

HAPPY = Concept("happy", "a person", ["a happy person"], ["a sad person"])
RICH = Concept(
    "rich",
    "a person",
    ["a happy person", "a person with a hat", "a happy dog"],
    ["a sad person", "a sad dog"],
    contexts=["", " with a dog"],
    preserve=["a dog", "a hat", "a person with a dog"],
)
"""With everything that a concept may have; one prompt to preserve is also a target."""


@torch.no_grad()
def randomize(adapter: Adapter, seed: int = 7, size: float = 0.2) -> None:
    """Move an adapter away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def batch(seeds: Sequence[int], preserved: Sequence[bool] | None = None, step: int = 0, seed: int = 0) -> StepBatch:
    """A step's items by hand; the magnitude of an item follows from its seed."""
    magnitudes = torch.tensor([0.5 + (s % 7) / 4 for s in seeds])
    return StepBatch(step, seed, list(seeds), magnitudes, torch.tensor(preserved or [False] * len(seeds)))


def count_rows(model: AbstractBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of `predict` from now on."""
    counts: list[int] = []
    predict = model.predict

    def counting(state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        counts.append(rows(state))
        return predict(state, conditioning)

    monkeypatch.setattr(model, "predict", counting)
    return counts


@cache
def _read(base: Path) -> UNetBackbone:
    model = UNetBackbone(str(base))
    model.load()
    return model


def loaded(base: Path) -> UNetBackbone:
    """A model of its own, without reading the folder again."""
    model = UNetBackbone(str(base))
    model.use(copy.deepcopy(_read(base).pipeline))
    return model


class Curve(L.Callback):
    """Keeps what was logged at every step."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in trainer.callback_metrics.items():
            self.values.setdefault(name, []).append(float(value))


def module(
    base: Path,
    states: StateSource | None = None,
    lr: float = 1e-2,
    targets: Sequence[str] = ("xattn",),
    backbone: AbstractBackbone | None = None,
    **changes: Any,
) -> SliderModule:
    """A training of the tiny model."""
    return SliderModule(
        backbone=backbone or loaded(base),
        states=states or Pool(trajectories=4, steps=3, refresh=3, growth=1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
        targets=targets,
        **{"loss": ErasureLoss(eta=2.0), "rank": 2, **changes},
    )


def trainer(
    folder: Path, steps: int, callbacks: Sequence[L.Callback] = (), every: int = 0, **changes: Any
) -> L.Trainer:
    """A quiet trainer; with ``every`` it keeps checkpoints ``folder/<step>.ckpt``."""
    kept = [*callbacks]
    if every:
        names = ModelCheckpoint(
            folder, "{step}", every_n_train_steps=every, save_top_k=-1, auto_insert_metric_name=False
        )
        kept.append(names)
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in kept),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=kept,
        **changes,
    )


def fit(
    model: SliderModule,
    folder: Path,
    steps: int,
    resume: Path | None = None,
    concept: Concept = HAPPY,
    callbacks: Sequence[L.Callback] = (),
    every: int = 0,
    data: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Tensor]:
    """Train, and return the factors."""
    items = ConceptData(concept, **{"batch_size": 2, **(data or {})})
    train = trainer(folder, steps, callbacks, every, **changes)
    train.fit(model, datamodule=items, ckpt_path=resume, weights_only=True)
    assert model.adapter is not None
    return model.adapter.state()


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
