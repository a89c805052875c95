"""Text as people's editors leave it; files and folders that appear whole or not at all, whoever else writes them."""

import codecs
import json
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sliders.errors import SliderError, one_line

_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_place(place: Path, folder: bool = False, new: bool = False) -> None:
    """Find out before the work whether its result can be written; nothing is left there.

    Args:
        place: what is to be written; its folders need not be there.
        folder: whether that is a folder.
        new: whether nothing may be there.

    Raises:
        SliderError: there is something already, a file where a folder should be or the other way round, or no file can
            be written there, such as on a read-only or full disk.
    """
    if folder and place.exists() and not place.is_dir():
        raise SliderError(f"{place} is to be a folder, but there is a file of that name; give another one")
    if not folder and place.is_dir():
        raise SliderError(f"{place} is a folder; give the name of a file")
    if new and place.exists():
        raise SliderError(f"{place} is there already; give the name of a new one, or remove it")
    above = place if folder else place.parent
    while not above.exists() and not above.is_symlink():
        above = above.parent
    if not above.is_dir():
        raise SliderError(f"{place} cannot be written: {above} is no folder")
    try:
        with tempfile.TemporaryFile(dir=above, prefix=".sliders-") as trial:
            trial.write(b"0" * 4096)
    except OSError as error:
        raise SliderError(f"{place} cannot be written: {error.strerror or error}; give another place") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Where to write what is to become ``file``, which it does when the block ends well.

    It is a file of the same name that is not there yet, in a hidden folder beside ``file`` that this block alone knows
    and that goes away with it.  If the block fails or is interrupted, ``file`` is what it was.  Libraries that write
    files for their owner alone are corrected: it gets the mode that any new file would get there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}-", ignore_cleanup_errors=True) as folder:
        new = Path(folder) / file.name
        new.touch()
        mode = stat.S_IMODE(new.stat().st_mode)  # asking for the umask itself would change it for other threads
        new.unlink()
        yield new
        if stat.S_IMODE(new.stat().st_mode) != mode:
            new.chmod(mode)
        new.replace(file)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """`replacing` for a folder: gives the path of one that is still to be made, and takes the place of an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as place:
        new, old = Path(place) / "new", Path(place) / "old"
        yield new
        if replaced := folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if replaced:
                old.rename(folder)
            raise


def write_text(file: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    with replacing(file) as new:
        new.write_text(text, encoding="utf-8")


def read_text(file: Path, what: str = "file") -> str:
    """The text of a file in UTF-8, without a byte-order mark; every line ends with a line feed, whatever it had.

    Args:
        file: to read.
        what: it is, for errors, such as ``concept``.

    Raises:
        SliderError: it cannot be read, or is in another encoding.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SliderError(f"cannot read the {what} {file}: {error.strerror}") from error
    if content.startswith(_WIDE_MARKS):
        raise SliderError(f"cannot read the {what} {file}: it is in UTF-16 or UTF-32; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SliderError(
            f"cannot read the {what} {file}: it is not text in UTF-8 ({error}); save it as such"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path, what: str = "file") -> list[str]:
    """The lines of a text file; what else Unicode counts as the end of a line stays within one.

    Raises:
        SliderError: see `read_text`.
    """
    return read_text(file, what).split("\n")


def read_yaml(file: Path, what: str = "file") -> Any:
    """What a YAML file says.

    Raises:
        SliderError: see `read_text`; or it is no YAML.
    """
    try:
        return yaml.safe_load(read_text(file, what))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise SliderError(f"cannot read the {what} {file}: it is not YAML: {one_line(error)}") from error


def read_json(file: Path, what: str = "file") -> Any:
    """What a JSON file says.

    Raises:
        SliderError: see `read_text`; or it is no JSON.
    """
    try:
        return json.loads(read_text(file, what))
    except (ValueError, RecursionError) as error:
        raise SliderError(f"cannot read the {what} {file}: it is not JSON: {one_line(error)}") from error
