"""Times that are compared: taken in turn in one run, and their medians."""

import statistics
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from sliders.backbones.base import AbstractBackbone
from sliders.batch import TensorBatch, rows

Clock = Callable[[], float]
"""Seconds since some moment."""


def clock(of_process: bool) -> Clock:
    """Wall time, or the processor's time of this process, which other processes disturb less (use one thread)."""
    return time.process_time if of_process else time.perf_counter


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, now: Clock, warm: bool = True
) -> dict[str, float]:
    """The median seconds of each, all of them once in every round, so that a slow moment is slow for all."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + warm):
        for name, run in candidates.items():
            began = now()
            run()
            if round_ >= warm:
                seconds[name].append(now() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Evaluations:
    """Counts the rows that a backbone predicts, while it is on."""

    def __init__(self, backbone: AbstractBackbone) -> None:
        self.rows, self.on = 0, True
        predict = backbone.predict

        def counting(state: TensorBatch, conditioning: TensorBatch) -> Tensor:
            self.rows += rows(state) if self.on else 0
            return predict(state, conditioning)

        backbone.predict = counting  # pyright: ignore[reportAttributeAccessIssue]
        self._backbone = backbone

    def remove(self) -> None:
        """Count no more."""
        del self._backbone.predict
