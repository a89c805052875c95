"""Checkpoints that are whole, of whole steps, with the one before."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from sliders.console import say
from sliders.errors import SliderError
from sliders.files import replacing
from sliders.training import stopping


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint is kept that stood at a place before."""
    return checkpoint.with_name(f"{checkpoint.stem}-previous{checkpoint.suffix}")


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there; the one that was there stays as `previous` of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content, place = io.BytesIO(), Path(path)
        torch.save(checkpoint, content)
        with stopping.writing(), replacing(place) as new:
            with new.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if place.is_file():
                with replacing(previous(place)) as older:
                    try:
                        older.hardlink_to(place)
                    except OSError:  # a file system without links
                        shutil.copyfile(place, older)


class RunCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that also keeps the last step of a run, and the step after which a signal stops it.

    It looks at steps of the optimizer only: a checkpoint does not hold gradients that are being gathered.
    """

    _seen = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._seen = trainer.global_step
        stopping.begin_steps()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        asked = trainer.strategy.reduce_boolean_decision(stopping.asked(), all=False)
        if asked or trainer.should_stop or trainer.global_step >= trainer.max_steps:
            self._save_this_step(trainer)
        if asked:
            stopping.stop(trainer.is_global_zero)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        stopping.end_steps()

    def _save_this_step(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)


def read(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        SliderError: there is none, it is broken, or it is of something else.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:  # torch does not look at the check sums
            damaged = archive.testzip()
        if damaged is not None:
            raise SliderError(f"{checkpoint} is not a readable checkpoint: {damaged} in it is damaged")
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise SliderError(f"{checkpoint}: there is no such file") from error
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise SliderError(f"{checkpoint} is not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or "slider" not in content or "global_step" not in content:
        raise SliderError(f"{checkpoint} is not a checkpoint of a slider's training")
    return content


def read_newest(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint and its content, or where it is broken or gone, the one before it, of which a line is said.

    Raises:
        SliderError: neither can be read; the message is about the first.
    """
    try:
        return checkpoint, read(checkpoint)
    except SliderError as error:
        older = previous(checkpoint)
        try:
            content = read(older)
        except SliderError:
            raise error from None
        say(f"{error}; going on from {older}, step {content['global_step']}")
        return older, content
