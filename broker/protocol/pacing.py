"""How far an author may be ahead in the swarm of one topic: of what the hub has, and of what its members have heard.

Rules:
1. Ahead of the hub by a window. It falls to half at most once in `CALM`, when members were overrun, and grows by an
   eighth for each window that was acknowledged in quiet. That members ask for repairs says nothing of the pace: a swarm
   that looks for its tree brings some messages late at any.
2. Ahead of the slowest member by what all but a few hear in `QUEUE` seconds, between `LEAST_AHEAD` and `MOST`; by
   `REPORT` and three windows where those are less. Members say each `REPORT` events how far they have heard a sequence.
   Who has never said so is not waited for. So queues stay short, wherever on the way they are; the hub alone knows
   nothing of them, since it is mostly the first to hear. How long an event was in them is how much later than the hub a
   member said to have heard it, less the least that this ever took with it, which is the way. One word of a member that
   is late says nothing of queues: it may have had to ask for a message that its tree did not bring. One in `FEW` does.
3. A member is waited for as long as its patience. Time counts while an author is held up and the member is the slowest.
   It is given back as it hears more, all of it for `QUANTUM` events. Who has spent it is waited for no more until it is
   in sight of the newest again; what it misses it asks for.

Not here: who asks for repairs, who reports, and what a publisher does with its window.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from typing import Final

from broker.protocol.routing import Peer

__all__ = [
    "FEW", "FIRST", "LEAST", "LEAST_AHEAD", "LOOK", "MARKS", "MOST", "QUANTUM", "QUEUE", "REPORT", "SEQUENCES", "Key",
    "Pacing",
]  # fmt: skip

FIRST: Final = 512
"""Events: at 256 B, 35 messages of 4 KiB or 5 of 32, well within the 256 slots of a gossip topic."""
LEAST: Final = 64
"""A few messages: enough that a round trip of 10 ms still allows some thousand events a second."""
MOST: Final = 4_096
"""What an author keeps unacknowledged at most (protocol/publication.py)."""
CALM: Final = 0.2
"""Seconds after an overrun in which the window does not grow; all of one wave count as one."""
GROWTH: Final = 1.12
REPORT: Final = 512
"""Events between two words of a member: some 0.1 us of the hub's an event and member, where a stream costs it 1."""
QUEUE: Final = 0.1
"""Seconds: less than iroh-gossip waits before it asks for a message (gossip_ext/src/gossip.rs), or it would ask for
what is in a queue."""
FEW: Final = 4
"""With one in two, members heard a quarter of the messages twice in some floods: they asked for what was in queues."""
LEAST_AHEAD: Final = 2 * REPORT
"""Events: one report is always on its way, so nobody waits for one to be heard before the next is due."""
MARKS: Final = 64
"""Times at which the hub had so much of a sequence. Who is behind all of them counts as late as the oldest."""
QUANTUM: Final = 4_096
"""Events that give all patience back: who hears fewer than so many in its patience is left behind."""
LOOK: Final = 0.25
"""Seconds between looks at who holds an author up."""
SEQUENCES: Final = 64
"""Of one topic, those that were reported last. Authors beyond them are not held up by members."""

Key = tuple[str, str]
"""Author and epoch."""


class _Member:
    """What one member has heard of a sequence. ``way``: seconds, the least that it was later than the hub."""

    __slots__ = ("left", "patience", "seq", "spent", "way")

    def __init__(self, seq: int, patience: float) -> None:
        self.seq, self.patience = seq, patience
        self.spent = 0.0
        self.left = False
        self.way = math.inf


