"""What a run shows while it goes and leaves when it ends."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from sliders.backbones.base import DiffusionBackbone
from sliders.console import say
from sliders.errors import SliderError, check_at_least_1
from sliders.evaluation.pictures.dose import dose_response
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.evaluation.pictures.report import evaluate_dial, heldout_prompts, load_judge, write_report
from sliders.evaluation.pictures.sampling import Sampling, check_sampling, sample_dial, scenes
from sliders.report.drawing import strip
from sliders.resources.paths import Source
from sliders.runtime.adapter import Adapter
from sliders.runtime.attach import attach
from sliders.training import stopping
from sliders.training.module import SliderModule


def run_folder(trainer: L.Trainer) -> Path:
    """`runs/<name>/`, where a run keeps everything."""
    return Path(trainer.default_root_dir)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """The trainer's callbacks, in the order in which they are called."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def write_slider(trainer: L.Trainer, module: SliderModule) -> Path:
    """Write the slider into the run's folder from the main process; returns its file or folder."""
    slider = module.slider()
    with stopping.writing():
        return module.backbone.save_slider(slider, run_folder(trainer))


def denoiser(module: SliderModule) -> DiffusionBackbone:
    """The module's model, if it makes pictures."""
    if not isinstance(module.backbone, DiffusionBackbone):
        raise SliderError(f"{type(module.backbone).__name__} makes no pictures; use TextProbe and TextReport")
    return module.backbone


def _parts(pl_module: L.LightningModule) -> tuple[SliderModule, Adapter]:
    """The module, and the slider on it, which is there from the first step to the last."""
    assert isinstance(pl_module, SliderModule)
    assert pl_module.adapter is not None
    return pl_module, pl_module.adapter


def _early(module: SliderModule, judge: Source | Path | None, pictures: int) -> AttributeJudge | None:
    """The judge, before the training, so that what cannot be measured is known then.

    Raises:
        SliderError: the model makes no pictures, there is no such judge, it does not know the concept's measure, or
            there are no scenes.
    """
    denoiser(module)
    scenes(heldout_prompts(module.concept), pictures)
    return None if judge is None else load_judge(judge, module.concept)


class AbstractProbe(ABC, L.Callback):
    """Looks at the slider at an interval, in the main process.

    Args:
        every: steps of the optimizer between two looks, at least 1.

    Raises:
        SliderError: it is below 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        check_at_least_1(type(self).__name__, self, "every")
        self._last = 0  # the step of the last look, or where the training began

    @abstractmethod
    def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        """Measure and log."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step  # where gradients are accumulated, the same after several batches
        due = step % self.every == 0 and step != self._last
        if due and trainer.is_global_zero and not stopping.asked():
            self._last = step
            self.look(trainer, *_parts(pl_module))


