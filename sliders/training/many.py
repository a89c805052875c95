"""Training several sliders: one process loads a base model once for all that are trained on it.

They share the encoded prompts as well, and what the base says at the states that it leads to itself, with which every
pool begins (`sliders.teacher.answers`): each slider is bit by bit what it is when it is trained alone.

Each run is known by its key, a hash of its resolved config and concept, and lives in ``<runs>/<name>-<key>/``.  A run
is finished when `done.json` is there, which appears last and whole.  Workers share nothing but these folders: each
takes whatever is neither finished nor locked by a living process, so that the runs of a worker that was killed are
taken up by the others, or by the next call, from their last checkpoint.
"""

import hashlib
import json
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sliders.backbones.base import AbstractBackbone
from sliders.console import hush_libraries, say
from sliders.errors import SliderError
from sliders.files import write_text
from sliders.resources.shipped import config_place
from sliders.teacher.answers import AnswerCache
from sliders.training import stopping
from sliders.training.checkpoints import previous, read_newest
from sliders.training.cli import SliderCLI
from sliders.training.folder import claimed, saved_slider
from sliders.training.settings import by_content, resolved

_PLACES = (
    *(("name",), ("runs",), ("ckpt_path",), ("overwrite",)),
    *(("trainer", "default_root_dir"), ("checkpoint", "dirpath")),
)
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
        """What is known of the finished run; None while it is not finished, or if its slider is gone."""
        file = self.folder / "done.json"
        known = json.loads(file.read_text()) if file.is_file() else None
        return known if known and (self.folder / known.get("slider", "")).exists() else None


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
    plain = resolved(parsed.parser, parsed.config)
    name = plain["name"] or plain["data"]["concept"]["name"]
    for *path, last in _PLACES:
        place = plain
        for part in path:
            place = place[part]
        place.pop(last, None)
    base = json.dumps([plain["model"]["backbone"], plain["trainer"]["precision"]], sort_keys=True)
    plain = by_content(plain)
    key = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]
    return Run(arguments, name, key, base, runs)


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
        """Train what is left, beginning at run ``first``; returns the names of those trained here.

        Raises:
            Stopped: a signal came; the run that was at work goes on from where it was, in this call or another.
        """
        hush_libraries()
        with stopping.listening():
            return self._work(first)

    def _work(self, first: int) -> list[str]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        bases: dict[str, tuple[AbstractBackbone, AnswerCache]] = {}
        trained: list[str] = []
        left = self.runs[first:] + self.runs[:first]
        for wait in (False, True):  # what another process is at is ours if that process dies
            for run in list(left):
                with claimed(run.folder, wait) as ours:
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


def _try(run: Run, bases: dict[str, tuple[AbstractBackbone, AnswerCache]]) -> bool:
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


def _train(run: Run, bases: dict[str, tuple[AbstractBackbone, AnswerCache]]) -> None:
    """Train one slider, from its last checkpoint if there is one, on a base that may be in memory already."""
    began = time.monotonic()
    cli = SliderCLI([*run.arguments, *_from_last(run)], folder=run.folder)
    module = cli.model
    module.backbone, module.answers = bases.setdefault(run.base, (module.backbone, AnswerCache()))
    try:
        cli.fit()
        saved = saved_slider(run.folder, cli.datamodule.concept.name)
        if saved is None:
            raise SliderError(f"the training ended, but there is no slider in {run.folder}")
        metadata = {} if module.adapter is None else dict(module.slider().metadata)
    finally:
        module.detach_slider()
    known = {"name": run.name, "key": run.key, "seconds": round(time.monotonic() - began, 1), "slider": saved.name}
    write_text(run.folder / "done.json", json.dumps({**known, "metadata": metadata}, indent=1))


def _from_last(run: Run) -> list[str]:
    """The argument by which a run goes on from its newest checkpoint that is whole, if there is one."""
    last = run.folder / "checkpoints" / "last.ckpt"
    if not (last.exists() or previous(last).exists()):
        return []
    try:
        return ["--ckpt_path", str(read_newest(last)[0])]
    except SliderError as error:
        say(f"{error}; {run.folder} begins anew")
        return []


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
    with stopping.listening():
        jobs = executor.map_array(worker, starts)
        try:
            for job in jobs:
                if (error := job.exception()) is not None:
                    last = str(error).splitlines()[-1]
                    say(f"worker {job.job_id} ended early, its log is {job.paths.stderr}: {last}")
        except stopping.Stopped:
            _stop(jobs, executor.cluster)
            raise


def _stop(jobs: Sequence[Any], cluster: str) -> None:
    """Let workers end their steps; those of this machine are waited for."""
    for job in jobs:
        if cluster != "local":
            job.cancel()
        elif not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)
    for job in jobs if cluster == "local" else []:
        job.exception()
