"""Events that wait for the reader of a subscription, as the runs in which they came.

A reader of single events is given them from a run that has been taken apart, and a reader of runs is given them as they
are: of those that a spoke only counts (`codec.Places`) no event is made then. Not here: how many may wait, and what
comes of too many (subscription.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

from broker.events import Event

__all__ = ["Unread"]


class Unread:
    """In the order of arrival."""

    __slots__ = ("_later", "_runs", "next")

    def __init__(self) -> None:
        self.next: deque[Event] = deque()
        """The rest of the run that was taken apart. When it is empty, `refill` takes the next one."""
        self._runs: deque[Sequence[Event]] = deque()
        self._later = 0

    def __len__(self) -> int:
        return len(self.next) + self._later

    def add(self, run: Sequence[Event]) -> None:
        """Events that follow each other in one sequence. It is neither copied nor changed."""
        self._runs.append(run)
        self._later += len(run)

    def refill(self) -> bool:
        """Whether there is a `next` event now."""
        while not self.next and self._runs:
            run = self._runs.popleft()
            self._later -= len(run)
            self.next.extend(run)
        return bool(self.next)

    def runs(self) -> list[Sequence[Event]]:
        """All that wait, and none does any more."""
        runs = [list(self.next), *self._runs] if self.next else list(self._runs)
        self.next.clear()
        self._runs.clear()
        self._later = 0
        return runs

    def events(self) -> list[Event]:
        """The same one by one, in a list of the caller's own."""
        return list(chain.from_iterable(self.runs()))
