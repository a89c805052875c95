"""The command line of a training run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionYesNo
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from sliders.concept import Concept
from sliders.console import hush_libraries, in_one_line, say
from sliders.errors import SliderError, unwrapped
from sliders.files import replacing
from sliders.resources.paths import called_here
from sliders.resources.shipped import DEFAULT_CONFIG, shipped, with_files
from sliders.training import renamed, stopping
from sliders.training.callbacks import SliderWriter, callbacks_of
from sliders.training.checkpoints import CheckpointFiles, RunCheckpoint
from sliders.training.checks import check_made, refused_in_a_line
from sliders.training.data import ConceptData
from sliders.training.folder import RunFolder, take_new, take_up
from sliders.training.module import SliderModule
from sliders.training.resume import check_same_run, how_to_go_on, read_checkpoint, started_by
from sliders.training.settings import resolved, settings

BASE_CONFIG = shipped("configs/base.yaml")
_DESCRIPTION = """Train a slider.

--config takes a file or the name of a config that comes with the package, such as smile or smollm2/sentiment; without
one it is smile. Paths in a config are relative to the config, paths given here to the working directory. All that the
run writes is in runs/NAME/. The flags most used: --name, --runs, --data.concept, --model.rank, --model.targets,
--model.loss.eta, --model.backbone.model, --trainer.max_steps, --trainer.accelerator, --ckpt_path."""


class RunConfig(SaveConfigCallback):
    """Begins a run's folder when the training begins: what is stale goes, and `config.yaml` appears.

    The config makes the same slider again, also where the run was resumed.
    """

    folder: RunFolder | None = None
    began = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        pass  # what cannot be loaded should leave nothing behind

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer)  # where all steps were made before

    def _begin(self, trainer: L.Trainer) -> None:
        if self.began or not trainer.is_global_zero:
            return
        self.began = True
        if self.folder is not None:
            self.folder.clear()
        config = self.config.clone()
        config.ckpt_path, config.overwrite = None, False
        with replacing(Path(trainer.default_root_dir) / self.config_filename) as new:
            self.parser.save(config, new, skip_none=False, multifile=self.multifile)


def _whole(arguments: Sequence[str]) -> list[str]:
    """Arguments with the files of configs that are named, and with a config where nothing says what to train."""
    says = ("--config", "-c", "--data", "--data.concept")
    if not any(argument.partition("=")[0] in says or argument.startswith("--data.concept.") for argument in arguments):
        arguments = ["--config", DEFAULT_CONFIG, *arguments]
    return with_files(arguments)


class SliderCLI(LightningCLI):
    """`LightningCLI` with a run folder: everything of run NAME goes to `runs/NAME/`, of a second one to `runs/NAME-2/`.

    Args:
        args: of the command line; those that the process was started with unless given.
        folder: where the run is kept; the caller sees to it that nobody else writes there.
        command: the words that start such a run, to say how a stopped one goes on.
    """

    def __init__(
        self,
        args: list[str] | None = None,
        folder: Path | None = None,
        command: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self._given = folder
        self._command = command
        self._folder: RunFolder | None = None
        self._began: RunConfig | None = None
        self._checkpoint: tuple[Path, dict[str, Any]] | None = None
        with called_here():
            self._parse_and_make(_whole(sys.argv[1:] if args is None else args), **kwargs)

    def _parse_and_make(self, args: list[str], **kwargs: Any) -> None:
        super().__init__(
            SliderModule,
            ConceptData,
            run=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            parser_kwargs={
                "default_config_files": [str(BASE_CONFIG)],
                "description": _DESCRIPTION,
                "parser_mode": renamed.MODE,
            },
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="of the run; the concept's unless given")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that runs are kept in")
        parser.add_argument(
            "--ckpt_path",
            type=Path | None,
            default=None,
            help="resume from this checkpoint, in its run's folder unless --runs names another place",
        )
        parser.add_argument(
            "--overwrite", action=ActionYesNo, default=False, help="replace an earlier run of the same name"
        )
        parser.add_lightning_class_args(SliderWriter, "slider_file")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
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
        self._place(self._given or Path(config.runs) / (config.name or concept.name))

    def _place(self, folder: Path) -> None:
        self.config.trainer.default_root_dir = str(folder)
        self.config.checkpoint.dirpath = str(folder / "checkpoints")

    def instantiate_classes(self) -> None:
        with unwrapped():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.config.ckpt_path is not None:
            if self.config.overwrite:
                raise SliderError("--overwrite begins anew and --ckpt_path goes on; leave out one of them")
            self._checkpoint = read_checkpoint(Path(self.config.ckpt_path), self.config.trainer.max_steps)
        if self._given is None and getattr(rank_zero_only, "rank", 0) == 0:
            self._folder = self._take()
            self._place(self._folder.path)
            self._get(self.config_init, "checkpoint").dirpath = self.config.checkpoint.dirpath  # is made already
        try:
            return self._trainer(kwargs)
        except BaseException:
            self._leave()
            raise

    def _trainer(self, kwargs: dict[str, Any]) -> L.Trainer:
        """Lightning's, which writes into the run's folder, and the slider before the reports."""
        folder = Path(self.config.trainer.default_root_dir)
        kwargs["default_root_dir"] = str(folder)
        if self.config.trainer.logger is None:
            done = {"purge_step": self._checkpoint[1]["global_step"]} if self._checkpoint else {}
            kwargs["logger"] = TensorBoardLogger(folder.parent, name=folder.name, version="", **done)
        plugins = self._get(self.config_init, "trainer")["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CheckpointFiles()]
        with refused_in_a_line():
            trainer = super().instantiate_trainer(**kwargs)
        check_made(self.config.trainer.precision, trainer)
        callbacks = callbacks_of(trainer)
        first = [callback for callback in callbacks if isinstance(callback, RunConfig | SliderWriter)]
        callbacks[:] = [*first, *(callback for callback in callbacks if callback not in first)]
        self._began = next((callback for callback in first if isinstance(callback, RunConfig)), None)
        if self._began is not None:  # a dry run has none, and is refused
            self._began.folder = self._folder
        return trainer

    def _leave(self) -> None:
        """Give the run's folder back, as it was found if the training has not begun."""
        if self._folder is not None:
            if self._began is None or not self._began.began:
                self._folder.undo()
            self._folder.release()

    def _take(self) -> RunFolder:
        """The folder of this run, for us alone."""
        wanted = Path(self.config.trainer.default_root_dir)
        if self._checkpoint is not None:
            run = self._checkpoint[0].parent.parent
            same = run.absolute().parent == wanted.absolute().parent
            here = same or Path(self.config.runs) == self.parser.get_default("runs")
            if here and self._checkpoint[0].parent.name == "checkpoints" and (run / "config.yaml").is_file():
                return take_up(run)
        return take_new(wanted, self.config.overwrite)

    def fit(self) -> None:
        """Train, from the beginning or from `--ckpt_path`; the last line says where the run is, or how to go on.

        Raises:
            SliderError: the run cannot go on from the checkpoint.
            Stopped: a signal came; slider and checkpoint are written.
        """
        try:
            with stopping.listening():
                self._fit()
        except stopping.Stopped:
            if self._given is None:
                written = next(c for c in callbacks_of(self.trainer) if isinstance(c, RunCheckpoint)).best_model_path
                say(how_to_go_on(written, self._command))
            raise
        finally:
            stopping.end_steps()
            self._leave()
        if self._given is None and self.trainer.is_global_zero:
            say(f"run      {self.trainer.default_root_dir}")

    def _fit(self) -> None:
        now = settings(resolved(self.parser, self.config), self.trainer.world_size)
        self.model.settings = now
        checkpoint = None
        if self._checkpoint is not None:
            checkpoint, content = self._checkpoint
            check_same_run(checkpoint, content, now)
        self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)


def main(arguments: list[str] | None = None) -> None:
    """Train; the arguments are those of the process unless given."""
    hush_libraries()
    with in_one_line():
        SliderCLI(arguments, command=started_by()).fit()
