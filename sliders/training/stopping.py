"""Ctrl-C and SIGTERM: a training stops at the end of a step, and nothing is left half-written.

Signals are the process's, and so is what is known of them here.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping at the end of this step; a second time stops at once\n"


class Stopped(SystemExit):
    """A signal has ended the command; the exit code is the one that a shell gives (130 for Ctrl-C, 143 for SIGTERM).

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class _Listener:
    """What a signal does: nothing while files are written or the end has begun, else it stops the command.

    While steps are made, the first one only asks for an end, which `stop_if_asked` makes where a step has ended.
    """

    def __init__(self) -> None:
        ignored = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        self._before = {n: signal.getsignal(n) or signal.SIG_DFL for n in _SIGNALS if n not in ignored}
        self.asked: int | None = None
        self.in_steps = False
        self.ending = False
        self.writing = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = self.asked is None, self.asked or number
        if self.ending or self.writing:
            return
        if self.in_steps and first:
            os.write(2, _SAID)  # a stream may be in the middle of a line of its own
            return
        self.end()

    def end(self) -> None:
        """Stop the command, from where signals change nothing any more."""
        assert self.asked is not None
        self.ending = True
        raise Stopped(self.asked)

    def install(self) -> None:
        for number in self._before:
            signal.signal(number, self)

    def remove(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_listener: _Listener | None = None


@contextmanager
def listening() -> Iterator[None]:
    """Make `Stopped` of signals; within another such block, and in threads, that one or the library is left to it."""
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener = _Listener()
    _listener.install()
    try:
        yield
    finally:
        _listener.remove()
        _listener = None


@contextmanager
def writing() -> Iterator[None]:
    """A block that a signal does not interrupt; one that came meanwhile stops the command after it, if it may."""
    listener = _listener
    if listener is None:
        yield
        return
    listener.writing += 1
    try:
        yield
    finally:
        listener.writing -= 1
    if listener.asked is not None and not (listener.writing or listener.ending or listener.in_steps):
        listener.end()


def begin_steps() -> None:
    """From now on a first signal waits for the end of a step."""
    if _listener is not None:
        _listener.install()  # Lightning has put its own handler in front, which does not wait for gathered gradients
        _listener.in_steps = True


def end_steps() -> None:
    """From now on a signal stops the command where it is."""
    if _listener is not None:
        _listener.in_steps = False


def asked() -> bool:
    """Whether a signal asks for an end."""
    return _listener is not None and _listener.asked is not None


def stop(leader: bool) -> None:
    """Stop the command at a good place.

    Args:
        leader: of several processes, the one whose exit code is the command's; the others leave without a complaint,
            since their launcher would kill the leader otherwise.
    """
    if _listener is not None and _listener.asked is not None and leader:
        _listener.end()
    raise SystemExit(0)
