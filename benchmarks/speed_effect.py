"""Training to effect: seconds and model evaluations until a slider does what it should on held-out prompts."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks.timing import Clock, Evaluations
from sliders.algebra.slider import Slider
from sliders.backbones.base import of_class
from sliders.backbones.guidance import guided
from sliders.backbones.unet import UNetBackbone
from sliders.batch import TensorBatch, join, take
from sliders.concept import Concept
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import heldout_prompts
from sliders.evaluation.pictures.sampling import Sampling, sample, sample_dial, scenes
from sliders.losses.erasure import ErasureLoss
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.teacher.teacher import Teacher
from sliders.training.data import ConceptData, StepBatch
from sliders.training.module import SliderModule
from sliders.training.states import AnsweredStates, Pool, Rollout, StateSource

EFFECT, DRIFT = 0.6, 0.08
NOISES = 1000
"""Timesteps of the noise schedule."""


@dataclass(frozen=True)
class Procedure:
    """A way to train; what is not said is our default.

    Args:
        states: makes the source of states.
        lr: of AdamW.
        weight_decay: of AdamW.
        alpha: of rank 4.
        spread: size of ``A`` at the start, relative to PEFT's own.
        data: arguments of `ConceptData`.
        doubled: the student's call has a half for another prompt, which is thrown away.
    """

    states: Callable[[], StateSource] = Pool
    lr: float = 2e-3
    weight_decay: float = 0.0
    alpha: float = 4.0
    spread: float = 1.0
    data: Mapping[str, Any] = field(default_factory=dict)
    doubled: bool = False


class Published(Rollout):
    """The states of `trainscripts/textsliders/train_lora.py` of rohitgandikota/sliders, call by call.

    As published: one state a step, from a rollout of 1 to 49 of 50 steps at guidance 3, away from the negative prompt
    and with the slider at +1; three calls of the teacher (target, one positive, one negative), each doubled by a half
    for the negative prompt, which a guidance of 1 throws away; a state after k steps is scored at timestep 999 - 20 k,
    some 19 above its own.

    As ours: the concept, whose lists are drawn from, an entry of each in every step, so that a step costs what it costs
    as published and asks in the mean for what ours asks; and float32 (published: bfloat16).
    """

    def __init__(self) -> None:
        super().__init__(steps=50, guidance=3.0, signed=False)

    @torch.no_grad()
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> AnsweredStates:
        backbone, rng = self.model(teacher.backbone), random.Random(batch.seeds[0])
        number = int(teacher.moved[rng.randrange(len(teacher.moved))])
        question, asked, depth = torch.tensor([number]), teacher.questions[number], rng.randrange(1, self.steps)
        target, positive, negative = (
            take(teacher.conditioning, torch.tensor([prompt]))
            for prompt in (asked.target, rng.choice(asked.positives), rng.choice(asked.negatives))
        )
        with adapter.dial(batch.magnitudes[:1]):
            predict = guided(backbone, target, negative, self.guidance)
            path = backbone.trajectory(predict, backbone.start(batch.seeds), self.steps, batch.seeds)
            state = next(state for k, state in enumerate(path) if k == depth)
        state["timestep"] = torch.full((1,), NOISES - 1 - depth * NOISES // self.steps)
        base, up, down = (doubled(backbone.predict, state, c, negative) for c in (target, positive, negative))
        return AnsweredStates(state, question, base, up - down)


PUBLISHED = Procedure(Published, lr=1e-3, data={"batch_size": 1, "signs": [1], "magnitude": (1.0, 1.0)}, doubled=True)
"""With an optimizer that is faster than its own: five times the learning rate, and alpha = rank."""
PROCEDURES: dict[str, Procedure] = {
    "published, its own optimizer": Procedure(
        Published, lr=2e-4, weight_decay=0.01, alpha=1.0, data=PUBLISHED.data, doubled=True
    ),
    "published": PUBLISHED,
    "ours": Procedure(),
}
"""The first one's AdamW has the learning rate, weight decay and alpha of the published `config.yaml`."""

Predict = Callable[[TensorBatch, TensorBatch], Tensor]


