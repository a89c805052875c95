"""The training loop, run by Lightning on a tiny model: it learns, touches nothing else, and resumes bit by bit."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.formats.metadata import concept_of
from sliders.losses.erasure import Prediction
from sliders.runtime.adapter import Adapter
from sliders.teacher.teacher import Teacher
from sliders.training.checkpoints import RunCheckpoint
from sliders.training.data import StepBatch
from sliders.training.module import SliderModule
from sliders.training.states import AnsweredStates, Pool, Rollout, StateSource
from tests import tiny
from tests.training import runs

SOURCES: dict[str, Callable[[], StateSource]] = {
    "pool": lambda: Pool(trajectories=2, steps=2, refresh=3, growth=1),
    "rollout": lambda: Rollout(steps=2, guidance=1.0),
}
EXTRA: dict[str, dict[str, Any]] = {
    "pool": {},
    "rollout": {"concept": runs.RICH, "data": {"preserve_batch_size": 1}},
}


@dataclass(frozen=True)
class Learnt:
    """A training of 40 steps: what was logged, and the loss of each step relative to that of doing nothing."""

    module: SliderModule
    curve: dict[str, list[float]]
    relative: Tensor


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """The training that is looked at from all sides."""
    model = runs.module(base, Pool(trajectories=4, steps=3, refresh=20, growth=1), lr=5e-3, targets=["noxattn"], rank=4)
    curve, relative = runs.Curve(), []

    def compare(loss: torch.nn.Module, inputs: tuple[Prediction, ...], output: Tensor) -> None:
        nothing = loss.forward(replace(inputs[0], student=inputs[0].base))
        relative.append(output.detach().mean() / nothing.mean())

    model.loss.register_forward_hook(compare)
    runs.fit(model, tmp_path_factory.mktemp("learnt"), 40, callbacks=[curve], data={"batch_size": 4})
    return Learnt(model, curve.values, torch.stack(relative))


def tensors(value: Any) -> Iterator[Tensor]:
    """All of them in a nest of containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


