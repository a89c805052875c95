"""What a command shows: its own words, and not the chatter of the libraries below."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from sliders.errors import SliderError, SliderWarning

_formatted = warnings.formatwarning


def say(*lines: object) -> None:
    """Print lines (or rich tables) without wrapping paths."""
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _in_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings as a user reads them; others say where they come from."""
    if issubclass(category, SliderWarning):
        return f"warning: {message}\n"
    return _formatted(message, category, filename, lineno, line)


_HARMLESS = re.compile(
    "|".join(
        (
            r"You have disabled the safety checker",  # of which no part is loaded
            r"generation flags are not valid",  # and are not used
            r"`?torch_dtype`? is deprecated",
            r"requires torchvision \(not installed\)",  # to read pictures, which nothing here does
            r"Token indices sequence length is longer",  # texts are cut, or refused, by the backbone, which says so
            r"part of your input was truncated",
        )
    )
)
"""What the libraries warn of that does not concern this package.  All else shows, above all what is said of weights."""


_OF_TRAINING = (
    ".*in eval mode at the start of training.*",  # the model is frozen
    ".*LightningCLI's args parameter.*",  # a command may train, too
    ".*LeafSpec.*deprecated.*",
    ".*does not have many workers.*",
)
"""What Lightning warns of in every training here."""


def _ignore(*messages: str) -> None:
    for message in messages:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def hushed_training() -> Iterator[None]:
    """A block in which Lightning does not warn of what is so in every training here."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            _ignore(*_OF_TRAINING)
            yield
    finally:
        log.setLevel(before)


def _concerns(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not _HARMLESS.search(record.getMessage())


@contextmanager
def in_one_line() -> Iterator[None]:
    """End a command whose user can mend what is wrong by a line on stderr, and one that was interrupted by none."""
    from safetensors import SafetensorError

    try:
        yield
    except (SliderError, SafetensorError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None and error.strerror else ""
        sys.exit(f"error: {where}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def hush_libraries() -> None:
    """Silence loading bars, advice and known harmless warnings of the libraries; other warnings and errors show."""
    warnings.formatwarning = _in_a_line
    warnings.filterwarnings("default", category=SliderWarning)
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    for library in (transformers_log, diffusers_log):
        library.set_verbosity_warning()
        library.disable_progress_bar()
    for name in ("transformers", "diffusers"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_concerns)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    _ignore(*_OF_TRAINING)
    _ignore(".*Checkpoint directory .* exists and is not empty.*")
