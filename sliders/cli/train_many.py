"""`sliders train-many`: several sliders from a folder or a list of configs."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sliders.cli.defaults import listed
from sliders.errors import SliderError

if TYPE_CHECKING:
    from rich.table import Table

    from sliders.training.many import Run


def _table(runs: "list[Run]") -> "Table":
    """What is finished, and how long it took."""
    from rich.table import Table

    table = Table("slider", "seconds", "folder")
    for run in runs:
        done = run.done
        table.add_row(run.name, f"{done['seconds']:.0f}" if done else "not finished", str(run.folder))
    return table


def train_many(
    configs: Path | list[Path],
    runs: Path = Path("runs"),
    workers: int = 1,
    cluster: Literal["local", "slurm"] | None = None,
    threads: int | None = None,
    minutes: int = 240,
    partition: str | None = None,
    overrides: str | list[str] | None = None,
) -> None:
    """Train several sliders; those on one base model share it, and what is finished is not trained again.

    A run that was stopped, by Ctrl-C or SIGTERM too, goes on from its last checkpoint, in this call or the next.

    Args:
        configs: a folder of configs, a config, or a list of these.
        runs: the folder that runs are kept in, each under its name and a hash of its config.
        workers: processes that train side by side; with one, it is this one.
        cluster: where workers run: processes of this machine, or jobs of a SLURM array; found out unless given.
        threads: of each worker; on this machine its cores are shared out unless given.
        minutes: that a worker may take.
        partition: of the SLURM cluster.
        overrides: further arguments of every run, such as '["--trainer.max_steps=50"]'.
    """
    from sliders.console import say
    from sliders.files import check_place
    from sliders.training import stopping
    from sliders.training.many import Worker, find_configs, launch, plan

    if workers < 1:
        raise SliderError(f"--workers is {workers}; it must be at least 1")
    check_place(runs, folder=True)
    files = find_configs(listed(configs))
    planned = list({run.key: run for run in (plan(file, runs, listed(overrides)) for file in files)}.values())
    open_ones = [run for run in planned if run.done is None]
    workers = min(workers, len(open_ones))
    settings: dict[str, Any] = {"timeout_min": minutes, "name": "sliders"}
    here = workers == 1 and cluster is None
    if threads is None and cluster != "slurm" and not here:
        threads = max(1, (os.cpu_count() or 1) // max(1, workers))
    if partition is not None:
        settings["slurm_partition"] = partition
    if threads is not None:
        settings["cpus_per_task"] = threads
    try:
        if here:
            Worker(planned, threads)()
        elif open_ones:
            launch(Worker(planned, threads), workers, runs / "jobs", cluster, settings)
    except stopping.Stopped:
        say(_table(planned), f"stopped  go on with: {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
        raise
    say(_table(planned))
    if left := [run.name for run in planned if run.done is None]:
        raise SliderError(f"{len(left)} of {len(planned)} are not finished ({', '.join(left)}); run it again to go on")
