"""The hub's log of one topic: the newest events once, and a cursor for each subscriber that is behind ("reader").

A subscriber that keeps up is served by the fan-out and is not known here. It becomes a reader when the fan-out refused it
(`lag`) or when it asks for the past (`seek`), and stops being one when `read` says ``caught_up``: put it back into the
fan-out before anything else is appended.

Rules:
1. An author's numbers rise in one epoch. What is not above the newest is a duplicate; a gap is taken as it is, and the
   subscribers see it.
2. Per reader each entry is read once, or named in ``lost`` once, or is still ahead; in the order of the ring. (After
   `seek` it starts anew, and after `pause` it waits.)
3. The ring holds its capacity. For a ``block`` reader within its patience it grows to twice that, and meanwhile no
   acknowledgement gets bigger: publishers fill their windows and wait. Beyond twice, the oldest go, whoever needs them.
   The newest entry always stays, so the bytes are bounded by twice the capacity or one event, whichever is more.
4. Patience is spent only while the reader holds the ring up, and is given back for a quarter of the capacity read, or for
   catching up. Who has spent it is overtaken like ``drop_oldest`` until it has caught up. All readers together may hold the
   ring for four patiences per capacity of events, so many that take turns cost no more than one that reads just enough.

Call `tick` and then `newly_ackable` after each batch of appends, after reads, and at `next_deadline`. Not here: sending, and
what a frame means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from enum import Enum
from itertools import islice
from typing import Final, Literal, NamedTuple

from broker.protocol.routing import Peer, SubscribeOptions

__all__ = [
    "CAPACITY_BYTES",
    "CAPACITY_EVENTS",
    "MAX_AUTHORS",
    "MAX_READERS",
    "Batch",
    "Demoted",
    "Disconnect",
    "Head",
    "Lost",
    "Outcome",
    "Ring",
    "RingSince",
    "Span",
]

CAPACITY_EVENTS: Final = 10_000
"""A second or two of a busy topic: the time in which a spoke comes back after a break of its network."""
CAPACITY_BYTES: Final = 64 * 1024 * 1024
HOLDS: Final = 4
"""Rule 4: patiences per capacity of events, the same speed that one reader must keep to hold the ring for ever."""
MAX_UNNAMED: Final = 4_096
"""Sources an overtaken reader remembers where it stood in. Beyond it (and beyond MAX_AUTHORS) `Ring.unnamed` counts."""
GROWTH: Final = 2
"""How far over capacity a blocking reader may hold the ring: room for two publishers' full windows and more."""
MAX_AUTHORS: Final = 1_024
"""(author, epoch) pairs remembered for dedup, about 500 B each. Those without an event in the ring go first."""
MAX_READERS: Final = 20_000
"""One a connection, and a process has 20,000 open files at most."""

_NEVER: Final = 2**63
_SLACK: Final = 1_024
"""Evicted places are cut off the list of entries when there are so many, and as many as entries."""

RingSince = Literal["start"] | int | Mapping[str, tuple[str, int]] | None
"""`sequence.Since` for this one topic: positions are {author: (epoch, seq)}."""


class Outcome(Enum):
    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"


class Head(NamedTuple):
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
    """What the ring has of a range, and what nobody has any more, up to the number ``upto``. Beyond it the ring cannot
    tell: it was asked for no more at a time, or the author has not sent that (again) yet."""

    frames: list[bytes]
    missing: list[tuple[int, int]]
    upto: int


class Batch(NamedTuple):
    """What `read` gives. Send ``lost`` before ``frames``. ``indexes[i]`` is where ``frames[i]`` stands in the ring: if the
    connection refuses it, call ``lag(reader, indexes[i], ...)`` before anything else is appended."""

    frames: list[bytes]
    lost: list[Lost]
    caught_up: bool
    indexes: list[int]


class Demoted(NamedTuple):
    """A ``block`` reader has spent its patience: it is overtaken from now on, until it has caught up."""

    reader: Peer


class Disconnect(NamedTuple):
    """A reader with policy ``disconnect`` was overtaken with ``pending`` events unread. It is no reader any more."""

    reader: Peer
    pending: int


