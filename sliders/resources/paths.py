"""Paths in configs and on the command line.

A path in a config is relative to the folder of that config, one on the command line to the working directory, and one
that a run writes down is absolute, so that its `config.yaml` can be used from anywhere.  All of it follows from the
type of an argument: `pathlib.Path` for a path, `Source` where a name is as good as one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from jsonargparse.typing import register_type

from sliders.resources.fetch import FETCHED
from sliders.resources.shipped import JUDGES, MODELS

NAMES = {*MODELS, *JUDGES, *FETCHED}
"""What is found by name, wherever one is."""

_called_in: ContextVar[str | None] = ContextVar("_called_in", default=None)


class Source(str):
    """A file or folder, or a name: of something that comes with the package, is fetched, or lies on a hub.

    One of `NAMES` is that name, whatever lies beside it.  Of others, what begins with ``.``, ``/`` or ``~`` is a path,
    and so is what is there.
    """

    __slots__ = ()


@contextmanager
def called_here() -> Iterator[None]:
    """Leave paths on the command line as they were typed; without it they become absolute, which is as right."""
    token = _called_in.set(os.getcwd())
    try:
        yield
    finally:
        _called_in.reset(token)


def _absolute(path: str | Path) -> str:
    """A path from here, or NAME=PATH, with which a slider gets another name."""
    said = str(path)
    name, sign, rest = said.partition("=")
    if sign and rest and os.sep not in name and not os.path.exists(said):
        return f"{name}={os.path.abspath(Path(rest).expanduser())}"
    return os.path.abspath(Path(said).expanduser())


def _path(value: object) -> Path:
    """A path, where it is read: jsonargparse goes into the folder of a config while it reads the config."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no path")
    return Path(value).expanduser() if os.getcwd() == _called_in.get() else Path(_absolute(value))


def _source(value: object) -> Source:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither a path nor a name")
    is_path = value not in NAMES and (value.startswith((".", "/", "~")) or os.path.exists(value))
    if not is_path:
        return Source(value)
    return Source(os.path.expanduser(value) if os.getcwd() == _called_in.get() else _absolute(value))


def _written_source(source: str) -> str:
    return _absolute(source) if source not in NAMES and os.path.exists(source) else str(source)


for _kind in (Path, type(Path())):
    register_type(_kind, _absolute, _path, type_check=isinstance)
register_type(Source, _written_source, _source)
