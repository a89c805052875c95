"""What a run is told that would train nothing, or that does not fit it: said in one line before a weight is read."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sliders.backbones.base import AbstractBackbone
from sliders.backbones.precision import Precision as BasePrecision
from sliders.errors import SliderError, one_line

_BASES: dict[str, BasePrecision] = {"bf16-true": "bfloat16", "16-true": "float16"}


def check_number(name: str, value: float, above_0: bool = False) -> None:
    """Of a factor that all of a training is multiplied by.

    Raises:
        SliderError: it is 0, infinite or none, or below 0 where it may not be.
    """
    if not math.isfinite(value) or value == 0 or (above_0 and value < 0):
        raise SliderError(f"{name} is {value:g}; give a number {'above' if above_0 else 'other than'} 0")


def base_precision(trainer: L.Trainer, backbone: AbstractBackbone) -> None:
    """Let the model be read in the precision that the trainer asks for, and what is trained stay in float32.

    With ``bf16-true`` and ``16-true`` Lightning would hold the slider's factors in that precision as well, which lose
    small updates, and make random numbers in it; here it is the base's alone.

    Raises:
        SliderError: no model is run in that precision, or the model was told or read in another.
    """
    plugin = trainer.precision_plugin
    if isinstance(plugin, HalfPrecision):
        wanted, told = _BASES[plugin.precision], backbone.placement.dtype
        if told not in ("auto", wanted):
            raise SliderError(
                f"trainer.precision is {plugin.precision}, but backbone.dtype is {told}; leave out one of them"
            )
        backbone.place(None, wanted)
        trainer.strategy.precision_plugin = Precision()
        if next(backbone.parameters(), None) is not None and backbone.dtype != getattr(torch, wanted):
            raise SliderError(
                f"trainer.precision is {plugin.precision}, but the model was read in {backbone.dtype} before"
            )
    elif type(plugin) not in (Precision, MixedPrecision):
        raise SliderError(
            f"trainer.precision is {plugin.precision}, in which no model is run here; give 32-true, bf16-true, "
            "16-true, bf16-mixed or 16-mixed"
        )


@contextmanager
def refused_in_a_line() -> Iterator[None]:
    """Say in a line what Lightning does not want, or does not find, to make a trainer of."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, ValueError, TypeError, RuntimeError) as error:
        raise SliderError(f"trainer: {one_line(error)}") from error


def check_made(asked: object, trainer: L.Trainer) -> None:
    """Of a trainer, before it starts processes.

    Args:
        asked: the precision that it was made for.
        trainer: as it was made.

    Raises:
        SliderError: it has another precision (Lightning takes bf16-mixed for 16-mixed on the CPU), or would train in
            a way that no slider is trained in.
    """
    strategy = trainer.strategy
    spawned = isinstance(strategy.launcher, _MultiProcessingLauncher)  # its processes would be given the model by copy
    if spawned or not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise SliderError(
            f"trainer.strategy is {type(strategy).__name__}{' with processes by copy' * spawned}; "
            "a slider is trained on one device, or on several with ddp"
        )
    if asked in ("16-mixed", "16", 16) and trainer.precision != "16-mixed":
        raise SliderError(
            f"trainer.precision is {asked}, which needs an accelerator; on the CPU give bf16-mixed or 32-true"
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse settings of Lightning's that train nothing, or do nothing to a training here.

    Raises:
        SliderError: one is set; it says what to do instead.
    """
    limited = "a run's length is trainer.max_steps; leave it out"
    told: Any = trainer  # Lightning sets some of these by name
    refused = [
        ("fast_dev_run", told.fast_dev_run, False, "give --trainer.max_steps 1 and a --name of its own"),
        ("overfit_batches", told.overfit_batches, 0, "every step draws from the states; leave it out"),
        ("limit_train_batches", trainer.limit_train_batches, 1.0, limited),
        ("max_epochs", trainer.max_epochs == 0, False, limited),
    ]
    for name, value, fine, instead in refused:
        if value != fine:
            raise SliderError(f"trainer.{name} is {0 if value is True and name == 'max_epochs' else value}; {instead}")
    if trainer.max_steps < 1:
        raise SliderError("trainer.max_steps says how long a run is; set it to at least 1")


def check_optimizer(
    trainer: L.Trainer,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    scheduler: Callable[[Optimizer], Any] | None,
) -> None:
    """Try an optimizer and its scheduler on a parameter of nothing.

    Raises:
        SliderError: it cannot be made, its learning rate is 0 in every step, or the trainer cannot use it.
    """
    try:
        trial = optimizer([nn.Parameter(torch.zeros(1))])
        going = None if scheduler is None else scheduler(trial)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SliderError(f"model.optimizer or model.lr_scheduler: {error}") from error
    clipped = trainer.gradient_clip_val and isinstance(trainer.precision_plugin, MixedPrecision)
    if clipped and _optimizer_handles_unscaling(trial):
        raise SliderError(
            f"trainer.gradient_clip_val does not go with a fused optimizer in {trainer.precision}; give "
            "--model.optimizer.fused false, or another precision"
        )
    if isinstance(going, ReduceLROnPlateau) or not isinstance(going, LRScheduler | None):
        raise SliderError(f"model.lr_scheduler is {type(going).__name__}; give one that goes by steps alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trial makes no steps of the optimizer
        rates = [math.nan]
        for _ in range(trainer.max_steps):
            rates = [float(group["lr"]) for group in trial.param_groups]
            if not all(map(math.isfinite, rates)):
                break
            if any(rates):
                return
            if going is None:
                break
            going.step()
    raise SliderError(f"the learning rate is {rates[0]:g} in every step, which trains nothing; set model.optimizer.lr")
