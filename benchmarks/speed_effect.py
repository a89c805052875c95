"""Training to effect: seconds and model evaluations until a slider does what it should on held-out prompts."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.timing import Evaluations
from sliders.attach import Adapter
from sliders.backbones.unet import UNetBackbone
from sliders.batch import join
from sliders.concept import Concept
from sliders.evaluation.dose import dose_response
from sliders.evaluation.judge import AttributeJudge
from sliders.evaluation.report import heldout_prompts
from sliders.evaluation.sampling import Sampling, sample_dial, scenes
from sliders.losses.erasure import ErasureLoss
from sliders.training.data import ConceptData, StepBatch
from sliders.training.module import SliderModule
from sliders.training.states import Lesson, Pool, Rollout, denoiser
from sliders.training.teacher import Teacher

EFFECT, DRIFT = 0.6, 0.08


class Published(Rollout):
    """The published procedure's states: one partial denoising of 50 steps at guidance 3 with the slider at +1.

    Each of the teacher's prompts is a call of its own, doubled by the empty prompt's half, which a guidance of 1 throws
    away.  (The student's call, which is doubled too in the published code, is not here.)
    """

    def __init__(self) -> None:
        super().__init__(steps=50, guidance=3.0, signed=False)

    @torch.no_grad()
    def draw(self, teacher: Teacher, adapter: Adapter, batch: StepBatch) -> Lesson:
        backbone = denoiser(teacher)
        rng = random.Random(batch.seeds[0])
        number = int(teacher.moved[rng.randrange(len(teacher.moved))])
        question, asked, depth = torch.tensor([number]), teacher.questions[number], rng.randrange(self.steps)
        with adapter.dial(batch.magnitudes[:1]):
            path = backbone.trajectory(teacher.follow(question, self.guidance), backbone.start(batch.seeds), self.steps)
            state = next(state for k, state in enumerate(path) if k == depth)

        def ask(prompt: int) -> torch.Tensor:
            both = {name: value[[teacher._empty, prompt]] for name, value in teacher.conditioning.items()}
            return backbone.predict(join([state, state]), both)[1:]

        base = ask(asked.target)
        positive = torch.stack([ask(p) for p in asked.positives]).mean(0)
        negative = torch.stack([ask(p) for p in asked.negatives]).mean(0)
        return Lesson(state, question, base, positive - negative)


class UntilEffect(L.Callback):
    """Reads the slider at an interval, off the clock, and stops the run when it has its effect."""

    def __init__(self, judge: AttributeJudge, concept: Concept, count: Evaluations, every: int, pictures: int) -> None:
        self.judge, self.concept, self.count, self.every = judge, concept, count, every
        self.wanted = scenes(heldout_prompts(concept), pictures)
        self.seconds, self.curve = 0.0, []
        self._resumed = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._resumed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every:
            return
        assert isinstance(pl_module, SliderModule)
        assert pl_module.adapter is not None
        assert self.concept.measure is not None
        self.seconds += time.perf_counter() - self._resumed
        self.count.on, dials = False, (-1.0, 0.0, 1.0)
        made = sample_dial(denoiser_of(pl_module), pl_module.adapter.dial, self.wanted, dials, Sampling())
        dose = dose_response(self.judge, self.concept.measure, made, dials)
        effect, drift = dose.response[2] - dose.response[0], max(d.change for d in dose.drift)
        now = {"step": trainer.global_step, "seconds": self.seconds, "evaluations": self.count.rows}
        self.curve.append(now | {"effect": effect, "drift": drift})
        print(self.curve[-1], flush=True)
        trainer.should_stop = effect >= EFFECT and drift <= DRIFT
        self.count.on = True
        self._resumed = time.perf_counter()


def denoiser_of(module: SliderModule) -> UNetBackbone:
    """The module's model."""
    assert isinstance(module.backbone, UNetBackbone)
    return module.backbone


def train_to_effect(
    backbone: UNetBackbone, judge: AttributeJudge, concept: Concept, ours: bool, seed: int, every: int, steps: int,
    pictures: int, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """One run: what it took, and the curve of its readings.

    Both have the same eta, rank, layers and optimizer, those of our default; the published ones learn more slowly.
    """
    module = SliderModule(
        backbone=backbone,
        loss=ErasureLoss(eta=1.0),
        states=Pool() if ours else Published(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0),
    )
    settings: dict[str, Any] = {} if ours else {"batch_size": 1, "signs": [1], "magnitude": (1.0, 1.0)}
    count = Evaluations(backbone)
    watch = UntilEffect(judge, concept, count, every, pictures)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], default_root_dir=folder,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=ConceptData(concept, seed=seed, **settings))
    finally:
        module.detach_slider()
        count.remove()
    last = watch.curve[-1]
    return {"reached": last["effect"] >= EFFECT and last["drift"] <= DRIFT, **last, "curve": watch.curve}
