"""Run folders: one process writes into one, and a run never into another's."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sliders.errors import SliderError
from sliders.files import check_place

_LOCK = ".lock"
_MADE_EARLY = ("config.yaml", "hparams.yaml", "events.out.tfevents")
"""How the names begin of what a run leaves that came to nothing; a later one may take its place."""


class RunFolder:
    """A run's folder, which is ours until it is given back or the process ends.

    Args:
        path: the folder; it is there.
        lock: held.
        made: whether the folder was made for this run.
    """

    def __init__(self, path: Path, lock: FileLock, made: bool) -> None:
        self.path, self._lock, self._made = path, lock, made
        self._before = set(_content(path))
        self._stale = sorted(self._before)

    def keep(self) -> None:
        """What is there is of this run, which goes on."""
        self._stale = []

    def clear(self) -> None:
        """Remove what is left of an earlier run; for the moment when the training begins."""
        for entry in self._stale:
            _remove(entry)
        self._stale = []

    def undo(self) -> None:
        """Leave the folder as it was found, after a run that came to nothing."""
        for entry in set(_content(self.path)) - self._before:
            _remove(entry)
        if self._made:
            _remove(self.path)

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


def saved_slider(folder: Path, name: str) -> Path | None:
    """A slider in a run's folder: the file of one for pictures, the folder of one for language; None without one."""
    return next((place for place in (folder / f"{name}.safetensors", folder / name) if place.exists()), None)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _content(folder: Path) -> list[Path]:
    """What a folder holds, its lock aside."""
    return [entry for entry in folder.iterdir() if entry.name != _LOCK] if folder.is_dir() else []


def _came_to_nothing(folder: Path) -> bool:
    """Whether a folder holds nothing that a finished step has left."""
    return all(
        entry.name.startswith(_MADE_EARLY) or (entry.name == "checkpoints" and not any(entry.iterdir()))
        for entry in _content(folder)
    )


def _lock(folder: Path, wait: bool = False) -> FileLock | None:
    """A folder's lock, held; None if another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    return lock


def _taken(folder: Path) -> RunFolder | None:
    made = not folder.exists()
    lock = _lock(folder)
    return None if lock is None else RunFolder(folder, lock, made)


def take_new(wanted: Path, overwrite: bool = False) -> RunFolder:
    """A folder for a new run: the wanted one, or where that is another run's, the same name with a number.

    Args:
        wanted: of the run.
        overwrite: take the wanted one, and remove what an earlier run has left there when the training begins.

    Raises:
        SliderError: nothing can be written there, or what would be overwritten is in use or no run's.
    """
    check_place(wanted, folder=True)
    if overwrite:
        if not (_came_to_nothing(wanted) or (wanted / "config.yaml").is_file()):
            raise SliderError(f"{wanted} is no run's folder, so that --overwrite leaves it alone; give another --name")
        if (folder := _taken(wanted)) is None:
            raise SliderError(f"{wanted} is being written by another run; wait for its end or give another --name")
        return folder
    for number in itertools.count(1):
        place = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if place.is_file() or not _came_to_nothing(place) or (folder := _taken(place)) is None:
            continue
        if _came_to_nothing(place):  # still, now that nobody else writes there
            return folder
        folder.release()
    raise AssertionError("there is always another number")


def take_up(folder: Path) -> RunFolder:
    """The folder of a run that goes on.

    Raises:
        SliderError: it cannot be written, or another process is at it.
    """
    check_place(folder, folder=True)
    if (taken := _taken(folder)) is None:
        raise SliderError(f"{folder} is being written by another process; wait for its end")
    taken.keep()
    return taken


@contextmanager
def claimed(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether a folder is ours for the block; a process that dies lets go of it.

    Args:
        folder: made if it is not there.
        wait: for another that has it.
    """
    if (lock := _lock(folder, wait)) is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
