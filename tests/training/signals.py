"""A callback that stops its own process, and one that reports what it cannot."""

import os
import signal
from typing import Any

import lightning as L

from sliders.runtime.adapter import Adapter
from sliders.training.callbacks import AbstractReport
from sliders.training.module import SliderModule


class SignalAt(L.Callback):
    """Sends this process a signal in a step.

    Args:
        step: in which it comes, counted from 0.
        name: of the signal.
        times: how often it comes.
    """

    def __init__(self, step: int, name: str = "SIGINT", times: int = 1) -> None:
        self.step, self.name, self.times = step, name, times

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step and self.times:
            times, self.times = self.times, 0
            for _ in range(times):
                os.kill(os.getpid(), signal.Signals[self.name])


class BrokenReport(AbstractReport):
    """Fails, with an error of this package's, of a full disk, or of its own.

    Args:
        kind: of the error.
    """

    def __init__(self, kind: str = "OSError") -> None:
        self.kind = kind

    def report(self, trainer: L.Trainer, module: SliderModule, adapter: Adapter) -> None:
        if self.kind == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        raise {"OSError": OSError, "ImportError": ImportError}.get(self.kind, RuntimeError)("no pictures today")
