"""The hub's log of one topic: the newest events once, and a cursor for each subscriber that is behind ("reader").

A subscriber that keeps up is served by the fan-out and is not known here. It becomes a reader when the fan-out refused
it (`lag`) or when it asks for the past (`seek`). When `read` says ``caught_up`` it can go back to the fan-out: `forget`
it and add it there before anything else is appended. Until then it stays a reader and misses nothing.

Rules:
1. An author's numbers rise in one epoch. What is not above the newest is a duplicate; a gap is taken as it is, and the
   subscribers see it.
2. Each entry is read by a reader once, or named in ``lost`` once, or is still ahead of it, in the order of the ring.
   (`seek` starts anew.) In doubt more is named lost than it missed: what a subscriber has, it keeps.
3. The ring holds its capacity. For a ``block`` reader within its patience it grows to twice that, and meanwhile no
   acknowledgement gets bigger: publishers fill their windows and wait. Beyond twice the oldest go, whoever needs them.
   The newest entry always stays, so the bytes are bounded by twice the capacity or one event, whichever is more.
4. Patience is spent only while the reader holds the ring up, and is given back for a quarter of the capacity read, or
   for catching up. Who has spent it is overtaken like ``drop_oldest`` until it has caught up. All readers together may
   hold the ring for four patiences per capacity of events: many that take turns cost no more than one that reads just
   fast enough.

Call `tick` and then `newly_ackable` after each batch of appends and at `next_deadline`, `newly_ackable` after reads
too: what was read leaves the ring only then. Not here: sending, and what a frame means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice
from typing import Final

from broker.protocol.cursor import Batch, Cursor, Demoted, Disconnect, Head, Lost, Outcome, Source, Span
from broker.protocol.entries import Entries
from broker.protocol.patience import Patience
from broker.protocol.place import RingSince, already_had
from broker.protocol.routing import Peer, SubscribeOptions

__all__ = [
    "CAPACITY_BYTES", "CAPACITY_EVENTS", "MAX_AUTHORS", "MAX_READERS",
    "Batch", "Demoted", "Disconnect", "Head", "Lost", "Outcome", "Ring", "RingSince", "Span",
]  # fmt: skip

CAPACITY_EVENTS: Final = 65_536
"""Some seconds of the busiest topic: the time in which a spoke comes back after a break of its network, or sees a hole,
waits whether it closes, and asks."""
CAPACITY_BYTES: Final = 64 * 1024 * 1024
MAX_UNNAMED: Final = 4_096
"""Sources an overtaken reader remembers where it stood in. Beyond it (and beyond MAX_AUTHORS) `Ring.unnamed` counts."""
GROWTH: Final = 2
"""How far over capacity a blocking reader may hold the ring: room for two publishers' full windows and more."""
MAX_AUTHORS: Final = 1_024
"""(author, epoch) pairs remembered for dedup, about 500 B each. Those without an event in the ring go first."""
MAX_READERS: Final = 20_000
"""One a connection, and a process has 20,000 open files at most."""

_NEVER: Final = 2**63


