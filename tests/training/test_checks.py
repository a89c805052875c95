"""What would train nothing, or does not fit a run, is an error in one line before the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch
from sliders.errors import SliderError, SliderWarning
from sliders.losses.erasure import ErasureLoss, Prediction
from sliders.losses.preservation import Preservation
from tests.commands import World, run, world
from tests.training import runs

NAN, INF = float("nan"), float("inf")
SCHEDULE = "torch.optim.lr_scheduler."
REFUSED: dict[str, tuple[list[object], str]] = {
    "alpha 0": (["--model.alpha", 0], "model.alpha is 0"),
    "alpha below 0": (["--model.alpha", -1], "model.alpha is -1"),
    "alpha none": (["--model.alpha", ".nan"], "model.alpha is nan"),
    "eta 0": (["--model.loss.eta", 0], "loss.eta is 0"),
    "eta infinite": (["--model.loss.eta", ".inf"], "loss.eta is inf"),
    "no targets": (["--model.targets", "[]"], "model.targets is empty"),
    "magnitude infinite": (["--data.magnitude", "[0.5, .inf]"], "data.magnitude"),
    "learning rate 0": (["--model.optimizer.lr", 0], "the learning rate is 0"),
    "learning rate below 0": (["--model.optimizer.lr", -1], "learning rate"),
    "a schedule of 0": (
        [
            "--model.lr_scheduler",
            f"{SCHEDULE}ConstantLR",
            "--model.lr_scheduler.factor",
            0,
            "--model.lr_scheduler.total_iters",
            9,
        ],
        "the learning rate is 0",
    ),
    "a schedule by validation": (["--model.lr_scheduler", f"{SCHEDULE}ReduceLROnPlateau"], "ReduceLROnPlateau"),
    "no steps": (["--trainer.max_steps", 0], "max_steps"),
    "no epochs": (["--trainer.max_epochs", 0], "trainer.max_epochs is 0"),
    "no batches": (["--trainer.limit_train_batches", 0], "trainer.limit_train_batches"),
    "one batch again and again": (["--trainer.overfit_batches", 1], "trainer.overfit_batches"),
    "a dry run": (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run"),
    "sharded": (["--trainer.strategy", "fsdp"], "fsdp"),
    "processes by copy": (["--trainer.strategy", "ddp_spawn"], "trainer.strategy"),
    "nothing logged": (["--trainer.barebones", "true"], "barebones"),
    "double precision": (["--trainer.precision", "64-true"], "trainer.precision is 64-true"),
    "transformer engine": (["--trainer.precision", "transformer-engine"], "transformer_engine"),
    "half of transformer engine": (["--trainer.precision", "transformer-engine-float16"], "transformer_engine"),
    "half mixed on the CPU": (["--trainer.precision", "16-mixed"], "trainer.precision is 16-mixed"),
    "two precisions of the base": (
        ["--trainer.precision", "bf16-true", "--model.backbone.dtype", "float16"],
        "trainer.precision is bf16-true, but backbone.dtype is float16",
    ),
    "clipping with a scaler inside": (
        ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 1],
        "--model.optimizer.fused false",
    ),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What runs are made from."""
    return world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("case", REFUSED)
def test_in_one_line_before_a_weight_is_read(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arguments, words = REFUSED[case]
    monkeypatch.setattr(UNetBackbone, "load", lambda self: pytest.fail("weights are read"))
    ended = run(train.main, "--config", here.config, "--runs", tmp_path / "runs", *arguments)
    assert ended.code != 0
    assert words in ended.err[ended.err.index("error:") :], ended.err
    assert len(ended.err[ended.err.index("error:") :].strip().splitlines()) == 1, ended.err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.gradient_clip_val", 0.01],
        ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 0.01, "--model.optimizer.fused", "false"],
        ["--trainer.max_time", "00:01:00:00"],
        ["--trainer.strategy", "ddp"],
        ["--trainer.accumulate_grad_batches", 2],
        ["--model.lr_scheduler", f"{SCHEDULE}LinearLR", "--model.lr_scheduler.start_factor", 1e-9],
    ],
    ids=["clipping", "clipping in mixed precision", "time", "ddp", "accumulation", "warming up"],
)
def test_what_fits_trains(here: World, tmp_path: Path, arguments: list[object]) -> None:
    """The control, with a schedule that begins at next to nothing."""
    ended = run(train.main, "--config", here.config, "--runs", tmp_path / "runs", *arguments)
    assert ended.code == 0, ended.err
    assert list(tmp_path.rglob("*.safetensors"))


