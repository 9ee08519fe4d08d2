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
        if run:
            self._runs.append(run)
            self._later += len(run)

    def refill(self) -> bool:
        """Whether there is a `next` event now."""
        if not self.next and self._runs:
            self.next.extend(self.run())
        return bool(self.next)

    def run(self) -> Sequence[Event]:
        """The oldest run, or what is left of it. IndexError when nothing waits."""
        if self.next:
            run: Sequence[Event] = list(self.next)
            self.next.clear()
        else:
            run = self._runs.popleft()
            self._later -= len(run)
        return run

    def events(self) -> list[Event]:
        """All that wait, in a list of the caller's own."""
        events = list(chain(self.next, *self._runs))
        self.next.clear()
        self._runs.clear()
        self._later = 0
        return events
