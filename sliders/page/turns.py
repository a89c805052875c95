"""Who may use a model: one request at a time, and of each user the newest alone."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Superseded(Exception):
    """A newer request of the same user has taken this one's place, or it was stopped."""


class Turn:
    """A request; it is over as soon as the same user makes another."""

    def __init__(self, turns: "Turns", user: str, number: int) -> None:
        self._turns, self._user, self._number = turns, user, number

    def check(self) -> None:
        """Go on, or raise `Superseded`; called at each step of what takes long."""
        if not self._turns.is_newest(self._user, self._number):
            raise Superseded

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the model: dials are turned, used and let go in here.  Waits, and gives up if a newer request comes."""
        while not self._turns.lock.acquire(timeout=0.05):
            self.check()
        try:
            self.check()
            yield
        finally:
            self._turns.lock.release()


class Turns:
    """The requests to one model."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._count = itertools.count()
        self._newest: dict[str, int] = {}

    @contextmanager
    def take(self, user: str) -> Iterator[Turn]:
        """A turn of this user, whose earlier one ends at its next step."""
        number = self._newest[user] = next(self._count)
        try:
            yield Turn(self, user, number)
        finally:
            if self.is_newest(user, number):
                self.stop(user)

    def is_newest(self, user: str, number: int) -> bool:
        """Whether the user has made no other request since."""
        return self._newest.get(user) == number

    def stop(self, user: str) -> None:
        """End what this user has asked for."""
        self._newest.pop(user, None)
