"""What a ring is made of: the authors whose events it holds, the cursors of its readers, and the values it hands out.

Not here: any rule. They are all in ring.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from broker.protocol.routing import Peer, SubscribeOptions

__all__ = ["Batch", "Cursor", "Demoted", "Disconnect", "Head", "Lost", "Outcome", "Source", "Span"]


class Outcome(Enum):
    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"


class Head(NamedTuple):
    """The newest number of an author in an epoch."""

    author: str
    epoch: str
    seq: int


class Lost(NamedTuple):
    """A range that a reader does not get any more, both ends included."""

    author: str
    epoch: str
    a: int
    b: int


class Span(NamedTuple):
    """What the ring has of a range, and what of it nobody has any more. What neither names is not known yet."""

    frames: list[bytes]
    missing: list[tuple[int, int]]


class Batch(NamedTuple):
    """What `Ring.read` gives. Send ``lost`` before ``frames``. ``indexes[i]`` is the place of ``frames[i]`` in the
    ring: what a connection refuses can be given back by `Ring.lag` from there."""

    frames: list[bytes]
    lost: list[Lost]
    caught_up: bool
    indexes: Sequence[int]


class Demoted(NamedTuple):
    """A ``block`` reader has spent its patience: it is overtaken from now on, until it has caught up."""

    reader: Peer


class Disconnect(NamedTuple):
    """A reader with policy ``disconnect`` was overtaken, with ``pending`` events unread."""

    reader: Peer
    pending: int


class Source:
    """One (author, epoch). ``indexes`` are its entries in the ring; ``acked`` is what its author may have been told."""

    __slots__ = ("acked", "author", "dirty", "epoch", "first", "indexes", "newest")

    def __init__(self, author: str, epoch: str, first: int) -> None:
        self.author, self.epoch, self.first = author, epoch, first
        self.newest = self.acked = first - 1
        self.dirty = False
        self.indexes: deque[int] = deque()


class Cursor:
    """One reader. ``marks``: it was overtaken, and had each source up to there (not named: from its first number on it
    had nothing). ``skip``: what a seeker has already. ``since``: it holds the ring up, counted up to then."""

    __slots__ = (
        "caught_up",
        "demoted",
        "index",
        "lost",
        "marks",
        "options",
        "passed_bytes",
        "passed_events",
        "paused",
        "since",
        "skip",
        "spent",
    )

    def __init__(self, index: int, options: SubscribeOptions) -> None:
        self.index, self.options = index, options
        self.marks: dict[Source, int] | None = None
        self.skip: dict[Source, int] = {}
        self.lost: list[Lost] = []
        self.paused = self.demoted = self.caught_up = False
        self.spent = 0.0
        self.since: float | None = None
        self.passed_events = self.passed_bytes = 0

    @property
    def blocks(self) -> bool:
        """Whether the ring waits for it."""
        return self.options.policy == "block" and (not self.demoted or self.caught_up) and self.marks is None

    @property
    def patience_left(self) -> float:
        return max(0.0, self.options.patience - self.spent) if self.blocks else 0.0

    def refresh(self, now: float) -> None:
        """Give its patience back."""
        self.spent = 0.0
        self.passed_events = self.passed_bytes = 0
        self.caught_up = False
        if self.since is not None:
            self.since = now
