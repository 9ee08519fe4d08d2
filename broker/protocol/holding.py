"""When an author gathers events before it gives the swarm its next message: while the hub is late to hear the last.

A swarm that is slower than its author (busy machines) hears each message later than the one before. The next is under
way before the last is over, which breaks iroh-gossip's tree, and what mends that is more work still. One message with
what has gathered meanwhile costs little more than one with a single event.

Rules:
1. Late is what has not been acknowledged for twice as long as the quickest took, and `SLACK`. So a hub that is far away
   is not taken for a late one.
2. While something is late the next message waits, for `MOST` at most after the last one. It goes when the late one is
   acknowledged. A message that is full has no reason to wait (its author looks at that).

Not here: how much an author may have under way at all (pacing.py), and the few ms in which a flood makes a batch
(gossip_ext/src/pace.rs).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

__all__ = ["MOST", "REMEMBERED", "SLACK", "Holding"]

SLACK: Final = 0.005
"""Seconds: what the hub's acknowledgements may gather for, and some of the machine's own unevenness."""
MOST: Final = 0.05
"""Seconds: less than it takes iroh-gossip to notice that something is missing, so waiting is not taken for loss."""
REMEMBERED: Final = 64
"""Messages under way whose time is known; whether one is late is asked of the oldest alone."""


class Holding:
    """Of one author's sequence in the swarms of one topic. ``now`` is a clock that only goes forward, in seconds."""

    __slots__ = ("_given", "_given_at", "_quickest")

    def __init__(self) -> None:
        self._given: deque[tuple[int, float]] = deque()
        self._given_at = 0.0
        self._quickest = math.inf

    def gave(self, seq: int, now: float) -> None:
        """The swarm has been given everything up to this number."""
        self._given_at = now
        if len(self._given) < REMEMBERED:
            self._given.append((seq, now))

    def acknowledged(self, seq: int, now: float) -> None:
        """The hub has everything up to this number."""
        gave = None
        while self._given and self._given[0][0] <= seq:
            gave = self._given.popleft()[1]
        if gave is not None:
            self._quickest = min(self._quickest, now - gave)

    def forget(self) -> None:
        """The way to the hub may be another, and what is under way will not be acknowledged as it was given."""
        self._given.clear()
        self._quickest = math.inf

    def wait(self, now: float) -> float:
        """Seconds for which the next message waits if nothing is acknowledged meanwhile; 0 when it need not."""
        if not self._given or now - self._given[0][1] <= 2 * self._quickest + SLACK:
            return 0.0
        return max(0.0, self._given_at + MOST - now)
