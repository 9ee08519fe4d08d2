"""When a hub sends its heartbeat into a swarm: now and then, and more often while spokes wait to hear it.

A spoke counts heartbeats before it leaves the stream (membership.py), and they are what finds plumtree's tree: the
first goes by all edges, and each member drops those that bring it twice. Not here: sending it.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["BEAT", "LEAST", "Beats"]

BEAT: Final = 2.0
"""Seconds: a spoke that hears nothing for five asks for fresh bootstrap."""
LEAST: Final = 0.05
"""Seconds while few spokes settle, and the grid on which all of them are sent: many swarms of one hub beat at once."""
SETTLING: Final = 0.25
FEW: Final = 0.01
"""Seconds while many settle, and what each member adds until then: a heartbeat is everywhere before the next, also
where it had to be asked for (gossip.rs). A handful of members are all each other's neighbours, and ask for nothing."""
MEMBER: Final = 0.002
"""Seconds more for each member: on one machine with all of them the first takes that long."""


class Beats:
    """One swarm's schedule."""

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due = 0.0

    def told(self, now: float, members: int) -> None:
        """A spoke was told of the swarm."""
        self.due = min(self.due, _settling(now, members))

    def tick(self, now: float, members: int, *, settling: bool) -> bool:
        """Whether to send it now. ``settling``: somebody waits for the next."""
        if now < self.due:
            return False
        self.due = _settling(now, members) if settling else now + BEAT
        return True


def _settling(now: float, members: int) -> float:
    wait = min(max(LEAST, min(FEW * members, SETTLING)) + MEMBER * members, BEAT - LEAST)
    return math.ceil((now + wait) / LEAST) * LEAST
