"""One concrete topic in the hub: its ring, its group and what is between them. Values only; fan_out.py, readers.py and
topics.py change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from broker import _gossip_ext as ext
from broker.hub.metrics import TopicCounters
from broker.protocol.codec import encode
from broker.protocol.ring import MAX_AUTHORS, Ring

if TYPE_CHECKING:
    from broker.hub.swarm import TopicSwarm

__all__ = ["Channel", "Feed", "head_of", "lost_frame"]


class Feed(NamedTuple):
    """What was read for a reader. ``events`` of the frames are no ``topic.lost``."""

    frames: list[bytes] | ext.Frames
    events: int


class Channel:
    """One concrete topic."""

    __slots__ = (
        "accounted",
        "announced",
        "authors",
        "by_gossip",
        "counters",
        "group",
        "leftover",
        "paused",
        "pending",
        "published",
        "ring",
        "swarm",
        "topic",
        "unacked",
        "withheld",
    )

    def __init__(self, topic: str, ring: Ring, group: ext.Group, counters: TopicCounters) -> None:
        self.topic, self.ring, self.group, self.counters = topic, ring, group, counters
        self.accounted = 0
        """Bytes of the ring that the hub's total has."""
        self.published = 0
        self.unacked = 0
        """Events since the last acknowledgements."""
        self.pending: list[bytes] = []
        """Appended to the ring and not yet fanned out."""
        self.leftover: dict[int, Feed | None] = {}
        """Readers, and what was read for each that its queue did not take."""
        self.paused: set[int] = set()
        self.authors: dict[tuple[str, str], int] = {}
        """(author, epoch) -> the peer that last published under it: where acknowledgements go."""
        self.announced: dict[tuple[str, str], tuple[int, int, int]] = {}
        """(author, epoch) -> (had, acked, newest) of authors that came back and have not sent it all again. ``had``:
        what subscribers that were here may be taken to have had."""
        self.swarm: TopicSwarm | None = None
        """While it travels by gossip, what every event of it passes first."""
        self.by_gossip: set[int] = set()
        """Subscribers that hear the swarm: the group leaves them out."""
        self.withheld = False
        """Gossip is full: no acknowledgements until it has room."""

    def remember_author(self, key: tuple[str, str], peer: int) -> None:
        """Where this author's acknowledgements go."""
        if len(self.authors) >= MAX_AUTHORS and key not in self.authors:
            self.authors.pop(next(iter(self.authors)))
        self.authors[key] = peer

    def announcement(self, key: tuple[str, str]) -> list[bytes]:
        """What is to come of an author. Of one that the hub knows nothing of, subscribers that do not know it either
        begin after what they have had; of any other they have a baseline."""
        had, _, seq = self.announced[key]
        heads = [head_of(self.topic, *key, seq)]
        if not self.ring.newest(*key):
            heads.insert(0, head_of(self.topic, *key, had, baseline=True))
        return [encode("topic.head", head) for head in heads]

    def announcements(self) -> list[bytes]:
        """All that is still to come."""
        ring = self.ring
        for key in [key for key, (*_, seq) in self.announced.items() if ring.newest(*key) >= seq]:
            del self.announced[key]
        return [frame for key in self.announced for frame in self.announcement(key)]

    def heads(self, *, baseline: bool) -> list[tuple[str, str, int]]:
        """How far each author is, as far as the hub knows or has been told. A baseline leaves out what is still to
        come."""
        heads = {(author, epoch): seq for author, epoch, seq in self.ring.heads()}
        for key, (_, acked, seq) in self.announced.items():
            heads[key] = max(heads.get(key, 0), acked if baseline else seq)
        return [(*key, seq) for key, seq in heads.items()]


def head_of(
    topic: str, author: str, epoch: str, seq: int, *, baseline: bool = False, tag: str | None = None
) -> dict[str, Any]:
    """The detail of ``topic.head``."""
    head = {"topic": topic, "author": author, "epoch": epoch, "seq": seq, "baseline": baseline}
    return head if tag is None else {**head, "tag": tag}


def lost_frame(topic: str, author: str, epoch: str, first: int, last: int) -> bytes:
    """A ``topic.lost`` to be sent in order with the events."""
    return encode("topic.lost", {"topic": topic, "author": author, "epoch": epoch, "from": first, "to": last})