class Ring:
    """See the module. ``first_index`` and ``next_index`` are the places of the oldest and of the next entry, counted
    from the ring's beginning; ``held``: over capacity, acknowledgements are withheld. ``demotions``, ``overtaken`` and
    ``unnamed`` (sources of which a reader could not be told) only grow."""

    def __init__(self, capacity_events: int = CAPACITY_EVENTS, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_events, self._capacity_bytes = capacity_events, capacity_bytes
        self._entries = Entries()
        self.first_index = self.next_index = 0
        self.bytes = 0
        self.held = False
        self.demotions = self.overtaken = self.unnamed = 0
        self._sources: dict[tuple[str, str], Source] = {}
        self._orphans: dict[Source, None] = {}
        self._dirty: list[Source] = []
        self._readers: dict[Peer, Cursor] = {}
        self._read: list[Cursor] = []
        self._effects: list[Demoted | Disconnect] = []
        # Lower bounds of the indexes of all readers that can be overtaken, and of those that may hold the ring.
        self._floor = self._hold = _NEVER
        self._stale = False
        self._patience = Patience(capacity_events)

    def __len__(self) -> int:
        return self.next_index - self.first_index

    # -- authors

    def append(self, author: str, epoch: str, seq: int, frame: bytes) -> Outcome:
        """One event of an author."""
        source = self._sources.get((author, epoch))
        if source is None:
            source = self._admit(author, epoch, seq)
        elif seq <= source.newest:
            # Sent again, so the acknowledgement did not arrive: give it once more.
            if not source.dirty:
                source.dirty = True
                self._dirty.append(source)
            return Outcome.DUPLICATE
        source.newest = seq
        source.indexes.append(self.next_index)
        self._entries.append(source, seq, frame)
        self.next_index += 1
        self.bytes += len(frame)
        if not source.dirty:
            source.dirty = True
            self._dirty.append(source)
        if self.next_index - self.first_index > self._capacity_events or self.bytes > self._capacity_bytes:
            self._make_room()
        return Outcome.ACCEPTED

    def extend(self, author: str, epoch: str, first_seq: int, frames: list[bytes]) -> int:
        """Consecutive events of an author: `append` for each, at the price of one. Returns how many were new."""
        for at, frame in enumerate(frames, 1):
            if self.append(author, epoch, first_seq + at - 1, frame) is Outcome.ACCEPTED:
                break
        else:
            return 0
        if rest := frames[at:]:
            source = self._sources[author, epoch]
            source.newest += len(rest)
            source.indexes.extend(range(self.next_index, self.next_index + len(rest)))
            self.next_index += len(rest)
            self.bytes += self._entries.extend(source, first_seq + at, rest)
            self._make_room()
        return len(rest) + 1

    def _admit(self, author: str, epoch: str, seq: int) -> Source:
        if len(self._sources) >= MAX_AUTHORS:
            key = next((key for key, one in self._sources.items() if not one.indexes), next(iter(self._sources)))
            gone = self._sources.pop(key)
            if gone.indexes:
                self._orphans[gone] = None
            else:
                self._remember(gone)
        source = self._sources[author, epoch] = Source(author, epoch, seq)
        return source

    def _remember(self, gone: Source) -> None:
        """Readers that were overtaken have yet to hear that they missed this source."""
        for reader in self._readers.values():
            if reader.marks is None or gone in reader.marks:
                continue
            if len(reader.marks) < MAX_UNNAMED:
                reader.marks = {**reader.marks, gone: gone.first - 1}
            else:
                self.unnamed += 1

    def newest(self, author: str, epoch: str) -> int:
        """The newest number of an author that the hub has had; 0 when it is not known."""
        source = self._sources.get((author, epoch))
        return 0 if source is None else source.newest

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
        if self.held:
            self._make_room()
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
        """The answer to ``topic.repair``: what there is of ``a..b``, and what is gone.

        An unknown epoch, and what is above the newest number, may yet be sent (again) by its author: no answer. After
        ``max_events`` the rest is left for the next question.
        """
        frames: list[bytes] = []
        missing: list[tuple[int, int]] = []
        source = self._sources.get((author, epoch))
        if source is None:
            return Span(frames, missing)
        b = min(b, source.newest)
        following = a
        for index in islice(source.indexes, self._place(source, a), None):
            _, seq = self._entries.of(index)
            if seq > b:
                break
            if len(frames) >= max_events:
                return Span(frames, missing)
            if seq > following:
                missing.append((following, seq - 1))
            frames.append(self._entries.frame(index))
            following = seq + 1
        if following <= b:
            missing.append((following, b))
        return Span(frames, missing)

    # -- readers

    def lagging(self, reader: Peer) -> bool:
        """Whether it is a reader, so that the fan-out must leave it out."""
        return reader in self._readers

    @property
    def readers(self) -> int:
        return len(self._readers)

    def patience_left(self, reader: Peer, patience: float) -> float:
        """What of its ``patience`` a subscriber may still hold the ring up for: all of it, if it is no reader."""
        return one.patience_left if (one := self._readers.get(reader)) is not None else patience

    def lag(self, reader: Peer, index: int, options: SubscribeOptions, now: float) -> None:
        """The fan-out, or the sending of a batch, was refused from entry ``index`` on.

        If that has left the ring already, everything of this topic that has is named lost.
        """
        one = self._readers.get(reader)
        if one is None:
            one = Cursor(index, options)
        elif index < one.index and one.marks is None:
            # Given back unsent, so not passed either: who refuses everything must lose its patience.
            one.caught_up = False
            one.passed_events -= one.index - index
            one.passed_bytes -= self._entries.bytes(max(index, self.first_index), one.index)
            one.index = index
        if one.index < self.first_index and one.marks is None:
            one.marks = {}
        one.options, one.paused = options, False
        self._put(reader, one)
        if self.held:
            self._credit(now)
            if self._patience.passes(one, self._over(), now):
                self._settle(now)

    def seek(self, reader: Peer, since: RingSince, options: SubscribeOptions, now: float) -> list[Head]:
        """A subscribe. With a ``since`` it is a reader of what it misses; without, it is none. Returns the heads.

        Positions: it gets what comes after them. An author that they do not name began after they were taken, so all of
        it is due, and what of that has left the ring is lost. Of several epochs of one author, those that the hub heard
        of before the named one are behind it: their holes are a matter of ``topic.repair``.
        """
        self._credit(now)
        before = self._readers.pop(reader, None)
        self._stale = True
        if since is not None:
            one = Cursor(self.next_index, options)
            had = already_had(since, [*self._orphans, *self._sources.values()])
            for source, seq in had.items():
                one.lost += self._left_out(source, seq)
                place = self._place(source, seq + 1)
                if place < len(source.indexes):
                    one.index = min(one.index, source.indexes[place])
            one.skip = {source: seq for source, seq in had.items() if source.indexes and seq > 0}
            if before is not None:
                # Seeking again is no progress, or who seeks every second could hold the ring for ever.
                one.spent, one.demoted, one.since = before.spent, before.demoted, before.since
            self._put(reader, one)
        if self.held:
            self._settle(now)
        return self.heads()

    def pause(self, reader: Peer, options: SubscribeOptions | None = None) -> None:
        """Its user does not keep up: `read` gives nothing until it seeks or lags again. Its place is kept."""
        one = self._readers.get(reader) or Cursor(self.next_index, options or SubscribeOptions())
        one.paused = True
        self._put(reader, one)

    def forget(self, reader: Peer) -> None:
        """It is back in the fan-out, or unsubscribed, or gone. What it held up is released at the next `tick`."""
        if self._readers.pop(reader, None) is not None:
            self._stale = True

    def read(self, reader: Peer, max_events: int, max_bytes: int, now: float) -> Batch:
        """The next events for a reader: unless it has caught up or is paused at least one, however large."""
        one = self._readers.get(reader)
        if one is None or one.paused:
            return Batch([], [], one is None, [])
        self._credit(now)
        if self.held and self._patience.passes(one, self._over(), now):
            self._account(now)
        lost, one.lost = one.lost, []
        if one.marks is not None:
            lost += self._missed(one.marks)
            one.marks, one.index = None, self.first_index
            self._put(reader, one)
        frames, indexes = self._advance(one, max(1, max_events), max_bytes)
        one.caught_up = one.index == self.next_index
        # Nothing is evicted or credited here, so that what the connection refuses can be given back.
        self._read.append(one)
        self._stale = True
        return Batch(frames, lost, one.caught_up, indexes)

    def _advance(self, one: Cursor, max_events: int, max_bytes: int) -> tuple[list[bytes], Sequence[int]]:
        """Many readers read the same, so this takes no step for each event; except for who has some of them already."""
        begin = one.index
        frames: list[bytes]
        indexes: Sequence[int]
        if one.skip:
            limits = max_events, max_bytes
            frames, indexes, one.index = self._entries.unskipped(begin, self.next_index, one.skip, *limits)
        else:
            one.index = self._entries.end_of(begin, max_events, max_bytes)
            frames, indexes = self._entries.frames(begin, one.index), range(begin, one.index)
        one.passed_events += one.index - begin
        one.passed_bytes += self._entries.bytes(begin, one.index)
        return frames, indexes

    # -- time

    def tick(self, now: float) -> list[Demoted | Disconnect]:
        """After each batch of appends, and at `next_deadline`."""
        self._credit(now)
        self._settle(now)
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; a time that has passed means at once."""
        if self._effects:
            return 0.0
        return self._patience.due(self._holders().values()) if self.held else None

    def _credit(self, now: float) -> None:
        """Who was read since the last time, and has not given it back, gets its patience back for it."""
        for one in self._read:
            if one.caught_up:
                one.demoted = False
            if one.caught_up or self._quarter(one):
                one.refresh(now)
        if self._read:
            self._read.clear()
            self._stale = True

    def _quarter(self, one: Cursor) -> bool:
        return one.passed_events * 4 >= self._capacity_events or one.passed_bytes * 4 >= self._capacity_bytes

    def _settle(self, now: float) -> None:
        """Evict what may go, and count the patience of those that stop the rest, until nobody's runs out."""
        self._make_room()
        while self._account(now):
            self._make_room()

    def _account(self, now: float) -> bool:
        """Count patience up to ``now``. True when somebody ran out of it."""
        holders = self._holders() if self.held else {}
        spent = self._patience.count(holders, self._readers, self.next_index, now)
        for peer in spent:
            holders[peer].demoted, holders[peer].since = True, None
            self._effects.append(Demoted(peer))
            self.demotions += 1
            self._stale = True
        return bool(spent)

    def _holders(self) -> dict[Peer, Cursor]:
        """Who needs what is over capacity, if the ring is held. A step for each reader: for batches, not for reads."""
        over = self._over()
        return {peer: one for peer, one in self._readers.items() if one.index < over and one.blocks}

    def _over(self) -> int:
        """What comes before this place is over capacity."""
        return max(self.first_index + 1, self.next_index - self._capacity_events)

    # -- the entries

    def _place(self, source: Source, seq: int) -> int:
        """Where in ``source.indexes`` the first number not below ``seq`` is."""
        return bisect_left(source.indexes, seq, key=lambda index: self._entries.of(index)[1])

    def _oldest(self, source: Source) -> int:
        """The oldest number of a source that can be read, or the next one to come."""
        return self._entries.of(source.indexes[0])[1] if source.indexes else source.newest + 1

    def _left_out(self, source: Source, had: int) -> list[Lost]:
        """What of a source has left the ring after the number ``had``."""
        until = self._oldest(source) - 1
        return [Lost(source.author, source.epoch, had + 1, until)] if until > had else []

    def _missed(self, marks: dict[Source, int]) -> list[Lost]:
        sources = {**marks, **self._orphans, **dict.fromkeys(self._sources.values())}
        return [lost for one in sources for lost in self._left_out(one, marks.get(one, one.first - 1))]

    def shed(self, count: int) -> int:
        """Give up the oldest ``count`` entries, whoever needs them: the hub is over a bound of its own."""
        for _ in range(count := min(count, len(self))):
            self._evict()
        self._make_room()
        return count

    def _put(self, peer: Peer, one: Cursor) -> None:
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
        self._floor = min((one.index for one in self._readers.values() if one.marks is None), default=_NEVER)
        self._hold = min((one.index for one in self._readers.values() if one.blocks), default=_NEVER)
        self._stale = False

    def _evict(self) -> None:
        if self.first_index >= self._floor:
            self._overtake()
        source, size = self._entries.give_up(self.first_index)
        self.bytes -= size
        self.first_index += 1
        source.indexes.popleft()
        if not source.indexes and source in self._orphans:
            del self._orphans[source]
            self._remember(source)

    def _overtake(self) -> None:
        """The oldest entry goes: who has not read it is told, at its next `read`, what it misses."""
        if self._stale:
            self._bounds()
        if self.first_index < self._floor:
            return
        marks = {one: self._oldest(one) - 1 for one in (*self._orphans, *self._sources.values())}
        for peer, one in self._readers.items():
            if one.marks is not None or one.index > self.first_index:
                continue
            self.overtaken += 1
            if one.options.policy == "disconnect":
                self._effects.append(Disconnect(peer, self.next_index - one.index))
            had = {source: max(seq, one.skip.get(source, 0)) for source, seq in marks.items()}
            one.marks, one.since = (had if one.skip else marks), None
        self._bounds()
