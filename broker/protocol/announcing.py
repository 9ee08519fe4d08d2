"""When an author tells a swarm its newest number: a last event that was lost on the way is seen by nothing else.

Soon after the last event, then ever more rarely, for as long as the author keeps the publication. Not here: telling it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Announcing"]

FIRST: Final = (1.0, 1.0, 2.0, 4.0)
"""Seconds between the first ones: 1, 2, 4 and 8 s after the last event."""
THEN: Final = 10.0


class Announcing:
    """One publication's schedule."""

    __slots__ = ("_told", "due")

    def __init__(self) -> None:
        self.due: float | None = None
        """None: nothing was published yet."""
        self._told = 0

    def published(self, now: float) -> None:
        """The newest number is another one."""
        self._told, self.due = 0, now + FIRST[0]

    def tick(self, now: float) -> bool:
        """Whether to tell it now."""
        if self.due is None or now < self.due:
            return False
        self._told += 1
        self.due = now + (FIRST[self._told] if self._told < len(FIRST) else THEN)
        return True