class TestLearning:
    """What 40 steps do."""

    def test_the_loss_falls_and_the_effect_rises(self, learnt: Learnt) -> None:
        assert {"loss", "effect", "stray"} <= set(learnt.curve)
        assert {len(values) for values in learnt.curve.values()} == {40}
        effect = torch.tensor(learnt.curve["effect"])
        assert effect[0].abs() < 1e-5, "a slider starts as the identity"
        assert learnt.relative[0] == pytest.approx(1.0, abs=1e-5)
        assert effect[-10:].mean() > 0.6
        assert learnt.relative[-10:].mean() < 0.4

    def test_the_base_is_what_it_was(self, learnt: Learnt, base: Path) -> None:
        model = learnt.module
        fresh = UNetBackbone(str(base))
        fresh.load()
        trained = {name.replace(".base_layer", ""): p for name, p in model.backbone.state_dict().items()}
        for name, wanted in fresh.state_dict().items():
            assert torch.equal(trained[name], wanted), name
        assert model.backbone.fingerprint() == fresh.fingerprint()

    def test_nothing_but_the_factors_is_trained(self, learnt: Learnt) -> None:
        model = learnt.module
        assert model.adapter is not None
        factors = {id(p) for p in model.adapter.parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == factors
        assert all(p.grad is None for p in model.parameters() if id(p) not in factors)
        assert not any(module.training for module in model.backbone.modules())

    def test_the_slider_says_what_it_is(self, learnt: Learnt, base: Path) -> None:
        model = learnt.module
        slider, fresh = model.slider(), runs.loaded(base)
        assert slider.name == "happy"
        assert slider.metadata["sliders.base_model"] == str(base)
        assert slider.metadata["sliders.base_fingerprint"] == model.backbone.fingerprint(["unet"])
        assert concept_of(slider) == runs.HAPPY
        assert set(slider.update) == set(fresh.select_targets(["noxattn"]))
        assert {part.rank for part in slider.update.values()} == {4}
        assert slider.update.norm() > 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
def test_every_family_trains_in_the_same_way(kind: str, tmp_path: Path) -> None:
    """Whether noise or v is predicted, and what a conditioning holds, only the backbone knows."""
    pipeline = tiny.stable_diffusion_xl() if kind == "xl" else tiny.stable_diffusion(kind)
    folder = str(tiny.save(pipeline, tmp_path / kind))
    backbone: AbstractBackbone = SDXLBackbone(folder) if kind == "xl" else UNetBackbone(folder)
    model, curve = runs.module(tmp_path, backbone=backbone), runs.Curve()
    runs.fit(model, tmp_path, 2, callbacks=[curve])
    assert all(torch.isfinite(torch.tensor(curve.values["loss"])))
    assert model.slider().update.norm() > 0
    model.detach_slider()
    fresh = type(backbone)(folder)  # pyright: ignore[reportCallIssue]
    fresh.load()
    assert runs.equal(model.backbone.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(
    "targets", [["xattn-strict"], ["full"], ["text-encoder"], ["text-encoder", "xattn"]], ids="+".join
)
def test_every_target_group_trains(base: Path, tmp_path: Path, targets: list[str]) -> None:
    """After the second step, the first that has a gradient on both factors, every layer has moved."""
    backbone = runs.loaded(base)
    names = backbone.select_targets(targets)
    model = runs.module(base, targets=targets, backbone=backbone)
    runs.fit(model, tmp_path, 2)
    update = model.slider().update
    assert set(update) == set(names)
    still = [name for name, part in update.items() if float(part.norm()) == 0]
    assert not still


def test_checkpointing_makes_the_same_slider(base: Path, tmp_path: Path) -> None:
    """The blocks are computed a second time, and at the step's dials, which are off again by then."""
    factors, calls = [], []
    for checkpointing in (False, True):
        backbone = UNetBackbone(str(base), checkpointing=checkpointing)
        backbone.load()
        backbone.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_, c=checkpointing: calls.append(c))
        factors.append(runs.fit(runs.module(base, backbone=backbone, targets=["noxattn"]), tmp_path, 3))
    assert calls.count(True) == calls.count(False) + 3
    for name, factor in factors[0].items():
        torch.testing.assert_close(factors[1][name], factor, msg=name)


def test_one_sign_is_an_erasure(base: Path, tmp_path: Path) -> None:
    """One sign at one magnitude: the model is moved there for good, and learns that."""
    seen: list[Tensor] = []

    class Dials(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert isinstance(pl_module, SliderModule)
            pl_module.loss.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].dial))

    model, curve = runs.module(base), runs.Curve()
    runs.fit(model, tmp_path, 12, callbacks=[curve, Dials()], data={"signs": [-1], "magnitude": (1.0, 1.0)})
    assert {float(d) for dial in seen for d in dial} == {-1.0}
    assert sum(curve.values["effect"][-3:]) / 3 > 0.2


def test_both_signs_are_in_every_step(base: Path, tmp_path: Path) -> None:
    """Each item at both, at its own magnitude; preserved rows have no direction."""
    seen: list[Any] = []
    model = runs.module(base)
    model.loss.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    runs.fit(model, tmp_path, 2, concept=runs.RICH, data={"batch_size": 3, "preserve_batch_size": 2})
    for prediction in seen:
        first, second = prediction.dial.chunk(2)
        assert torch.equal(first, -second)
        assert len(set(first.abs().tolist())) == 5
        assert torch.equal(*prediction.base.chunk(2))
        assert prediction.direction.flatten(1).any(1).tolist() == [True, True, True, False, False] * 2


