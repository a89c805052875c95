"""A training in one call, of a model that may be in memory: the command's own."""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from sliders.algebra.slider import Slider
from sliders.backbones.base import AbstractBackbone
from sliders.backbones.in_memory import use
from sliders.concept import Concept
from sliders.console import hushed_training
from sliders.errors import SliderError, one_line, unwrapped
from sliders.losses.erasure import AbstractLoss
from sliders.training.checks import check_made, refused_in_a_line
from sliders.training.cli import SliderCLI
from sliders.training.module import SliderModule
from sliders.training.states import StateSource


class _Settings(SliderCLI):
    """What the command would be told, with nothing made of it yet."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.exit_on_error = False

    def instantiate_classes(self) -> None:
        pass


def train(
    model: Any,
    concept: Concept | Mapping[str, Any] | Path | str,
    tokenizer: Any = None,
    *,
    config: Path | str | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    steps: int | None = None,
    eta: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    preserve_batch_size: int | None = None,
    magnitude: tuple[float, float] | None = None,
    signs: Sequence[int] | None = None,
    seed: int | None = None,
    loss: AbstractLoss | None = None,
    states: StateSource | None = None,
    callbacks: Sequence[L.Callback] = (),
    progress: bool = True,
    out: Path | str | None = None,
) -> Slider:
    """Train a slider: the same as the command gives with the same settings, bit for bit.

    The model trains where it is, and is the base again afterwards, with its weights frozen.  Nothing is written
    without ``out``.

    Args:
        model: a backbone, a pipeline of diffusers, or a language model of transformers with its tokenizer.
        concept: what to train on: a `Concept`, a mapping with its fields, or a concept's YAML file.
        tokenizer: of a language model.
        config: what is not said here is taken from it: a YAML file, or the name of a config that comes with the
            package; one for the model's family unless given.  Its backbone, callbacks and places are not.
        rank: of each layer's update.
        alpha: the update is ``alpha / rank * B @ A``; the rank unless given.
        targets: layers that the slider may change: names of the backbone's groups, or regular expressions.
        steps: of the optimizer.
        eta: how far dial 1 moves the prediction, in units of the direction.
        lr: learning rate of the config's optimizer.
        batch_size: states of a step; each is trained at all signs.
        preserve_batch_size: further states of a step under the concept's prompts to preserve.
        magnitude: the range that each state's dial is drawn from, without its sign.
        signs: of the dial in every step: both for a slider, ``[1]`` for an erasure.
        seed: of all that is random.
        loss: in place of the config's.
        states: where they come from, in place of the config's.
        callbacks: of Lightning, called during the training.
        progress: show a bar with the loss, and how much of what is asked for has been learnt.
        out: folder to write the slider into, in the layout of the model's own library.

    Raises:
        SliderError: a setting is wrong, the concept has no words for the model, or nothing was learnt.
    """
    backbone, what = use(model, tokenizer), _concept(concept)
    if loss is not None and eta is not None:
        raise SliderError("eta is given beside a loss, which has its own; leave out one of them")
    said = {
        "seed_everything": False,  # the caller's state of chance is left alone
        "trainer.max_steps": steps,
        "trainer.enable_progress_bar": progress,
        "model.rank": rank,
        "model.alpha": alpha,
        "model.targets": None if targets is None else list(targets),
        "model.loss.init_args.eta": eta,
        "model.optimizer.init_args.lr": lr,
        "data.batch_size": batch_size,
        "data.preserve_batch_size": preserve_batch_size,
        "data.magnitude": None if magnitude is None else list(magnitude),
        "data.signs": None if signs is None else list(signs),
        "data.seed": seed,
    }
    with hushed_training():
        parts = _parts(config or backbone.recipe, said, what)
        module = SliderModule(
            backbone,
            loss or parts.model.loss,
            states or parts.model.states,
            parts.model.optimizer,
            parts.model.preservation,
            parts.model.targets,
            parts.model.rank,
            parts.model.alpha,
            parts.model.lr_scheduler,
        )
        trainer = _trainer(dict(parts.trainer), backbone, callbacks)
        with _put_back(module, trainer):
            trainer.fit(module, datamodule=parts.data)
            module.check_learnt()
            slider = module.slider()
            if out is not None:
                backbone.save_slider(slider, Path(out))
    return slider


def _concept(said: Concept | Mapping[str, Any] | Path | str) -> Concept:
    if isinstance(said, Concept):
        return said
    if isinstance(said, Mapping):
        return Concept.from_dict(dict(said), folder=Path())
    return Concept.load(Path(said))


def _parts(config: Path | str, said: Mapping[str, Any], concept: Concept) -> Any:
    """What the command makes of a config and flags: the module, the data, and the arguments of the trainer.

    Raises:
        SliderError: there is no such config, or a value is none of its flag's.
    """
    flags = [f"--{flag}={json.dumps(value)}" for flag, value in said.items() if value is not None]
    own = ["--trainer.callbacks=null", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    try:
        settings = _Settings(["--config", str(config), *own, *flags])
        settings.config.data.concept = concept
        with unwrapped():
            return settings.parser.instantiate_classes(settings.config)
    except ArgumentError as error:
        raise SliderError(f"train: {one_line(error)}") from error


def _trainer(arguments: dict[str, Any], backbone: AbstractBackbone, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Lightning's, on the device where the model is; where it was not read yet, on the best there is."""
    here = {"accelerator": "auto", "devices": 1}
    if next(backbone.parameters(), None) is not None:
        device = backbone.device
        here = {"accelerator": device.type, "devices": [device.index or 0] if device.type == "cuda" else 1}
    with refused_in_a_line():
        trainer = L.Trainer(**{**arguments, **here, "callbacks": list(callbacks)})
    check_made(arguments["precision"], trainer)
    return trainer


@contextmanager
def _put_back(module: SliderModule, trainer: L.Trainer) -> Iterator[None]:
    """Leave the model as it was: without the slider, and where it was trained; Lightning moves it to the CPU.

    Of Ctrl-C Lightning makes the end of the process, in which no further one is heard; here it is Ctrl-C again.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None
    finally:
        module.detach_slider()
        module.backbone.to(trainer.strategy.root_device)
