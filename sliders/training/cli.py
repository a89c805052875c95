"""The command line of a training run."""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from sliders.concept import Concept
from sliders.console import hush_libraries
from sliders.errors import SliderError, unwrapped
from sliders.paths import called_here
from sliders.shipped import DEFAULT_CONFIG, shipped, with_files
from sliders.training.callbacks import SliderWriter
from sliders.training.checks import check_made, refused_in_a_line
from sliders.training.data import ConceptData
from sliders.training.module import SliderModule

BASE_CONFIG = shipped("configs/base.yaml")
_DESCRIPTION = """Train a slider.

--config takes a file or the name of a config that comes with the package, such as smile or smollm2/sentiment; without
one it is smile. Paths in a config are relative to the config, paths given here to the working directory. All that the
run writes is in runs/NAME/. The flags most used: --name, --runs, --data.concept, --model.rank, --model.targets,
--model.loss.eta, --model.backbone.model, --trainer.max_steps, --trainer.accelerator, --ckpt_path."""


def _check(checkpoint: Path) -> None:
    """Refuse a file that is no checkpoint of a slider's training, before anything else is done."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise SliderError(f"--ckpt_path {checkpoint} is not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or "slider" not in content:
        raise SliderError(f"--ckpt_path {checkpoint} is not a checkpoint of a slider's training")


def _whole(arguments: Sequence[str]) -> list[str]:
    """Arguments with the files of configs that are named, and with a config where nothing says what to train."""
    says = ("--config", "-c", "--data", "--data.concept")
    if not any(argument.partition("=")[0] in says or argument.startswith("--data.concept.") for argument in arguments):
        arguments = ["--config", DEFAULT_CONFIG, *arguments]
    return with_files(arguments)


class SliderCLI(LightningCLI):
    """`LightningCLI` with a run folder: everything of run NAME goes to `runs/NAME/`."""

    def __init__(self, args: list[str] | None = None, **kwargs: Any) -> None:
        with called_here():
            self._parse_and_make(_whole(sys.argv[1:] if args is None else args), **kwargs)

    def _parse_and_make(self, args: list[str], **kwargs: Any) -> None:
        super().__init__(
            SliderModule,
            ConceptData,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"default_config_files": [str(BASE_CONFIG)], "description": _DESCRIPTION},
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="of the run; the concept's unless given")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that runs are kept in")
        parser.add_argument("--ckpt_path", type=Path | None, default=None, help="resume from this checkpoint")
        parser.add_lightning_class_args(SliderWriter, "slider_file")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "last",
                "checkpoint.every_n_train_steps": 20,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": True,
            }
        )

    def before_instantiate_classes(self) -> None:
        config = self.config
        concept = config.data.concept
        if isinstance(concept, str | Path):
            concept = Concept.load(Path(concept))
        folder = Path(config.runs) / (config.name or concept.name)
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(folder / "checkpoints")

    def instantiate_classes(self) -> None:
        with unwrapped():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        folder = Path(self.config.trainer.default_root_dir)
        if self.config.trainer.logger is None:
            kwargs["logger"] = TensorBoardLogger(folder.parent, name=folder.name, version="")
        with refused_in_a_line():
            trainer = super().instantiate_trainer(**kwargs)
        check_made(self.config.trainer.precision, trainer)
        return trainer

    def fit(self) -> None:
        """Train, from the beginning or from `--ckpt_path`."""
        checkpoint = self.config.ckpt_path
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise SliderError(f"--ckpt_path {checkpoint}: there is no such file")
        if checkpoint is not None:
            _check(Path(checkpoint))
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)


def main(arguments: list[str] | None = None) -> None:
    """Train; the arguments are those of the process unless given."""
    hush_libraries()
    try:
        SliderCLI(arguments).fit()
    except SliderError as error:
        sys.exit(f"error: {error}")