class TestCheckpoint:
    """A checkpoint holds the training, not the model."""

    @pytest.fixture(scope="class")
    @staticmethod
    def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, int]:
        """One of a run of 2 steps, with the numbers of trained and of all parameters."""
        folder = tmp_path_factory.mktemp("saved")
        model = runs.module(base)
        factors = runs.fit(model, folder, 2, every=2)
        checkpoint = torch.load(folder / "2.ckpt", weights_only=True)
        trained = sum(t.numel() for t in factors.values())
        return checkpoint, trained, sum(p.numel() for p in model.parameters()) - trained

    def test_it_has_no_weights_of_the_base(self, saved: tuple[dict[str, Any], int, int]) -> None:
        checkpoint, trained, frozen = saved
        assert checkpoint["state_dict"] == {}
        assert "slider" in checkpoint
        # the factors, the pool's copy of them, and AdamW's two moments
        held = sum(t.numel() for t in tensors({k: v for k, v in checkpoint.items() if k != "state_dict"}))
        assert held <= 4 * trained + 1000
        assert held < frozen

    def test_it_has_the_factors_the_optimizer_and_the_position(
        self, saved: tuple[dict[str, Any], int, int], base: Path
    ) -> None:
        checkpoint, trained, _ = saved
        assert sum(t.numel() for t in checkpoint["slider"].values()) == trained
        assert len(checkpoint["optimizer_states"][0]["state"]) == len(checkpoint["slider"])
        assert checkpoint["global_step"] == 2

    @pytest.mark.parametrize(
        "other", [{"rank": 4}, {"rank": 1}, {"targets": ["selfattn"]}, {"targets": ["full"]}], ids=str
    )
    def test_of_another_slider_is_an_error(
        self, base: Path, tmp_path: Path, saved: tuple[dict[str, Any], int, int], other: dict[str, Any]
    ) -> None:
        torch.save(saved[0], tmp_path / "saved.ckpt")
        with pytest.raises(SliderError, match="checkpoint"):
            runs.fit(runs.module(base, **other), tmp_path, 3, resume=tmp_path / "saved.ckpt")

    def test_of_rank_1_is_not_spread_over_a_higher_rank(self, base: Path, tmp_path: Path) -> None:
        """Broadcasting would do so without a word."""
        runs.fit(runs.module(base, rank=1), tmp_path, 1, every=1)
        with pytest.raises(SliderError, match="checkpoint"):
            runs.fit(runs.module(base, rank=2), tmp_path, 2, resume=tmp_path / "1.ckpt")

    def test_of_something_else_is_an_error(self, base: Path, tmp_path: Path) -> None:
        """Lightning's own, of another module."""

        class Other(L.LightningModule):
            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                checkpoint["slider"] = {}

        other = runs.trainer(tmp_path, 1)
        other.strategy.connect(Other())
        other.strategy.model = Other()
        other.save_checkpoint(tmp_path / "other.ckpt")
        with pytest.raises(SliderError, match="checkpoint"):
            runs.fit(runs.module(base), tmp_path, 2, resume=tmp_path / "other.ckpt")


class TestResume:
    """A run that was interrupted ends where one that was not ends, bit by bit."""

    @pytest.fixture(scope="class", params=SOURCES)
    @staticmethod
    def whole(
        request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, Path, dict[str, Tensor]]:
        """An uninterrupted run of 7 steps, with all its checkpoints; a pool is filled at steps 0, 3 and 6."""
        folder = tmp_path_factory.mktemp("whole")
        model = runs.module(base, SOURCES[request.param]())
        return request.param, folder, runs.fit(model, folder, 7, every=1, **EXTRA[request.param])

    def go_on(self, base: Path, whole: tuple[str, Path, dict[str, Tensor]], checkpoint: Path) -> dict[str, Tensor]:
        """The same run from a checkpoint, as in another process."""
        torch.manual_seed(123)
        model = runs.module(base, SOURCES[whole[0]]())
        return runs.fit(model, checkpoint.parent / "again", 7, resume=checkpoint, **EXTRA[whole[0]])

    @pytest.mark.parametrize("step", [2, 3, 5])
    def test_from_any_step(self, base: Path, whole: tuple[str, Path, dict[str, Tensor]], step: int) -> None:
        """A pool is filled at steps 0, 3 and 6: from between, and from just before one."""
        assert runs.equal(self.go_on(base, whole, whole[1] / f"{step}.ckpt"), whole[2])

    def test_it_is_the_checkpoint_that_makes_them_equal(
        self, base: Path, whole: tuple[str, Path, dict[str, Tensor]], tmp_path: Path
    ) -> None:
        """The control: with anything left out, the run ends elsewhere."""
        for part in ("states", "loops", "optimizer_states"):
            checkpoint = torch.load(whole[1] / "5.ckpt", weights_only=True)
            if part == "states":
                if whole[0] == "rollout":
                    continue  # it has none
                checkpoint[part] = {}
            elif part == "loops":
                checkpoint[part]["fit_loop"]["state_dict"] = {}
                checkpoint[part]["fit_loop"]["state_dict"]["combined_loader"] = [{"step": 0}]
            else:
                for state in checkpoint[part][0]["state"].values():
                    state["exp_avg"].zero_()
            torch.save(checkpoint, tmp_path / "part.ckpt")
            assert not runs.equal(self.go_on(base, whole, tmp_path / "part.ckpt"), whole[2]), part


