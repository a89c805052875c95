"""What a run shows while it goes and leaves when it ends."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from sliders.console import say
from sliders.errors import SliderError, check_at_least_1
from sliders.evaluation.settings import Settings
from sliders.evaluation.watching import Watch
from sliders.media.base import medium_of
from sliders.resources.paths import Source
from sliders.runtime.adapter import Adapter
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


def _parts(pl_module: L.LightningModule) -> tuple[SliderModule, Adapter]:
    """The module, and the slider on it, which is there from the first step to the last."""
    assert isinstance(pl_module, SliderModule)
    assert pl_module.adapter is not None
    return pl_module, pl_module.adapter


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


def _watch(
    module: SliderModule, usual: Literal["probing", "reporting"], judge: Source | Path | None, how: Settings | None,
    **given: Any,
) -> Watch[Any, Any]:  # fmt: skip
    """The medium's watch for a callback, before the model is read, so that what cannot be measured is known then."""
    medium = medium_of(module.backbone)
    return medium.watch(module.concept, medium.plan(getattr(medium, usual), how, **given), judge)


class Probe(AbstractProbe):
    """Says early whether a run learns: a few pictures or responses at dials -1, 0, 1, and what reads them.

    The progress bar and the logger get the concept's effect, which is the difference of what is read between dials 1
    and -1, and of pictures the drift of everything else; TensorBoard gets the pictures or texts.

    Args:
        judge: of pictures: file of the attribute judge, or its name; without it they are made and not read.
        every: steps between two probes.
        scenes: pictures or responses at each dial; the medium's own number unless given.
        how: they are sampled; the medium's own way unless given.
    """

    def __init__(
        self,
        judge: Source | Path | None = None,
        every: int = 50,
        scenes: int | None = None,
        how: Settings | None = None,
    ) -> None:
        super().__init__(every)
        self.judge, self.scenes, self.how = judge, scenes, how
        self._watch: Watch[Any, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        self._watch = _watch(pl_module, "probing", self.judge, self.how, scenes=self.scenes)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        assert self._watch is not None
        self._watch.check(pl_module.backbone)

    def look(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        assert self._watch is not None
        board = trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None
        found = self._watch.look(module.backbone, adapter.dial, board, trainer.global_step)
        module.log_dict(dict(found), prog_bar=True)


class FinalReport(AbstractReport):
    """Evaluates the finished slider, writes what it makes and the numbers, and says how to use it.

    Args:
        judge: of pictures: file of the attribute judge, or its name; without it there is a strip and no numbers.
        dials: positions, 0 among them; the medium's own unless given.
        scenes: pictures or responses at each position; the medium's own number unless given.
        how: they are sampled; the medium's own way unless given.
        oracle: of pictures: also evaluate the training-free oracle on the same scenes.
        show: of text: responses that are printed.
    """

    def __init__(
        self,
        judge: Source | Path | None = None,
        dials: Sequence[float] | None = None,
        scenes: int | None = None,
        how: Settings | None = None,
        oracle: bool = False,
        show: int = 2,
    ) -> None:
        if dials is not None and 0 not in dials:
            raise SliderError(f"FinalReport.dials is {list(dials)}; 0, the base, must be among them")
        self.dials = None if dials is None else [float(dial) for dial in dials]
        self.judge, self.scenes, self.how, self.oracle, self.show = judge, scenes, how, oracle, show
        self._watch: Watch[Any, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SliderModule)
        given = {"dials": self.dials, "scenes": self.scenes, "oracle": self.oracle, "samples": self.show}
        self._watch = _watch(pl_module, "reporting", self.judge, self.how, **given)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SliderModule)
        assert self._watch is not None
        self._watch.check(pl_module.backbone)

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        assert self._watch is not None
        finished = self._watch.report(module.backbone, adapter.dial, module.slider(), run_folder(trainer))
        module.measured = dict(finished.summary)
        file = write_slider(trainer, module)
        usage = module.backbone.usage(module.slider(), file)
        say("", *finished.shown, f"slider   {file}")
        say(
            *[f"{what:9s}{place}" for what, place in finished.files.items()],
            f"turn it  sliders generate {finished.prompt!r} --slider {file} --dial 1",
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
