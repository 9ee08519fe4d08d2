"""What a ring is made of: the authors whose events it holds, the cursors of its readers, and the values it hands out.

Not here: any rule. They are all in ring.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Literal, NamedTuple

from broker.protocol.routing import Peer, SubscribeOptions

__all__ = [
    "Batch", "Cursor", "Demoted", "Disconnect", "Head", "Lost", "Outcome", "RingSince", "Source", "Span", "already_had",
]  # fmt: skip

RingSince = Literal["start"] | int | Mapping[str, tuple[str, int]] | None
"""`place.Since` for one topic: positions are {author: (epoch, seq)}."""


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
    indexes: list[int]


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
        self.paused = self.demoted = False
        self.spent = 0.0
        self.since: float | None = None
        self.passed_events = self.passed_bytes = 0

    @property
    def blocks(self) -> bool:
        """Whether the ring waits for it."""
        return self.options.policy == "block" and not self.demoted and self.marks is None

    def refresh(self, now: float) -> None:
        """Give its patience back."""
        self.spent = 0.0
        self.passed_events = self.passed_bytes = 0
        if self.since is not None:
            self.since = now


def already_had(since: RingSince, sources: Sequence[Source]) -> dict[Source, int]:
    """Up to which number of each source a seeker has everything; ``sources`` are in the order of their first event.

    An author that positions do not name began after they were taken. Of several epochs of one author, those heard of
    before the named one are behind it.
    """
    if not isinstance(since, Mapping):
        return dict.fromkeys(sources, max(0, since - 1) if isinstance(since, int) else 0)
    known = {(source.author, source.epoch) for source in sources}
    had: dict[Source, int] = {}
    reached: set[str] = set()
    for source in sources:
        epoch, seq = since.get(source.author, ("", 0))
        if epoch == source.epoch:
            reached.add(source.author)
            had[source] = seq
        else:
            behind = source.author not in reached and (source.author, epoch) in known
            had[source] = source.newest if behind else 0
    return had