class AbstractReport(ABC, L.Callback):
    """Says once, from the main process, what a training that came to its end has made.

    Raises:
        SliderError: it cannot be made; the slider is written by then.
    """

    @abstractmethod
    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        """Measure, write and print."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.interrupted:
            module, adapter = _parts(pl_module)
            module.check_learnt()
            try:
                self.report(trainer, module, adapter)
            except (SliderError, OSError, ImportError) as error:
                raise SliderError(
                    f"the slider is written into {run_folder(trainer)}, but {type(self).__name__} failed: {error}"
                ) from error


class SliderWriter(AbstractProbe):
    """Writes the slider file when training ends or is stopped, and on the way at an interval.

    It stands before the reports, so that what becomes of them does not touch the slider.

    Args:
        every: steps between two writings.

    Raises:
        SliderError: at the end, if nothing was learnt.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__(every)
        self._ended = False

    def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        write_slider(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = True
        assert isinstance(pl_module, SliderModule)
        pl_module.check_learnt()
        if trainer.is_global_zero:
            write_slider(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit) and trainer.global_step > 0
        if stopped and not self._ended and trainer.is_global_zero and isinstance(pl_module, SliderModule):
            try:
                pl_module.check_learnt()
            except SliderError as error:  # the way out is another one already
                say(f"no slider is written: {error}")
            else:
                write_slider(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where a resumed run had made all its steps before, Lightning trains nothing and ends nothing."""
        if self._ended or trainer.interrupted:
            return
        pl_module.to(trainer.strategy.root_device)
        for callback in callbacks_of(trainer):
            if isinstance(callback, SliderWriter | AbstractReport):
                callback.on_train_end(trainer, pl_module)


class Probe(AbstractProbe):
    """Says early whether a run learns: a few pictures at dials -1, 0, 1, read by the judge.

    The progress bar and the logger get the concept's effect (the difference of its probability between dials 1 and
    -1) and the drift of everything else; the logger gets the pictures.

    Args:
        judge: file of the attribute judge, or its name; without it only pictures are made.
        every: steps between two probes.
        pictures: scenes at each dial.
        sampling: how they are sampled.
    """

    dials = (-1.0, 0.0, 1.0)

    def __init__(
        self, judge: Source | Path | None = None, every: int = 50, pictures: int = 8, sampling: Sampling | None = None
    ) -> None:
        super().__init__(every)
        self.judge_file, self.pictures = judge, pictures
        self.sampling = sampling or Sampling(steps=12)
        self._judge: AttributeJudge | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        self._judge = _early(pl_module, self.judge_file, self.pictures)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        check_sampling(denoiser(pl_module), self.sampling)

    def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        concept = module.concept
        measure = concept.measure
        wanted = scenes(heldout_prompts(concept), self.pictures)
        pictures = sample_dial(denoiser(module), adapter.dial, wanted, self.dials, self.sampling)
        if self._judge is not None and measure is not None:
            dose = dose_response(self._judge, measure, pictures, self.dials)
            moved = {
                "probe_effect": dose.response[2] - dose.response[0],
                "probe_drift": max(d.change for d in dose.drift),
            }
            module.log_dict(moved, prog_bar=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            image = strip(pictures[:, :4], self.dials, [s.prompt for s in wanted[:4]], f"step {trainer.global_step}")
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            trainer.logger.experiment.add_image("strip", tensor, trainer.global_step)


class FinalReport(AbstractReport):
    """Evaluates the finished slider, writes its pictures and numbers, and says how to use it.

    Args:
        judge: file of the attribute judge, or its name; without it there is a strip and no numbers.
        dials: positions, 0 among them.
        pictures: scenes at each position.
        sampling: how they are sampled.
        oracle: also evaluate the training-free oracle on the same scenes.
    """

    def __init__(
        self,
        judge: Source | Path | None = None,
        dials: Sequence[float] = (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2),
        pictures: int = 16,
        sampling: Sampling | None = None,
        oracle: bool = False,
    ) -> None:
        if 0 not in dials:
            raise SliderError(f"FinalReport.dials is {list(dials)}; 0, the base, must be among them")
        self.judge_file, self.dials, self.pictures = judge, [float(d) for d in dials], pictures
        self.sampling, self.oracle = sampling or Sampling(), oracle

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        _early(pl_module, self.judge_file, self.pictures)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        check_sampling(denoiser(pl_module), self.sampling)

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        folder, concept = run_folder(trainer), module.concept
        slider = module.slider()
        with attach(denoiser(module), [slider]) as turned:  # folded, which the slider in training is not
            evaluation = evaluate_dial(
                denoiser(module),
                lambda positions: turned.turned({slider.name: positions}),
                concept,
                judge=AttributeJudge.load(self.judge_file) if self.judge_file else None,
                eta=module.loss.eta,
                dials=self.dials,
                pictures=self.pictures,
                how=self.sampling,
                with_oracle=self.oracle,
            )
        write_report(evaluation, folder)
        module.measured = evaluation.summary()
        file = write_slider(trainer, module)
        usage = module.backbone.usage(module.slider(), file)
        say("", *([evaluation.table()] if evaluation.dose else []))
        say(
            f"slider   {file}",
            f"strip    {folder / 'strip.png'}",
            f"turn it  sliders generate {concept.target!r} --slider {file} --dial 1",
            *[f"{'or' if k == 0 else '':9s}{line}" for k, line in enumerate(usage)],
        )


class BakeModel(L.Callback):
    """Writes the whole model with the slider merged into it at one dial: a permanent edit, `<run>/model/`.

    Args:
        dial: where the slider is merged.
    """

    def __init__(self, dial: float = 1.0) -> None:
        self.dial = dial

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        if not trainer.is_global_zero or trainer.interrupted:
            return
        edit = pl_module.slider().at(self.dial)
        pl_module.detach_slider()
        folder = run_folder(trainer) / "model"
        made = pl_module.backbone.export(folder, edit, replace=True)
        say(*made.lines(), f"model    {folder} (the slider merged at {self.dial:g})")