def test_the_slider_s_start_follows_from_the_data_s_seed(base: Path, tmp_path: Path) -> None:
    """Not from the global state of chance, which a backbone may have used."""
    starts = []
    for chance, seed in ((0, 0), (1, 0), (0, 5)):
        torch.manual_seed(chance)
        model = runs.module(base, lr=1e-30)  # which float32 does not see
        starts.append(runs.fit(model, tmp_path, 1, data={"seed": seed}))
    assert runs.equal(starts[0], starts[1])
    assert not runs.equal(starts[0], starts[2])


def test_accumulated_gradients_end_the_run_at_its_last_step(base: Path, tmp_path: Path) -> None:
    """A step then takes several batches; the data must not run out before, nor the run go on for ever."""

    class Patience(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch > 5

    model = runs.module(base)
    steps: list[int] = []

    class Steps(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            steps.append(trainer.global_step)

    runs.fit(model, tmp_path, 3, callbacks=[Patience(), Steps()], accumulate_grad_batches=2)
    assert steps == [3]


@pytest.mark.parametrize("gathered", [1, 3])
def test_a_pool_is_made_anew_by_steps_of_the_optimizer(
    base: Path, tmp_path: Path, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a step takes several batches."""
    filled: list[int] = []
    fill = Pool.fill

    def counting(
        pool: Pool, teacher: Teacher, adapter: Adapter, batch: StepBatch, rng: random.Random
    ) -> AnsweredStates:
        filled.append(batch.step)
        return fill(pool, teacher, adapter, batch, rng)

    monkeypatch.setattr(Pool, "fill", counting)
    pool = Pool(trajectories=2, steps=2, refresh=2, growth=1)
    runs.fit(runs.module(base, pool), tmp_path, 5, accumulate_grad_batches=gathered)
    assert filled == [0, 2, 4]


def test_gathered_gradients_resume_bit_by_bit(base: Path, tmp_path: Path) -> None:
    """From the end of a step, in the middle of a pool's time and at its end."""

    def pool() -> Pool:
        return Pool(trajectories=2, steps=2, refresh=2, growth=1)

    kept = RunCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    whole = runs.fit(runs.module(base, pool()), tmp_path, 5, callbacks=[kept], accumulate_grad_batches=2)
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == [f"{step}.ckpt" for step in range(1, 6)]
    for step in (1, 2, 3):
        again, place = runs.module(base, pool()), tmp_path / f"{step}.ckpt"
        resumed = runs.fit(again, tmp_path / "again", 5, resume=place, accumulate_grad_batches=2)
        assert runs.equal(resumed, whole), step
    other = runs.fit(runs.module(base, pool()), tmp_path / "again", 5)
    assert not runs.equal(other, whole), "the control: gathering makes another slider"


def test_the_learning_rate_follows_its_schedule_by_steps(base: Path, tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = runs.module(
        base, lr=1.0e-2, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    )
    runs.fit(model, tmp_path, 3, callbacks=[Rates()])
    assert rates == [1e-2, 5e-3, 2.5e-3]


def test_without_its_data_module_a_training_says_so(base: Path, tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(SliderError, match="ConceptData"):
        runs.trainer(tmp_path, 1).fit(runs.module(base), loader)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_an_error(base: Path, rank: int) -> None:
    with pytest.raises(SliderError, match="rank"):
        runs.module(base, rank=rank)


def test_a_module_can_be_trained_again_after_its_slider_was_taken_off(base: Path, tmp_path: Path) -> None:
    model = runs.module(base)
    first = runs.fit(model, tmp_path, 2)
    model.detach_slider()
    model.states = Pool(trajectories=4, steps=3, refresh=3, growth=1)
    assert runs.equal(runs.fit(model, tmp_path, 2), first)
