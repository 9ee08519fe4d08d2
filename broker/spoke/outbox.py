"""One topic of an author: what it published, what of that is still to go, and who waits for room or for the end.

Not here: when something goes and which way (publisher.py), and what is kept for whom (protocol/publication.py).
"""

from __future__ import annotations

import asyncio
from collections import deque

from broker.protocol.holding import Holding
from broker.protocol.publication import UNACKED_EVENTS, Publication

__all__ = ["Outbox"]


class Outbox:
    """State that the publisher changes; what it can tell by itself are its methods."""

    __slots__ = ("acked_at", "barred_until", "by_swarm", "gossiped", "held_from", "holding", "live", "next",
                 "publication", "refused", "stream_only", "timer", "unsent", "waiters", "window")  # fmt: skip

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        # Bounded by the publication: only unacknowledged or retained events are ever in here.
        self.unsent: deque[bytes] = deque()
        self.live = False
        self.by_swarm = False
        """``unsent`` is for the stream; what is for the swarm begins at ``next``."""
        self.next = 1
        self.gossiped = 0
        """The newest that a swarm was given."""
        self.window: int | None = None
        """Events that may be in the swarm unacknowledged while the hub is there."""
        self.holding = Holding()
        """Of what is in the swarm."""
        self.timer: asyncio.TimerHandle | None = None
        """For what is held."""
        self.stream_only = False
        """So its author wants it."""
        self.acked_at = self.barred_until = 0.0
        self.held_from: int | None = None
        """What is numbered from here on waits for the swarm, until the hub has all that went by stream."""
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.refused: str | None = None

    @property
    def full(self) -> bool:
        """Whether to wait: for the hub's acknowledgement, or while there is none to be had, for room in the swarm."""
        publication = self.publication
        return publication.full or (publication.yields and publication.next_seq - self.next >= UNACKED_EVENTS)

    def wait(self, newest: int, message_bytes: int, now: float) -> float:
        """Seconds for which what is next for the swarm, up to ``newest``, waits for more to go with it. What fills a
        message, as far as the mean size of what is not acknowledged tells, does not."""
        publication = self.publication
        if (newest + 1 - self.next) * publication.unacked_bytes >= message_bytes * publication.unacked:
            return 0.0
        return self.holding.wait(now)
