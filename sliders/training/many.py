"""Training several sliders: one process loads a base model once for all that are trained on it.

They share the encoded prompts as well, and what the base says at the states that it leads to itself, with which every
pool begins (`sliders.training.memory`): each slider is bit by bit what it is when it is trained alone.

Each run is known by its key, a hash of its resolved config and concept, and lives in ``<runs>/<name>-<key>/``.  A run
is finished when `done.json` is there, which appears last and whole.  Workers share nothing but these folders: each
takes whatever is neither finished nor locked by a living process, so that the runs of a worker that was killed are
taken up by the others, or by the next call, from their last checkpoint.
"""

import fcntl
import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sliders.backbones.base import AbstractBackbone
from sliders.concept import Concept
from sliders.console import hush_libraries, say
from sliders.errors import SliderError
from sliders.files import write_text
from sliders.shipped import config_place
from sliders.training.cli import SliderCLI
from sliders.training.memory import Memory

_PLACES = (("name",), ("runs",), ("ckpt_path",), ("trainer", "default_root_dir"), ("checkpoint", "dirpath"))
"""What a config says of where a run is kept, which makes no difference to the slider."""


class _Parsed(SliderCLI):
    """The command line's config, with nothing made of it."""

    def instantiate_classes(self) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """A slider to be trained.

    Args:
        arguments: of the training command, without those that say where it is kept.
        name: the concept's, unless the config names the run.
        key: hash of the resolved config and concept.
        base: class and arguments of the backbone, and the precision that it is run in; runs with the same share it.
        runs: the folder that runs are kept in.
    """

    arguments: tuple[str, ...]
    name: str
    key: str
    base: str
    runs: Path

    @property
    def folder(self) -> Path:
        """Where all of it is kept."""
        return self.runs / f"{self.name}-{self.key}"

    @property
    def done(self) -> dict[str, Any] | None:
        """What is known of the finished run; None while it is not finished."""
        file = self.folder / "done.json"
        return json.loads(file.read_text()) if file.is_file() else None


def find_configs(configs: Sequence[Path]) -> list[Path]:
    """The files, and of folders all YAML files in them; those that come with the package by their names, too."""
    found: list[Path] = []
    for named in configs:
        place = named if named.exists() else config_place(str(named))
        files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
        if not files or not all(file.is_file() for file in files):
            raise SliderError(f"no configs at {place}: give YAML files, or a folder of them")
        found += files
    return found


def plan(config: Path, runs: Path, overrides: Sequence[str] = ()) -> Run:
    """The run of a config, with further arguments of the training command such as ``--model.rank=8``."""
    arguments = ("--config", str(config), *overrides)
    parsed = _Parsed([*arguments])
    plain = yaml.safe_load(parsed.parser.dump(parsed.config, skip_none=False))
    concept = parsed.config.data.concept
    concept = Concept.load(Path(concept)) if isinstance(concept, str | Path) else concept
    name = plain["name"] or concept.name
    for *path, last in _PLACES:
        place = plain
        for part in path:
            place = place[part]
        place.pop(last, None)
    if not isinstance(concept, Concept):  # written into the config
        concept = Concept.from_dict(concept.get("init_args", concept).as_dict(), folder=Path())
    plain["data"]["concept"] = concept.to_dict()
    base = json.dumps([plain["model"]["backbone"], plain["trainer"]["precision"]], sort_keys=True)
    plain = _by_content(plain)
    key = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
    return Run(arguments, name, key, base, runs)


def _by_content(plain: Any) -> Any:
    """Plain data with what a file says in place of where it is; a folder, of a model, is known by its path."""
    if isinstance(plain, dict):
        return {key: _by_content(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_by_content(value) for value in plain]
    if isinstance(plain, str) and Path(plain).is_absolute() and Path(plain).is_file():
        with Path(plain).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    return plain


@contextmanager
def _claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether a run's folder is ours for now; a process that dies lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


class Worker:
    """Trains runs, one after the other, until none is left.

    A run that fails is reported and left unfinished; the others go on.

    Args:
        runs: all of them, also those that other workers may take.
        threads: of this process; the library's own number unless given.
    """

    def __init__(self, runs: Sequence[Run], threads: int | None = None) -> None:
        self.runs, self.threads = list(runs), threads

    def __call__(self, first: int = 0) -> list[str]:
        """Train what is left, beginning at run ``first``; returns the names of those trained here."""
        hush_libraries()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        bases: dict[str, tuple[AbstractBackbone, Memory]] = {}
        trained: list[str] = []
        left = self.runs[first:] + self.runs[:first]
        for wait in (False, True):  # what another process is at is ours if that process dies
            for run in list(left):
                with _claimed(run.folder, wait) as ours:
                    if not ours:
                        continue
                    left.remove(run)
                    if run.done is None and _try(run, bases):
                        trained.append(run.name)
        return trained

    def checkpoint(self, first: int = 0) -> Any:
        """What a cluster should start again where it takes the machine away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, first)


def _try(run: Run, bases: dict[str, tuple[AbstractBackbone, Memory]]) -> bool:
    """Train one slider, or say why not."""
    try:
        _train(run, bases)
    except Exception as error:  # whatever it is, the other runs do not depend on it
        write_text(run.folder / "error.txt", traceback.format_exc())
        say(f"failed   {run.folder}: {error}")
        return False
    (run.folder / "error.txt").unlink(missing_ok=True)
    say(f"done     {run.folder}")
    return True


def _train(run: Run, bases: dict[str, tuple[AbstractBackbone, Memory]]) -> None:
    """Train one slider, from its last checkpoint if there is one, on a base that may be in memory already."""
    began = time.monotonic()
    cli = SliderCLI([*run.arguments, "--runs", str(run.runs), "--name", run.folder.name])
    module = cli.model
    module.backbone, module.memory = bases.setdefault(run.base, (module.backbone, Memory()))
    last = run.folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        cli.config.ckpt_path = str(last)
    try:
        cli.fit()
        if cli.trainer.interrupted:
            raise KeyboardInterrupt
        slider = {} if module.adapter is None else module.slider().metadata
    finally:
        module.detach_slider()
    known = {"name": run.name, "key": run.key, "seconds": round(time.monotonic() - began, 1), "metadata": dict(slider)}
    write_text(run.folder / "done.json", json.dumps(known, indent=1))


def launch(worker: Worker, workers: int, folder: Path, cluster: str | None, settings: dict[str, Any]) -> None:
    """Run several workers, as processes of this machine or as the jobs of an array of a cluster, and wait for them.

    Args:
        worker: what each of them does.
        workers: how many.
        folder: for the jobs' logs.
        cluster: ``slurm``, ``local`` or what submitit finds.
        settings: of submitit's executor.
    """
    try:
        import submitit
    except ImportError as error:
        raise SliderError("several workers need submitit: pip install 'concept-sliders[cluster]'") from error
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**settings)
    starts = [k * len(worker.runs) // workers for k in range(workers)]
    for job in executor.map_array(worker, starts):
        if (error := job.exception()) is not None:
            say(f"worker {job.job_id} ended early, its log is {job.paths.stderr}: {str(error).splitlines()[-1]}")
