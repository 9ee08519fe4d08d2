"""When a hub sends its heartbeat into a swarm: now and then, and more often while spokes wait to hear it.

A spoke counts heartbeats before it leaves the stream (membership.py), and they are what finds plumtree's tree: the
first goes by all edges, and each member drops those that bring it twice. Not here: sending it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BEAT", "SETTLING", "Beats"]

BEAT: Final = 2.0
"""Seconds: a spoke that hears nothing for five asks for fresh bootstrap."""
SETTLING: Final = 0.25
"""Seconds while spokes settle: a heartbeat is everywhere before the next, also where it had to be asked for
(gossip.rs)."""
MEMBER: Final = 0.002
"""Seconds more for each member: on one machine with all of them the first takes that long."""


class Beats:
    """One swarm's schedule."""

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due = 0.0

    def told(self, now: float, members: int) -> None:
        """A spoke was told of the swarm."""
        self.due = min(self.due, now + _settling(members))

    def tick(self, now: float, members: int, *, settling: bool) -> bool:
        """Whether to send it now. ``settling``: somebody waits for the next."""
        if now < self.due:
            return False
        self.due = now + (_settling(members) if settling else BEAT)
        return True


def _settling(members: int) -> float:
    return min(SETTLING + MEMBER * members, BEAT)