class _Source:
    """One (author, epoch). ``indexes`` are its entries in the ring; ``acked`` is what its author may have been told."""

    __slots__ = ("acked", "author", "dirty", "epoch", "first", "indexes", "newest")

    def __init__(self, author: str, epoch: str, first: int) -> None:
        self.author, self.epoch, self.first = author, epoch, first
        self.newest = self.acked = first - 1
        self.dirty = False
        self.indexes: deque[int] = deque()


_Entry = tuple[_Source, int, bytes]


class _Reader:
    """A cursor. ``marks``: overtaken, and up to which number of each source it had everything. ``skip``: what a seeker
    has already. ``since``: holds the ring up, and its patience is counted from then."""

    __slots__ = (
        "demoted",
        "ended",
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
        self.marks: dict[_Source, int] | None = None
        self.skip: dict[_Source, int] = {}
        self.lost: list[Lost] = []
        self.paused = self.ended = self.demoted = False
        self.spent = 0.0
        self.since: float | None = None
        self.passed_events = self.passed_bytes = 0

    @property
    def blocks(self) -> bool:
        return self.options.policy == "block" and not self.demoted and self.marks is None

    def refresh(self, now: float) -> None:
        """Give the patience back."""
        self.spent = 0.0
        self.passed_events = self.passed_bytes = 0
        if self.since is not None:
            self.since = now


class Ring:
    """See the module. ``first_index`` and ``next_index`` are the places of the oldest and of the next entry, counted from
    the ring's beginning. ``held``: over capacity, acknowledgements are withheld."""

    def __init__(self, capacity_events: int = CAPACITY_EVENTS, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_events, self._capacity_bytes = capacity_events, capacity_bytes
        self._entries: list[_Entry | None] = []
        self._base = 0
        self.first_index = self.next_index = 0
        self.bytes = 0
        self.held = False
        self.demotions = self.overtaken = self.unnamed = 0
        self._sources: dict[tuple[str, str], _Source] = {}
        self._orphans: dict[_Source, None] = {}
        self._dirty: list[_Source] = []
        self._readers: dict[Peer, _Reader] = {}
        self._left: dict[Peer, _Reader] = {}
        self._effects: list[Demoted | Disconnect] = []
        # Lower bounds of the indexes of all readers that can be overtaken, and of those that may hold the ring.
        self._floor = self._hold = _NEVER
        self._stale = False
        self._spent = 0.0
        self._since: float | None = None
        self._mark = 0

    def __len__(self) -> int:
        return self.next_index - self.first_index

    # -- authors

    def append(self, author: str, epoch: str, seq: int, frame: bytes) -> Outcome:
        """One event of an author."""
        source = self._sources.get((author, epoch))
        if source is None:
            source = self._admit(author, epoch, seq)
        elif seq <= source.newest:
            return Outcome.DUPLICATE
        source.newest = seq
        source.indexes.append(self.next_index)
        self._entries.append((source, seq, frame))
        self.next_index += 1
        self.bytes += len(frame)
        if not source.dirty:
            source.dirty = True
            self._dirty.append(source)
        if self.next_index - self.first_index > self._capacity_events or self.bytes > self._capacity_bytes:
            self._make_room()
        return Outcome.ACCEPTED

    def _admit(self, author: str, epoch: str, seq: int) -> _Source:
        if len(self._sources) >= MAX_AUTHORS:
            key = next((key for key, one in self._sources.items() if not one.indexes), next(iter(self._sources)))
            gone = self._sources.pop(key)
            if gone.indexes:
                self._orphans[gone] = None
            else:
                self._remember(gone)
        source = self._sources[author, epoch] = _Source(author, epoch, seq)
        return source

    def _remember(self, gone: _Source) -> None:
        """Readers that were overtaken have yet to hear that they missed this source."""
        for reader in self._readers.values():
            if reader.marks is None or gone in reader.marks:
                continue
            if len(reader.marks) < MAX_UNNAMED:
                reader.marks = {**reader.marks, gone: gone.first - 1}
            else:
                self.unnamed += 1

    def heads(self) -> list[Head]:
        """The newest number of each author and epoch known, in the order in which they were first heard."""
        return [Head(one.author, one.epoch, one.newest) for one in self._sources.values()]

    def ackable(self, author: str, epoch: str) -> int:
        """Up to where this author may be told that the hub has its events. 0 when it is not known."""
        source = self._sources.get((author, epoch))
        if source is None:
            return 0
        if not self.held:
            source.acked = source.newest
        return source.acked

    def newly_ackable(self) -> list[Head]:
        """The acknowledgements to send: each author's newest number if it has risen, nothing while the ring is held."""
        if self.held or not self._dirty:
            return []
        found: list[Head] = []
        for source in self._dirty:
            source.dirty = False
            source.acked = source.newest
            found.append(Head(source.author, source.epoch, source.newest))
        self._dirty.clear()
        return found

    def range(self, author: str, epoch: str, a: int, b: int, max_events: int = CAPACITY_EVENTS) -> Span:
        """What there is of ``a..b``: the answer to ``topic.repair``. An unknown epoch may yet be refilled: no answer."""
        source = self._sources.get((author, epoch))
        if source is None:
            return Span([], [], a - 1)
        b = min(b, source.newest)
        frames: list[bytes] = []
        missing: list[tuple[int, int]] = []
        following = a
        for index in islice(source.indexes, self._place(source, a), None):
            _, seq, frame = self._entry(index)
            if seq > b:
                break
            if len(frames) >= max_events:
                return Span(frames, missing, following - 1)
            if seq > following:
                missing.append((following, seq - 1))
            frames.append(frame)
            following = seq + 1
        if following <= b:
            missing.append((following, b))
        return Span(frames, missing, max(b, a - 1))

    # -- readers

    def lagging(self, reader: Peer) -> bool:
        """Whether it is a reader, so that the fan-out must leave it out."""
        return reader in self._readers

    @property
    def readers(self) -> int:
        return len(self._readers)

    def lag(self, reader: Peer, index: int, options: SubscribeOptions, now: float) -> None:
        """The fan-out (or the sending of a batch) was refused from entry ``index`` on.

        Call it before as much is appended as the ring holds: of what has left by then no range can be named (`unnamed`).
        """
        one = self._readers.get(reader) or self._left.pop(reader, None)
        if one is None:
            one = _Reader(index, options)
        if index < self.first_index:
            self.unnamed += self.first_index - index
            index = self.first_index
        if one.marks is None and index < one.index:
            sizes = (len(self._entry(at)[2]) for at in range(index, min(one.index, self.next_index)))
            one.passed_bytes -= sum(sizes)
            one.passed_events -= one.index - index
            one.index = index
        one.options, one.paused = options, False
        self._put(reader, one)

    def seek(self, reader: Peer, since: RingSince, options: SubscribeOptions, now: float) -> list[Head]:
        """A subscribe. Makes it a reader of what it misses, if anything (`lagging` tells); returns the heads.

        With positions it gets what comes after them. An author that they do not name began after they were taken, so all
        of it is due; what of that has left the ring is lost. Of several epochs of one author, those the hub heard of before
        the named one are behind it: their holes are a matter of ``topic.repair``.
        """
        before = self._readers.pop(reader, None) or self._left.pop(reader, None)
        self._stale = True
        if since is not None:
            had = self._had(since)
            one = _Reader(self.next_index, options)
            for source, seq in had.items():
                one.lost += self._left_out(source, seq)
                place = self._place(source, seq + 1)
                if place < len(source.indexes):
                    one.index = min(one.index, source.indexes[place])
            if one.lost or one.index < self.next_index:
                one.skip = {source: seq for source, seq in had.items() if source.indexes and seq > 0}
                if before is not None:
                    # Seeking again is no progress: it would hold the ring for ever.
                    one.spent, one.demoted, one.since = before.spent, before.demoted, before.since
                self._put(reader, one)
        if self.held:
            self._settle(now)
        return self.heads()

    def pause(self, reader: Peer, options: SubscribeOptions | None = None) -> None:
        """Its user does not keep up: nothing for it until it seeks (or lags) again, though its place is kept."""
        one = self._readers.get(reader)
        if one is None:
            one = self._left.pop(reader, None) or _Reader(self.next_index, options or SubscribeOptions())
        one.paused = True
        self._put(reader, one)

    def forget(self, reader: Peer) -> None:
        """It unsubscribed or is gone. What it held up is released at the next `tick`."""
        self._left.pop(reader, None)
        if self._readers.pop(reader, None) is not None:
            self._stale = True

    def read(self, reader: Peer, max_events: int, max_bytes: int, now: float) -> Batch:
        """The next events for a reader: at least one (however large) unless ``max_events`` is 0."""
        one = self._readers.get(reader)
        if one is None:
            return Batch([], [], True, [])
        if one.paused or one.ended:
            return Batch([], [], False, [])
        if self.held:
            self._account(now)
        lost, one.lost = one.lost, []
        if one.marks is not None:
            lost += self._missed(one.marks)
            one.marks, one.index = None, self.first_index
            self._put(reader, one)
        frames, indexes = self._advance(one, max_events, max_bytes)
        caught_up = one.index == self.next_index
        if caught_up:
            self._left[reader] = self._readers.pop(reader)
        if caught_up or one.passed_events * 4 >= self._capacity_events or one.passed_bytes * 4 >= self._capacity_bytes:
            one.refresh(now)
        self._stale = True
        if self.held:
            self._settle(now)
        return Batch(frames, lost, caught_up, indexes)

    def _advance(self, one: _Reader, max_events: int, max_bytes: int) -> tuple[list[bytes], list[int]]:
        frames: list[bytes] = []
        indexes: list[int] = []
        skip, index = one.skip, one.index
        for index in range(one.index, self.next_index):
            source, seq, frame = self._entry(index)
            size = len(frame)
            if not (skip and seq <= skip.get(source, 0)):
                max_bytes -= size
                if len(frames) >= max_events or (frames and max_bytes < 0):
                    break
                frames.append(frame)
                indexes.append(index)
            one.passed_bytes += size
        else:
            index = self.next_index
        one.passed_events += index - one.index
        one.index = index
        return frames, indexes

    # -- time

    def tick(self, now: float) -> list[Demoted | Disconnect]:
        """After each batch of appends, and at `next_deadline`."""
        self._left.clear()
        self._settle(now)
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; a time that has passed means at once."""
        if self._effects:
            return 0.0
        if not self.held:
            return None
        holders = self._holders()
        if self._since is None or any(one.since is None for one in holders):
            return 0.0
        budget = HOLDS * max((one.options.patience for one in holders), default=0.0) - self._spent
        return min(
            (one.since + min(budget, one.options.patience - one.spent) for one in holders if one.since is not None),
            default=0.0,
        )

    def _settle(self, now: float) -> None:
        """Evict what may go, count the patience of those that stop the rest."""
        self._make_room()
        while self._account(now):
            self._make_room()
            if not self.held:
                self._account(now)
                break

    def _account(self, now: float) -> bool:
        """Count patience up to ``now``. True when somebody ran out of it."""
        if self.next_index - self._mark >= self._capacity_events:
            self._mark, self._spent = self.next_index, 0.0
        if not self.held:
            if self._since is not None:
                self._since = None
                for one in self._readers.values():
                    one.since = None
            return False
        holders = self._holders()
        if self._since is not None:
            self._spent += now - self._since
        self._since = now
        for one in self._readers.values():
            if one.since is not None and one.index > self.first_index and one.index >= self.next_index - self._capacity_events:
                one.since = None
        budget = HOLDS * max((one.options.patience for one in holders), default=0.0)
        demoted = False
        for peer, one in self._readers.items():
            if not (one.blocks and self._holds(one)):
                one.since = None
                continue
            if one.since is not None:
                one.spent += now - one.since
            one.since = now
            if one.spent >= one.options.patience or self._spent >= budget:
                one.demoted, one.since = True, None
                self._effects.append(Demoted(peer))
                self.demotions += 1
                demoted = self._stale = True
        return demoted

    def _holds(self, one: _Reader) -> bool:
        return one.index <= self.first_index or one.index < self.next_index - self._capacity_events

    def _holders(self) -> list[_Reader]:
        return [one for one in self._readers.values() if one.blocks and self._holds(one)]

    # -- the entries

    def _entry(self, index: int) -> _Entry:
        entry = self._entries[index - self._base]
        assert entry is not None, "an entry is read only while it is in the ring"
        return entry

    def _place(self, source: _Source, seq: int) -> int:
        """Where in ``source.indexes`` the first number not below ``seq`` is."""
        return bisect_left(source.indexes, seq, key=lambda index: self._entry(index)[1])

    def _oldest(self, source: _Source) -> int:
        """The oldest number of a source that can be read, or the next one to come."""
        return self._entry(source.indexes[0])[1] if source.indexes else source.newest + 1

    def _left_out(self, source: _Source, had: int) -> list[Lost]:
        """What of a source has left the ring after the number ``had``."""
        until = self._oldest(source) - 1
        return [Lost(source.author, source.epoch, had + 1, until)] if until > had else []

    def _missed(self, marks: dict[_Source, int]) -> list[Lost]:
        lost: list[Lost] = []
        for source in {**marks, **self._orphans, **dict.fromkeys(self._sources.values())}:
            lost += self._left_out(source, marks.get(source, source.first - 1))
        return lost

    def _had(self, since: Literal["start"] | int | Mapping[str, tuple[str, int]]) -> dict[_Source, int]:
        """Up to which number of each source a seeker has everything."""
        sources = [*self._orphans, *self._sources.values()]
        if not isinstance(since, Mapping):
            return dict.fromkeys(sources, 0 if since == "start" else max(0, int(since) - 1))
        had: dict[_Source, int] = {}
        reached: set[str] = set()
        for source in sources:
            epoch, seq = since.get(source.author, ("", 0))
            if epoch == source.epoch:
                reached.add(source.author)
                had[source] = seq
            else:
                behind = source.author not in reached and (source.author, epoch) in self._sources
                had[source] = source.newest if behind else 0
        return had

    def _put(self, peer: Peer, one: _Reader) -> None:
        if peer not in self._readers and len(self._readers) >= MAX_READERS:
            raise RuntimeError(f"{MAX_READERS} readers of one topic: more than there can be connections")
        self._readers[peer] = one
        if one.marks is None:
            self._floor = min(self._floor, one.index)
            if one.blocks:
                self._hold = min(self._hold, one.index)
        self._stale = True

    def _make_room(self) -> None:
        """Evict down to the capacity, or to what a patient reader needs; never above the hard bound."""
        events, size = self._capacity_events, self._capacity_bytes
        while (count := self.next_index - self.first_index) > 1 and (count > events or self.bytes > size):
            if self.first_index >= self._hold and count <= GROWTH * events and self.bytes <= GROWTH * size:
                if self._stale:
                    self._bounds()
                if self.first_index >= self._hold:
                    self.held = True
                    return
            self._evict()
        self.held = False

    def _bounds(self) -> None:
        free = [one.index for one in self._readers.values() if one.marks is None and not one.ended]
        self._floor = min(free, default=_NEVER)
        self._hold = min((one.index for one in self._readers.values() if one.blocks and not one.ended), default=_NEVER)
        self._stale = False

    def _evict(self) -> None:
        if self.first_index >= self._floor:
            self._overtake()
        at = self.first_index - self._base
        entry = self._entries[at]
        assert entry is not None
        source, _, frame = entry
        self._entries[at] = None
        self.bytes -= len(frame)
        self.first_index += 1
        source.indexes.popleft()
        if not source.indexes and source in self._orphans:
            del self._orphans[source]
            self._remember(source)
        if at >= _SLACK and at * 2 >= len(self._entries):
            del self._entries[: at + 1]
            self._base = self.first_index

    def _overtake(self) -> None:
        """The oldest entry goes: who has not read it is told, at its next `read`, what it misses."""
        if self._stale:
            self._bounds()
        if self.first_index < self._floor:
            return
        marks = {one: self._oldest(one) - 1 for one in (*self._orphans, *self._sources.values())}
        for peer, one in self._readers.items():
            if one.marks is not None or one.ended or one.index > self.first_index:
                continue
            self.overtaken += 1
            if one.options.policy == "disconnect":
                one.ended = True
                self._effects.append(Disconnect(peer, self.next_index - one.index))
            else:
                had = {source: max(seq, one.skip.get(source, 0)) for source, seq in marks.items()}
                one.marks, one.since = (had if one.skip else marks), None
        self._bounds()
