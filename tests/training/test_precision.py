"""All of Lightning's precisions that work, on both kinds of model: what is trained is float32 in each."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch
from sliders.concept import Concept
from sliders.losses.erasure import ErasureLoss, LogProbabilityLoss, Prediction
from sliders.training.states import Pool, Responses
from tests.tiny_lm import language_model
from tests.training import runs

BASES = {
    "32-true": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
}
SAYING = Concept("happy", "", ["be happy"], ["be sad"], contexts=["how was your day"], modality="text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    """The folders of a model of each kind."""
    made = {"sd": base}
    for kind in ("gpt2", "llama"):
        made[kind] = tmp_path_factory.mktemp("lm") / kind
        language_model(kind).save_pretrained(made[kind])
    return made


def kind_of(folder: Path, kind: str) -> tuple[AbstractBackbone, dict[str, Any], Concept]:
    """A model that is not read yet, what its training needs, and a concept for it."""
    if kind == "sd":
        return UNetBackbone(str(folder)), {"states": Pool(4, 3, refresh=2, growth=1)}, runs.HAPPY
    parts = {"states": Responses(4, 4, refresh=2), "targets": ["full"], "loss": LogProbabilityLoss(1.5)}
    return CausalLMBackbone(str(folder), support=16), parts, SAYING


class Watching(L.Callback):
    """What the precisions are at every step."""

    def __init__(self) -> None:
        self.base: set[torch.dtype] = set()
        self.trained: set[torch.dtype] = set()
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.base.add(pl_module.backbone.dtype)
        moments = [v for s in trainer.optimizers[0].state.values() for v in s.values() if v.numel() > 1]
        self.trained |= {p.dtype for p in pl_module.adapter.parameters()} | {m.dtype for m in moments}
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("kind", ["sd", "gpt2", "llama"])
@pytest.mark.parametrize("precision", BASES)
def test_it_trains_and_resumes_exactly(folders: dict[str, Path], tmp_path: Path, kind: str, precision: Any) -> None:
    """The base has the precision, and what is trained has not; from a checkpoint it goes on bit for bit."""

    def start(folder: Path, **more: Any) -> tuple[Watching, dict[str, torch.Tensor]]:
        backbone, parts, concept = kind_of(folders[kind], kind)
        seen = Watching()
        model = runs.module(folders[kind], backbone=backbone, **parts)
        state = runs.fit(model, folder, 4, concept=concept, callbacks=[seen], precision=precision, **more)
        return seen, state

    seen, whole = start(tmp_path / "whole", every=1)
    assert seen.base == {BASES[precision]}
    assert seen.trained == {torch.float32}
    assert all(torch.isfinite(torch.tensor(seen.losses)))
    assert any(factor.any() for name, factor in whole.items() if name.endswith(".B"))
    _, again = start(tmp_path / "again", resume=tmp_path / "whole" / "3.ckpt")
    assert runs.equal(whole, again)


@pytest.mark.parametrize("kind", ["sd", "llama"])
@pytest.mark.parametrize("precision", [p for p in BASES if p != "32-true"])
def test_what_is_learnt_is_that_of_single_precision(
    folders: dict[str, Path], tmp_path: Path, kind: str, precision: Any
) -> None:
    """To within the precision of the base; another learning rate is further away."""

    def learnt(precision: Any, lr: float = 1e-2) -> torch.Tensor:
        backbone, parts, concept = kind_of(folders[kind], kind)
        model = runs.module(folders[kind], backbone=backbone, lr=lr, **parts)
        state = runs.fit(model, tmp_path, 4, concept=concept, precision=precision)
        return torch.cat([factor.flatten() for name, factor in state.items() if name.endswith(".B")])

    single, other = learnt("32-true"), learnt(precision)
    assert torch.cosine_similarity(single, other, 0) > 0.5
    assert not torch.equal(single, other)


@pytest.mark.parametrize("precision", BASES)
def test_teacher_and_student_are_computed_alike(folders: dict[str, Path], tmp_path: Path, precision: Any) -> None:
    """In the first step, where the slider changes nothing, the student says bit for bit what the teacher says."""
    seen: list[Prediction] = []

    class Noting(ErasureLoss):
        def forward(self, prediction: Prediction) -> torch.Tensor:
            seen.append(prediction)
            return super().forward(prediction)

    backbone, parts, concept = kind_of(folders["sd"], "sd")
    rollout = {**parts, "states": Pool(2, 2, kept=None, refresh=9), "loss": Noting(2.0), "targets": ["text-encoder"]}
    runs.fit(
        runs.module(folders["sd"], backbone=backbone, **rollout), tmp_path, 1, concept=concept, precision=precision
    )
    first = seen[0]
    assert first.student.dtype == first.base.dtype == torch.float32
    size = float(first.base.norm())
    assert float((first.student - first.base).norm()) <= {"32-true": 1e-5}.get(precision, 0.01) * size


def test_the_trainer_s_own_conversion_is_not_used(folders: dict[str, Path], tmp_path: Path) -> None:
    """It would hold the factors in the base's precision, and make random numbers in it."""
    defaults: list[torch.dtype] = []

    class Asking(UNetBackbone):
        def predict(self, state: TensorBatch, conditioning: TensorBatch) -> torch.Tensor:
            defaults.append(torch.get_default_dtype())
            return super().predict(state, conditioning)

    model = runs.module(folders["sd"], backbone=Asking(str(folders["sd"])))
    items = runs.ConceptData(runs.HAPPY, batch_size=2)
    trainer = runs.trainer(tmp_path, 1, precision="bf16-true")
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    trainer.fit(model, datamodule=items)
    assert set(defaults) == {torch.float32}
    assert model.slider().update.norm() > 0
