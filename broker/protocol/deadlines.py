"""When calls are due: a heap of deadlines, for the hub's table (calls.py) and for a spoke's own calls (caller.py).

Not here: a clock or a timer (``now`` is given, the shell sleeps until :meth:`~Deadlines.next`), and what being late
means.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Deadlines"]

STALE_DEADLINES = 1_024
"""Ended entries that a heap of deadlines may hold beside as many as are live, before it is swept."""


class _Perishable(Protocol):
    live: bool


T = TypeVar("T", bound=_Perishable)


class Deadlines(Generic[T]):
    """Ending an item costs nothing: its entry goes when it comes up, or when ended ones dominate."""

    __slots__ = ("_added", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, item: T, live: int) -> None:
        """``live`` is how many items are live; the heap stays under twice that and a constant."""
        self._added += 1
        heapq.heappush(self._heap, (when, self._added, item))
        if len(self._heap) > 2 * live + STALE_DEADLINES:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        heap = self._heap
        while heap and not heap[0][2].live:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Iterator[T]:
        """Live items whose time has come, each once, earliest first. An item ended meanwhile is not given."""
        while (when := self.next()) is not None and when <= now:
            yield heapq.heappop(self._heap)[2]
