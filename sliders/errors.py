"""The one exception that a user of this package needs to catch, and its warning."""

from collections.abc import Iterator
from contextlib import contextmanager


class SliderError(Exception):
    """Something asked for cannot be done; the message names the file, key or flag and says what to do instead."""


class SliderWarning(UserWarning):
    """Something is done, though not with all of what was given; the message names what is left out."""


def one_line(error: object) -> str:
    """What a library says, which may be many lines, as one; an error that says nothing is called by its class."""
    return " ".join(str(error).split()) or type(error).__name__


def check_at_least_1(where: str, holder: object, *fields: str) -> None:
    """Of settings, which may be None.

    Args:
        where: what stands before a field's name, such as ``sampling``.
        holder: of the fields.
        fields: their names.

    Raises:
        SliderError: one is below 1.
    """
    for field in fields:
        if (value := getattr(holder, field)) is not None and value < 1:
            raise SliderError(f"{where}.{field} is {value}; it must be at least 1")


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a `SliderError` as itself where a library has raised its own from it.

    jsonargparse tries all that an argument may be, such as None, and says of an error in one of them that the value is
    none of these.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SliderError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None
