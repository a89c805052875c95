"""Sliders as commands are given them: a path, or NAME=PATH for one that is to have another name here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sliders import formats
from sliders.algebra.slider import NamedDial
from sliders.errors import SliderError
from sliders.formats.metadata import check_name


@dataclass(frozen=True)
class Given:
    """A slider that has not been read yet.

    Args:
        path: its file or folder.
        name: what to call it; what its file says unless given.
    """

    path: Path
    name: str | None = None

    def load(self) -> NamedDial:
        """Read it."""
        return formats.load_dial(self.path, self.name)


def given(said: Path | Sequence[Path] | None, flag: str) -> list[Given]:
    """What a flag lists; one path is as good as a list of one.

    A path that is there is a path, whatever it is called; otherwise what stands before the first ``=`` is a name.

    Args:
        said: paths, or NAME=PATH.
        flag: for errors.

    Raises:
        SliderError: nothing is at a path, or a name cannot be one.
    """
    listed = [] if said is None else [said] if isinstance(said, Path) else list(said)
    return [_parsed(path, flag) for path in listed]


def _parsed(said: Path, flag: str) -> Given:
    if said.exists():
        return Given(said)
    name, sign, rest = str(said).partition("=")
    path = Path(rest) if sign and rest else said
    if not path.exists():
        raise SliderError(f"no slider file at {path}")
    check_name(name, f"{flag} {said}: the name before '='")
    return Given(path, name)
