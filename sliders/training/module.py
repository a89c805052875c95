"""The one training loop, for every model family, loss and source of states."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.reading import check_read, short
from sliders.batch import repeat, widened
from sliders.concept import Concept
from sliders.errors import SliderError, SliderWarning
from sliders.formats.metadata import describe
from sliders.losses.erasure import AbstractLoss, Prediction, progress
from sliders.losses.preservation import Preservation
from sliders.runtime.adapter import Adapter
from sliders.teacher.answers import AnswerCache
from sliders.teacher.teacher import Teacher
from sliders.training.checks import base_precision, check_number, check_optimizer, check_trainer
from sliders.training.data import ConceptData, StepBatch
from sliders.training.states import StateSource


class SliderModule(L.LightningModule):
    """Trains one slider on a frozen model.

    Args:
        backbone: the model.
        loss: the formula's distance, with its strength eta.
        states: where the states come from.
        optimizer: of the slider's factors.
        preservation: weighs the prompts that must not move.
        targets: layers that the slider may change: names of the backbone's groups, or regular expressions.
        rank: of each layer's update.
        alpha: the update is ``alpha / rank * B @ A``; the default is the rank.
        lr_scheduler: of the learning rate, a step at a time; none if not given.
    """

    def __init__(
        self,
        backbone: AbstractBackbone,
        loss: AbstractLoss,
        states: StateSource,
        optimizer: OptimizerCallable,
        preservation: Preservation | None = None,
        targets: Sequence[str] = ("noxattn",),
        rank: int = 4,
        alpha: float | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise SliderError(f"model.rank is {rank}; it must be at least 1")
        if not targets:
            raise SliderError("model.targets is empty, so that nothing is trained; name a group of layers")
        check_number("model.alpha", rank if alpha is None else alpha, above_0=True)
        if loss.space != backbone.space:
            raise SliderError(
                f"model.loss is {type(loss).__name__}, which compares {loss.space}, but {type(backbone).__name__} "
                f"predicts {backbone.space} here; choose a loss for these"
            )
        states.model(backbone)
        self.backbone, self.loss, self.states = backbone, loss, states
        self.preservation = preservation or Preservation()
        self.targets, self.rank, self.alpha = list(targets), rank, float(rank if alpha is None else alpha)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.adapter: Adapter | None = None
        self.teacher: Teacher | None = None
        self.answers: AnswerCache | None = None  # shared with other trainings on this backbone, if there are any
        self.measured: dict[str, str] = {}
        self.strict_loading = False
        self._dial = torch.zeros(0)  # of the step's rows
        self._checked = False  # whether the first answers teach anything
        self.settings: dict[str, Any] | None = None  # what the run was set to, for a checkpoint to say
        self._began, self._seconds = 0.0, 0.0  # of the training, pictures of probes included
        self._before = {"seconds": 0.0, "teacher_evaluations": 0}  # spent by earlier processes of a resumed run

    def configure_model(self) -> None:
        if self.adapter is None:
            with torch.device("cpu"):  # not the trainer's: the model knows where it goes, and factors begin alike
                self.backbone.load()
                names = self.backbone.select_targets(self.targets)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.concept_data.seed)
                    self.adapter = Adapter(self.backbone, names, self.rank, self.alpha)

    @property
    def concept_data(self) -> ConceptData:
        """The run's data module, which holds the concept."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ConceptData):
            raise SliderError("train a SliderModule with a ConceptData as the trainer's datamodule")
        return data

    @property
    def concept(self) -> Concept:
        """The concept in the words for this kind of model."""
        return self.concept_data.concept.worded(self.backbone.modality)

    def setup(self, stage: str) -> None:
        _ = self.concept  # a concept without words for this model should be known before the weights are read
        check_trainer(self.trainer)
        self.place(self.trainer)
        check_optimizer(self.trainer, self.optimizer, self.lr_scheduler)

    def place(self, trainer: L.Trainer) -> None:
        """Let the model be read for the trainer's device and precision, before it is.

        Raises:
            SliderError: it was given another one, or a precision that does not go with the trainer's.
        """
        base_precision(trainer, self.backbone)
        self.backbone.placement = self.backbone.placement.on_trainers(trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        self.backbone.eval()
        self._began = time.monotonic()
        assert self.adapter is not None
        concept = self.concept
        asked = [prompt for target, *sides in concept.in_contexts() for side in ([target], *sides) for prompt in side]
        assert not isinstance(concept.preserve, Path | str)  # files have been read
        check_read(self.backbone, [*asked, *(concept.preserve or ())])
        with self.trainer.precision_plugin.forward_context():  # what teacher and student read is computed alike
            self.teacher = Teacher(self.backbone, concept, self.adapter, self.answers)
        self._checked = False
        for prompt in self.teacher.contradictions():
            text = f"concept {concept.name!r}: {short(prompt)} is to be preserved, but is a target that is to be moved"
            warnings.warn(text, SliderWarning, stacklevel=2)
        self.teacher.evaluations += self._before["teacher_evaluations"]

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        assert self.adapter is not None
        assert self.teacher is not None
        answered = self.states.draw(self.teacher, self.adapter, batch)
        signs = self.concept_data.signs
        times = len(signs)
        dial = torch.cat([sign * batch.magnitudes for sign in signs]).to(self.device)
        self._dial = dial
        with self.adapter.dial(dial):
            student = self.backbone.predict(
                repeat(answered.state, times), self.teacher.targets(answered.question.repeat(times))
            )
        prediction = Prediction(widened(student), **repeat(answered.answers(), times), dial=dial)
        if not self._checked:
            self._check(prediction)
        loss = self.preservation(self.loss(prediction), batch.preserved.repeat(times).to(dial.device))
        if not loss.isfinite():
            raise SliderError(
                f"the loss is {float(loss):g} in step {batch.step}, so that nothing more can be learnt; lower "
                "model.optimizer.lr or model.loss.eta, or train in another trainer.precision"
            )
        effect, stray = progress(prediction, self.loss)
        self.log_dict({"loss": loss, "effect": effect, "stray": stray}, prog_bar=True, batch_size=len(batch.seeds))
        self._seconds = self._before["seconds"] + time.monotonic() - self._began
        return loss

    def _check(self, prediction: Prediction) -> None:
        """Of the first answers: there is something to learn.

        Raises:
            SliderError: there is not.
        """
        assert self.teacher is not None
        self.teacher.check_directions()
        moved = prediction.direction.flatten(1).any(1)
        if moved.any() and torch.equal(self.loss.target(prediction)[moved], prediction.base[moved]):
            raise SliderError(
                f"{type(self.loss).__name__} wants of every state what the model says already; change model.loss (eta "
                "higher, plausible lower)"
            )
        if prediction.weight is not None and not prediction.weight.any():
            raise SliderError("every position of the states weighs 0, so that nothing is learnt; change model.states")
        self._checked = True

    def check_learnt(self) -> None:
        """Of a training that has ended.

        Raises:
            SliderError: it left the slider as it was at the beginning, or broken.
        """
        assert self.adapter is not None
        if self.adapter.is_identity():
            raise SliderError(
                f"nothing was learnt in {self.global_step} steps: the slider is 0 in every layer, so that no file is "
                "written; train longer or with a higher model.optimizer.lr"
            )
        if not all(factor.isfinite().all() for factor in self.adapter.parameters()):
            raise SliderError(
                f"the slider is not finite after {self.global_step} steps, so that no file is written; lower "
                "model.optimizer.lr"
            )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        assert self.adapter is not None
        with self.adapter.dial(self._dial, again=True):  # checkpointing computes layers anew, at the same dial
            super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        assert self.adapter is not None
        optimizer = self.optimizer(list(self.adapter.parameters()))
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def slider(self) -> Slider:
        """The slider as it is now, with what is known of it."""
        assert self.adapter is not None
        concept = self.concept_data.concept
        known = describe(
            concept=concept,
            base_model=self.backbone.base_model,
            base_class=self.backbone.class_path,
            base_settings=self.backbone.settings,
            fingerprint=self.backbone.fingerprint({name.partition(".")[0] for name in self.adapter.modules}),
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
            eta=self.loss.eta,
            training={
                "steps": self.global_step,
                **self._spent() | {"seconds": round(self._seconds, 1)},
                "seed": self.concept_data.seed,
                "signs": self.concept_data.signs,
            },
        )
        return Slider(concept.name, self.adapter.update(), known | self.measured)

    def _spent(self) -> dict[str, Any]:
        """What the slider has cost so far."""
        return {"seconds": self._seconds, "teacher_evaluations": self.teacher.evaluations if self.teacher else 0}

    def detach_slider(self) -> None:
        """Take the slider off the model, which is then the base again."""
        if self.adapter is not None:
            self.adapter.remove()
            self.adapter = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.adapter is not None
        checkpoint["state_dict"] = {}
        checkpoint["slider"] = self.adapter.state()
        checkpoint["states"] = self.states.state_dict()
        checkpoint["spent"] = self._spent()
        if self.settings is not None:
            checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.configure_model()
        assert self.adapter is not None
        have = {name: tuple(factor.shape) for name, factor in self.adapter.state().items()}
        if {name: tuple(factor.shape) for name, factor in checkpoint.get("slider", {}).items()} != have:
            raise SliderError(
                "the checkpoint's slider does not fit this configuration: resume with the model, targets and rank "
                "that it was started with"
            )
        self.adapter.load_state(checkpoint["slider"])
        self.states.load_state_dict(checkpoint["states"])
        self._before |= checkpoint.get("spent", {})
        self._seconds = self._before["seconds"]