def test_clipping_clips(base: Path, tmp_path: Path) -> None:
    """By stochastic descent, whose step is the gradient."""
    plain: dict[str, Any] = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=10.0)}
    norms = []
    for clip in (None, 1e-6):
        before = runs.fit(model := _sgd(base, plain), tmp_path, 1, gradient_clip_val=clip)
        assert model.adapter is not None
        norms.append(sum(float(b.norm()) for name, b in before.items() if name.endswith(".B")))
    assert 0 < norms[1] <= 10 * 1e-6 * len(before) < norms[0]


def _sgd(base: Path, plain: dict[str, Any]) -> Any:
    made = runs.module(base)
    made.optimizer = plain["optimizer"]
    return made


@pytest.mark.parametrize("weight", [0.0, -1.0, NAN, INF])
def test_preservation_weighs_something(weight: float) -> None:
    with pytest.raises(SliderError, match=r"model\.preservation\.weight"):
        Preservation(weight)


class Deaf(UNetBackbone):
    """Predicts the same whatever is asked, to rounding."""

    def predict(self, state: TensorBatch, conditioning: TensorBatch) -> torch.Tensor:
        own = {name: value[:1].expand_as(value) for name, value in self.encode([""]).items()}
        silent = {name: own[name].expand_as(value) for name, value in conditioning.items()}
        noise = conditioning["prompt_embeds"].flatten(1).sum(1).view(-1, 1, 1, 1).sin()
        return super().predict(state, silent) * (1 + 1e-7 * noise)


def test_a_model_that_predicts_the_same(base: Path, tmp_path: Path) -> None:
    """Though it reads the prompts apart."""
    model = Deaf(str(base))
    model.use(runs.loaded(base).pipeline)
    steps = runs.Curve()
    with pytest.raises(SliderError, match=r"there is no direction: Deaf predicts the same for 'a happy person'"):
        runs.fit(runs.module(base, backbone=model), tmp_path, 3, callbacks=[steps])
    assert not steps.values, "no step was made"


class Content(ErasureLoss):
    """Wants what is there."""

    def target(self, prediction: Prediction) -> torch.Tensor:
        return prediction.base


class Broken(ErasureLoss):
    """Has no number after some steps."""

    calls = 0

    def forward(self, prediction: Prediction) -> torch.Tensor:
        Broken.calls += 1
        return super().forward(prediction) * (NAN if Broken.calls > 2 else 1)


def test_a_loss_that_wants_what_is_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="Content wants of every state what the model says already"):
        runs.fit(runs.module(base, loss=Content(1.0)), tmp_path, 3)


def test_a_loss_that_is_no_number_ends_the_run_at_once(base: Path, tmp_path: Path) -> None:
    Broken.calls = 0
    with pytest.raises(SliderError, match=r"the loss is nan in step 2.*model.optimizer.lr"):
        runs.fit(runs.module(base, loss=Broken(1.0)), tmp_path, 9)
    assert Broken.calls == 3


def test_a_slider_that_learnt_nothing_is_no_file(here: World, tmp_path: Path) -> None:
    """A rate that float32 does not see."""
    arguments = ["--config", here.config, "--model.optimizer.lr"]
    ended = run(train.main, *arguments, 1e-44, "--runs", tmp_path / "none")
    assert ended.code == 1
    assert "nothing was learnt in 4 steps" in ended.err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert run(train.main, *arguments, 1e-3, "--runs", tmp_path / "some").code == 0


def test_what_is_to_stay_and_to_move_is_said(base: Path, tmp_path: Path) -> None:
    """As the model reads it, not as it is written."""
    concept = runs.Concept("happy", "a person", ["a happy person"], ["a sad person"], preserve=["A person"])
    more: dict[str, Any] = {"data": {"preserve_batch_size": 1}}
    with pytest.warns(SliderWarning, match="'A person' is to be preserved, but is a target"):
        runs.fit(runs.module(base), tmp_path, 1, concept=concept, **more)


def test_the_base_is_shared_by_runs_in_one_precision(here: World, tmp_path: Path) -> None:
    from sliders.training.many import plan

    plain, mixed, other = (
        plan(here.config, tmp_path, [f"--trainer.precision={p}", *more])
        for p, more in (("32-true", []), ("bf16-true", []), ("32-true", ["--model.rank=3"]))
    )
    assert plain.base != mixed.base
    assert plain.base == other.base
    assert yaml.safe_load(plain.base)
