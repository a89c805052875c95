"""What comes from strangers: names are cleaned, files are looked at before they are read, and stay in one folder."""

import re
import secrets
import shutil
from pathlib import Path

from sliders.errors import SliderError

MEGABYTE = 2**20
KEPT_FILES = 64


def clean_text(text: str, most: int = 80) -> str:
    """One line of printable characters, shortened."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def clean_name(text: str, most: int = 40) -> str:
    """Letters, digits, ``-``, ``_`` and ``|`` (of hinges) alone, so that it names files and dials."""
    return re.sub(r"[^\w|-]+", "-", Path(text).name).strip("-_|")[:most] or "slider"


def whole(value: float, name: str, low: int, high: int) -> int:
    """A whole number within limits.

    Raises:
        SliderError: it is none, or outside.
    """
    number = within(value, name, low, high)
    if number != int(number):
        raise SliderError(f"{name} is {number:g}; it must be a whole number")
    return int(number)


def within(value: float, name: str, low: float, high: float) -> float:
    """A number within limits.

    Raises:
        SliderError: it is none, or outside.
    """
    if not isinstance(value, int | float):
        raise SliderError(f"{name} is not a number")
    if not low <= value <= high:  # also refuses NaN
        raise SliderError(f"{name} is {value:g}; it must be from {low:g} to {high:g}")
    return float(value)


def short(text: str, name: str, most: int) -> str:
    """A text that is not too long.

    Raises:
        SliderError: it is, or it is none.
    """
    if not isinstance(text, str):
        raise SliderError(f"{name} is not text")
    if len(text) > most:
        raise SliderError(f"{name} has {len(text)} characters; at most {most} can be used here")
    return text


class OutputFolder:
    """The folder of everything that this run writes; each file lies in a folder of its own that nobody can guess.

    Args:
        folder: made if it is not there.
        kept: how many of the newest are kept.
    """

    def __init__(self, folder: Path, kept: int = KEPT_FILES) -> None:
        self.folder, self._kept = folder.resolve(), kept
        self._made = self.folder / "made"
        self._made.mkdir(parents=True, exist_ok=True)

    def place(self, name: str) -> Path:
        """Where to write a new file of that name."""
        made = self._made / secrets.token_urlsafe(16)
        made.mkdir()
        for old in sorted(self._made.iterdir(), key=lambda path: path.stat().st_mtime)[: -self._kept]:
            shutil.rmtree(old, ignore_errors=True)
        return made / clean_name(name).replace("|", "_")

    def holds(self, path: Path) -> bool:
        """Whether a path leads into the folder, links followed."""
        return path.resolve().is_relative_to(self.folder)


def check_upload(file: Path, most_bytes: int) -> None:
    """Refuse a file by what it is called and how large it is, before it is read.

    Raises:
        SliderError: the message says what can be uploaded.
    """
    name = clean_text(file.name)
    if file.suffix.lower() != ".safetensors":
        raise SliderError(
            f"{name} is no .safetensors file. Only these are read here: other formats (.pt, .ckpt, .bin) can run "
            "programs when they are opened."
        )
    if not file.is_file():
        raise SliderError(f"{name} did not arrive; upload it again")
    if (size := file.stat().st_size) > most_bytes:
        raise SliderError(
            f"{name} has {size / MEGABYTE:.0f} MB; at most {most_bytes / MEGABYTE:.0f} MB can be uploaded"
        )