class _Sequence:
    """One author's, and who follows it. ``least`` is the slowest's number, which ``count`` members have in common;
    ``held_at``: since when they hold the author up; ``ahead``: how many events it may be ahead of them; ``marks``: when
    the hub had how much, from ``least`` on; ``words``: how often members came on since ``ahead`` was looked at, and
    ``late``: how often after more than `QUEUE`."""

    __slots__ = ("ahead", "count", "held_at", "late", "least", "marks", "members", "newest", "words")

    def __init__(self) -> None:
        self.members: dict[Peer, _Member] = {}
        self.least: int | None = None
        self.count = 0
        self.newest = 0
        self.held_at: float | None = None
        self.ahead = float(LEAST_AHEAD)
        self.marks: deque[tuple[int, float]] = deque(maxlen=MARKS)
        self.words = self.late = 0

    def mark(self, acked: int, now: float) -> None:
        """The hub has so much of it."""
        self.newest = max(self.newest, acked)
        if not self.marks or acked > self.marks[-1][0]:
            self.marks.append((acked, now))

    def look(self) -> None:
        followed = [one.seq for one in self.members.values() if not one.left]
        self.least = min(followed, default=None)
        self.count = followed.count(self.least) if self.least is not None else 0

    def heard(self, peer: Peer, seq: int, patience: float, now: float) -> bool:
        """Whether the slowest is another one now."""
        one, self.newest = self.members.get(peer), max(self.newest, seq)
        if one is None:
            self.members[peer] = _Member(seq, patience)
            self.look()
            return False
        before, one.patience = one.seq, patience
        if seq <= before:
            return False
        if self.held_at is not None and before == self.least and not one.left:
            one.spent += now - self.held_at
        one.spent = max(0.0, one.spent - patience * (seq - before) / QUANTUM)
        one.seq = seq
        if one.left:
            if seq < self.newest - REPORT:
                return False
            one.left, one.spent = False, 0.0
            self.look()
            return False
        self._measure(one, now)
        return before == self.least and self._moved(now)

    def _moved(self, now: float) -> bool:
        self.count -= 1
        if self.count:
            return False
        self.look()
        while self.least is not None and self.marks and self.marks[0][0] < self.least:
            self.marks.popleft()
        if self.held_at is not None:
            self.held_at = now
        return True

    def _measure(self, one: _Member, now: float) -> None:
        """A member has come on. When as many have as there are members, their words together say what is next."""
        at = bisect_left(self.marks, one.seq, key=_acked)
        if at == len(self.marks):  # the hub has not heard it
            return
        took = now - self.marks[at][1]
        one.way = min(one.way, took)
        self.words += 1
        self.late += took - one.way > QUEUE
        if self.words < len(self.members):
            return
        if FEW * self.late >= self.words:
            self.ahead = max(float(LEAST_AHEAD), self.ahead / GROWTH)
        elif self.held_at is not None:
            self.ahead = min(float(MOST), self.ahead * GROWTH)
        self.words = self.late = 0

    def leave_behind(self, now: float) -> list[Peer]:
        """Those of the slowest whose patience is spent, from now on not waited for."""
        assert self.held_at is not None
        held = now - self.held_at
        gone = [
            peer
            for peer, one in self.members.items()
            if not one.left and one.seq == self.least and one.spent + held >= one.patience
        ]
        for peer in gone:
            self.members[peer].left = True
        if gone:
            self.held_at = now
            self.look()
        return gone


class Pacing:
    """See the module. ``left_behind`` only grows: so often was a member's patience spent."""

    def __init__(self) -> None:
        self._size = float(FIRST)
        self._acknowledged = 0
        self._overrun_at = self._shrunk = float("-inf")
        self._sequences: dict[Key, _Sequence] = {}
        self._held: set[Key] = set()
        self._due = 0.0
        self.left_behind = 0

    @property
    def size(self) -> int:
        """The window in events, members left out of account."""
        return int(self._size)

    def overrun(self, now: float) -> None:
        """A member was: its queue was full, and what came is gone there."""
        self._overrun_at = now
        if now - self._shrunk >= CALM:
            self._shrunk = now
            self._size = max(float(LEAST), self._size / 2)
            self._acknowledged = 0

    def acknowledged(self, events: int, now: float) -> None:
        """So many events more are with the hub."""
        if now - self._overrun_at < CALM:
            return
        self._acknowledged += events
        while self._acknowledged >= self._size:
            self._acknowledged -= int(self._size)
            self._size = min(float(MOST), self._size * GROWTH)

    def window(self, key: Key, acked: int, now: float) -> int:
        """How many events after ``acked`` an author may have sent. With less than `size` it waits for members."""
        size, one = self.size, self._sequences.get(key)
        if one is None:
            return size
        one.mark(acked, now)
        room = size if one.least is None else max(0, one.least + self.ahead(key) - acked)
        if room >= size:
            one.held_at = None
            self._held.discard(key)
            return size
        if one.held_at is None:
            one.held_at = now
        if not self._held:
            self._due = now + LOOK
        self._held.add(key)
        return room

    def ahead(self, key: Key) -> int:
        """By how many events an author may be ahead of its slowest member."""
        one = self._sequences.get(key)
        return min(LEAST_AHEAD if one is None else int(one.ahead), REPORT + 3 * self.size)

    # -- members

    def heard(self, key: Key, peer: Peer, seq: int, patience: float, now: float) -> bool:
        """A member says how far it has heard a sequence. True: its author waits, and may go on (`window`)."""
        one = self._sequences.pop(key, None) or _Sequence()
        while len(self._sequences) >= SEQUENCES:
            del self._sequences[next(iter(self._sequences))]
        self._sequences[key] = one  # in the order of the last word
        return one.heard(peer, seq, patience, now) and key in self._held

    def followed(self, key: Key) -> dict[Peer, int]:
        """How far those have heard it that are waited for."""
        one = self._sequences.get(key)
        return {} if one is None else {peer: member.seq for peer, member in one.members.items() if not member.left}

    def gone(self, peer: Peer) -> None:
        """It is no member any more. Whom it held up may go on at the next `look`."""
        for one in self._sequences.values():
            if one.members.pop(peer, None) is not None:
                one.look()

    def next_due(self) -> float | None:
        return self._due if self._held else None

    def look(self, now: float) -> list[Key]:
        """At `next_due`: leaves behind whose patience is spent. Returns the sequences whose authors wait: each is to
        be told its `window` again."""
        if not self._held or now < self._due:
            return []
        self._due = now + LOOK
        for key in self._held:
            one = self._sequences.get(key)
            if one is not None and one.held_at is not None:
                self.left_behind += len(one.leave_behind(now))
        found = list(self._held)
        self._held = {key for key in found if key in self._sequences}
        return found


def _acked(mark: tuple[int, float]) -> int:
    return mark[0]
