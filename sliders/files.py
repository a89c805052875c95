"""Files and folders that appear whole or not at all, also where several processes write the same one."""

import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
