"""How far an author may be ahead of the acknowledgements in a swarm: a window in events, for one topic.

It falls to half at most once in `CALM`, when members asked for repairs or were overrun, and grows by an eighth for each
window that was acknowledged in quiet. Not here: who asks for repairs, and what a publisher does with its window.
"""

from __future__ import annotations

from typing import Final

__all__ = ["FIRST", "LEAST", "MOST", "Pacing"]

FIRST: Final = 512
"""Events: at 256 B, 35 messages of 4 KiB, well within the 256 slots of a gossip topic."""
LEAST: Final = 64
"""A few messages: enough that a round trip of 10 ms still allows some thousand events a second."""
MOST: Final = 4_096
"""What an author keeps unacknowledged at most (protocol/publication.py)."""
CALM: Final = 0.2
"""Seconds after trouble in which the window does not grow; one wave of repairs is one trouble."""
GROWTH: Final = 1.12


class Pacing:
    """See the module."""

    __slots__ = ("_acknowledged", "_shrunk", "_size", "_troubled")

    def __init__(self) -> None:
        self._size = float(FIRST)
        self._acknowledged = 0
        self._troubled = self._shrunk = float("-inf")

    @property
    def window(self) -> int:
        return int(self._size)

    def trouble(self, now: float) -> None:
        """A repair was asked for, or a member was overrun."""
        self._troubled = now
        if now - self._shrunk >= CALM:
            self._shrunk = now
            self._size = max(float(LEAST), self._size / 2)
            self._acknowledged = 0

    def acknowledged(self, events: int, now: float) -> None:
        """So many events more are with the hub."""
        if now - self._troubled < CALM:
            return
        self._acknowledged += events
        while self._acknowledged >= self._size:
            self._acknowledged -= int(self._size)
            self._size = min(float(MOST), self._size * GROWTH)