def doubled(predict: Predict, state: TensorBatch, conditioning: TensorBatch, other: TensorBatch) -> Tensor:
    """Classifier-free guidance of 1, computed as any other: twice the rows, of which one half cancels out."""
    without, with_prompt = predict(join([state, state]), join([other, conditioning])).chunk(2)
    return without + 1.0 * (with_prompt - without)


@contextmanager
def doubled_student(backbone: UNetBackbone) -> Iterator[None]:
    """Double the calls that have a gradient."""
    predict, empty = backbone.predict, backbone.encode([""])

    def asking(state: TensorBatch, conditioning: TensorBatch) -> Tensor:
        if not torch.is_grad_enabled():
            return predict(state, conditioning)
        return doubled(predict, state, conditioning, empty)

    backbone.predict = asking  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        backbone.predict = predict  # pyright: ignore[reportAttributeAccessIssue]


class Reader(L.Callback):
    """Reads the slider at an interval, off the clock, and ends the run where it has its effect, if asked to."""

    dials = (-1.0, 0.0, 1.0)

    def __init__(
        self, judge: AttributeJudge, concept: Concept, count: Evaluations, every: int, pictures: int, now: Clock,
        stop: bool = True, spread: float = 1.0,
    ) -> None:  # fmt: skip
        self.judge, self.concept, self.count, self.every, self.now = judge, concept, count, every, now
        self.stop, self.spread = stop, spread
        self.wanted = scenes(heldout_prompts(concept), pictures)
        self.base: Tensor | None = None  # the pictures at dial 0
        self.seconds, self._resumed = 0.0, 0.0
        self._last = 0  # the step that was read last
        self.curve: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        assert pl_module.adapter is not None
        down = {name: f * self.spread if name.endswith(".A") else f for name, f in pl_module.adapter.state().items()}
        pl_module.adapter.load_state(down)
        self._resumed = self.now()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every or trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        assert isinstance(pl_module, SliderModule)
        self.seconds += self.now() - self._resumed
        self.count.on = False
        effect, drift = self.read(pl_module)
        now = {"step": trainer.global_step, "seconds": self.seconds, "evaluations": self.count.rows}
        self.curve.append(now | {"effect": effect, "drift": drift})
        print(self.curve[-1], flush=True)
        trainer.should_stop = self.stop and effect >= EFFECT and drift <= DRIFT
        self.count.on = True
        self._resumed = self.now()

    def read(self, module: SliderModule) -> tuple[float, float]:
        """The difference of the concept's probability between dials 1 and -1, and the worst drift."""
        backbone = of_class(module.backbone, UNetBackbone, "the benchmark samples from", "give another")
        assert module.adapter is not None
        assert self.concept.measure is not None
        if self.base is None:
            self.base = sample(backbone, self.wanted)
        with attach(backbone, [Slider("now", module.adapter.update())]) as turned:
            low, high = sample_dial(backbone, lambda s: turned.turned({"now": s}), self.wanted, (-1.0, 1.0), Sampling())
        made = torch.stack([low, self.base, high])
        dose = dose_response(self.judge, self.concept.measure, made, self.dials)
        return dose.response[2] - dose.response[0], max(d.change for d in dose.drift)


def train(
    backbone: UNetBackbone, judge: AttributeJudge, concept: Concept, how: Procedure, seed: int, every: int, steps: int,
    pictures: int, folder: Path, now: Clock, stop: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """One run: what it took, and the curve of its readings.  All have the same eta, rank and layers, our default's."""
    module = SliderModule(
        backbone=backbone,
        loss=ErasureLoss(eta=1.0),
        states=how.states(),
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=how.lr, weight_decay=how.weight_decay, fused=True
        ),
        alpha=how.alpha,
    )
    count = Evaluations(backbone)
    watch = Reader(judge, concept, count, every, pictures, now, stop, how.spread)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], default_root_dir=folder,
    )  # fmt: skip
    try:
        with doubled_student(backbone) if how.doubled else nullcontext():
            trainer.fit(module, datamodule=ConceptData(concept, seed=seed, **how.data))
    finally:
        module.detach_slider()
        count.remove()
    last = watch.curve[-1]
    return {"reached": last["effect"] >= EFFECT and last["drift"] <= DRIFT, **last, "curve": watch.curve}
