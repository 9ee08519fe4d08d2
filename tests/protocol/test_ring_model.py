"""The ring against the list of all events that it ever took, with readers that lag, seek, pause and give back."""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol.ring import Batch, Demoted, Disconnect, Head, Outcome, Ring
from broker.protocol.routing import SubscribeOptions

BLOCK = SubscribeOptions()
DROP = SubscribeOptions(policy="drop_oldest")
CUT = SubscribeOptions(policy="disconnect")


def name(author: str, seq: int, epoch: str, size: int = 0) -> bytes:
    return f"{author}/{epoch}/{seq}".encode().ljust(size)


class Entry(NamedTuple):
    author: str
    epoch: str
    seq: int

    @property
    def source(self) -> tuple[str, str]:
        return self.author, self.epoch


class Model:
    """A reader as a list: what it is to get, what it got, what it was told is lost."""

    def __init__(self, due: list[int], options: SubscribeOptions) -> None:
        self.due, self.options = due, options
        self.got: list[int] = []
        self.lost: set[Entry] = set()
        self.demoted = self.paused = False
        self.had: dict[tuple[str, str], int] = {}
        """Up to where a seeker said to have each author: what comes of that later may be left out, or not."""
        self.spare: set[int] = set()


class Against(RuleBasedStateMachine):
    """Any order of appends, refusals, seeks, reads, pauses and ticks, against the list of all events ever accepted."""

    @initialize(events=st.integers(1, 8), size=st.sampled_from([60, 300, 10**6]))
    def begin(self, events: int, size: int) -> None:
        self.capacity, self.capacity_bytes = events, size
        self.ring = Ring(events, size)
        self.now = 0.0
        self.log: list[Entry] = []
        self.sizes: list[int] = []
        self.next: dict[tuple[str, str], int] = {}
        self.first: dict[tuple[str, str], int] = {}
        self.readers: dict[int, Model] = {}
        self.acked: dict[tuple[str, str], int] = {}
        self.blocked: set[int] = set()
        """Whose policy was to block at any time since the last tick: it may have another one when it hears of that."""

    @rule(author=st.sampled_from("ab"), epoch=st.sampled_from("123"), skip=st.sampled_from([0, 0, 0, 0, 1, 2, -1]),
          size=st.sampled_from([10, 10, 10, 50, 200]), count=st.integers(1, 4))  # fmt: skip
    def append(self, author: str, epoch: str, skip: int, size: int, count: int) -> None:
        for _ in range(count):
            entry = Entry(author, epoch, max(1, self.next.get((author, epoch), 1) + skip))
            fresh = entry.seq >= self.next.get(entry.source, 1)
            frame = name(author, entry.seq, epoch, size)
            outcome = self.ring.append(*entry, frame)
            assert outcome is (Outcome.ACCEPTED if fresh else Outcome.DUPLICATE)
            if fresh:
                self.accepted(entry, len(frame))
            self.overtaken()

    @rule(author=st.sampled_from("ab"), epoch=st.sampled_from("123"), skip=st.sampled_from([0, 0, 0, 1, -1, -3]),
          sizes=st.lists(st.sampled_from([10, 10, 50, 200]), max_size=10))  # fmt: skip
    def extend(self, author: str, epoch: str, skip: int, sizes: list[int]) -> None:
        known = self.next.get((author, epoch), 1)
        entries = [Entry(author, epoch, seq) for seq in range(max(1, known + skip), max(1, known + skip) + len(sizes))]
        frames = [name(author, one.seq, epoch, size) for one, size in zip(entries, sizes, strict=True)]
        fresh = [(one, len(frame)) for one, frame in zip(entries, frames, strict=True) if one.seq >= known]
        assert self.ring.extend(author, epoch, max(1, known + skip), frames) == len(fresh)
        for entry, size in fresh:
            self.accepted(entry, size)
        self.overtaken()

    def accepted(self, entry: Entry, size: int) -> None:
        self.next[entry.source] = entry.seq + 1
        self.first.setdefault(entry.source, entry.seq)
        for model in self.readers.values():
            if entry.seq > model.had.get(entry.source, 0):
                model.due.append(len(self.log))
            else:
                model.spare.add(len(self.log))
        self.log.append(entry)
        self.sizes.append(size)

    @rule(reader=st.integers(1, 3), back=st.integers(0, 6), options=st.sampled_from([BLOCK, DROP, CUT]))
    def refuse(self, reader: int, back: int, options: SubscribeOptions) -> None:
        if reader in self.readers:
            return
        index = max(self.ring.first_index, self.ring.next_index - back)
        self.ring.lag(reader, index, options, self.now)
        self.readers[reader] = Model(list(range(index, len(self.log))), options)
        self.blocks(reader, options)

    @rule(reader=st.integers(1, 3), options=st.sampled_from([BLOCK, DROP, CUT]), data=st.data())
    def seek(self, reader: int, options: SubscribeOptions, data: st.DataObject) -> None:
        place = st.tuples(st.sampled_from("1234"), st.integers(0, 12))
        positions = st.dictionaries(st.sampled_from("abc"), place, max_size=3)
        since: Any = data.draw(st.one_of(st.just("start"), st.integers(0, 12), positions))
        before = self.readers.get(reader)
        heads = self.ring.seek(reader, since, options, self.now)
        assert heads == [Head(*source, seq - 1) for source, seq in self.next.items()]
        due = [at for at, entry in enumerate(self.log) if entry.seq > self.had(since, entry.source)]
        model = self.readers[reader] = Model(due, options)
        model.had = {source: self.had(since, source) for source in self.next}
        model.demoted = before is not None and before.demoted
        self.blocks(reader, options)

    def blocks(self, reader: int, options: SubscribeOptions) -> None:
        if options.policy == "block":
            self.blocked.add(reader)

    def had(self, since: Any, source: tuple[str, str]) -> int:
        if not isinstance(since, dict):
            return 0 if since == "start" else max(0, since - 1)
        epoch, seq = since.get(source[0], ("", 0))
        if epoch == source[1]:
            return int(seq)
        order = list(self.next)
        named = (source[0], epoch)
        return 10**9 if named in order and order.index(source) < order.index(named) else 0

    @precondition(lambda self: self.readers)
    @rule(
        data=st.data(), events=st.sampled_from([1, 2, 5]), size=st.sampled_from([1, 100, 10**6]), back=st.integers(0, 2)
    )
    def read(self, data: st.DataObject, events: int, size: int, back: int) -> None:
        reader = data.draw(st.sampled_from(sorted(self.readers)))
        model = self.readers[reader]
        batch = self.ring.read(reader, events, size, self.now)
        if model.paused:
            assert batch == ([], [], False, [])
            return
        assert batch.frames or batch.caught_up
        assert len(batch.frames) <= events
        self.check(model, batch)
        if batch.caught_up:
            model.demoted = False
            assert not set(model.due) - set(model.got) - self.indexes(model.lost)
            if data.draw(st.booleans()):
                self.ring.forget(reader)
                del self.readers[reader]
                return
        if back and batch.indexes:
            at = max(0, len(batch.indexes) - back)
            self.ring.lag(reader, batch.indexes[at], model.options, self.now)
            del model.got[len(model.got) - len(batch.indexes) + at :]
            self.overtaken()

    def check(self, model: Model, batch: Batch) -> None:
        """What is named lost was due, and is out of the ring, and was not named before; what is read comes in order."""
        for author, epoch, a, b in batch.lost:
            assert a <= b
            gone = {entry for entry in self.log if entry.source == (author, epoch) and a <= entry.seq <= b}
            assert not gone & model.lost
            assert gone <= {self.log[at] for at in (*model.due, *model.spare)}
            assert not gone & {self.log[at] for at in model.got}
            assert all(at < self.ring.first_index for at in self.indexes(gone))
            model.lost |= gone
        for index, frame in zip(batch.indexes, batch.frames, strict=True):
            assert frame.rstrip() == name(*self.log[index][::2], self.log[index].epoch)
            assert index in model.due or index in model.spare
            assert not model.got or index > model.got[-1]
            before = {at for at in model.due if at < index and self.log[at].source == self.log[index].source}
            assert before <= set(model.got) | self.indexes(model.lost), "left out in silence"
            model.got.append(index)

    def indexes(self, entries: set[Entry]) -> set[int]:
        return {at for at, entry in enumerate(self.log) if entry in entries}

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(sorted(self.readers)))
        model = self.readers[reader]
        if model.paused:
            self.ring.lag(reader, self.ring.next_index, model.options, self.now)
        else:
            self.ring.pause(reader)
        model.paused = not model.paused

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for effect in self.ring.tick(self.now):
            model = self.readers.get(effect.reader)
            if isinstance(effect, Demoted) and model is not None:
                assert effect.reader in self.blocked
                model.demoted = True
            elif isinstance(effect, Disconnect):
                assert effect.pending > 0
        self.blocked = {reader for reader, model in self.readers.items() if model.options.policy == "block"}
        if self.ring.held:
            due = self.ring.next_deadline()
            assert due is not None
            assert self.now < due <= self.now + 2.0

    @rule()
    def acknowledge(self) -> None:
        told = self.ring.newly_ackable()
        assert not (told and self.ring.held)
        for author, epoch, seq in told:
            assert seq == self.next[author, epoch] - 1
            assert seq >= self.acked.get((author, epoch), 0)
            self.acked[author, epoch] = seq
        if not self.ring.held:
            assert self.acked == {source: seq - 1 for source, seq in self.next.items()}

    @rule(author=st.sampled_from("ab"), epoch=st.sampled_from("123"), a=st.integers(1, 12), count=st.integers(1, 8))
    def repair(self, author: str, epoch: str, a: int, count: int) -> None:
        frames, missing = self.ring.range(author, epoch, a, a + count - 1)
        newest = self.next.get((author, epoch), 1) - 1
        here = {entry.seq for entry in self.log[self.ring.first_index :] if entry.source == (author, epoch)}
        asked = range(a, min(a + count - 1, newest) + 1)
        assert [int(frame.rsplit(b"/", 1)[1]) for frame in frames] == [seq for seq in asked if seq in here]
        assert [n for x, y in missing for n in range(x, y + 1)] == [seq for seq in asked if seq not in here]

    def overtaken(self) -> None:
        """A blocking reader with patience left is overtaken only when it needs more than twice the capacity."""
        for reader, model in self.readers.items():
            one = self.ring._readers[reader]
            if one.marks is None or model.options.policy != "block" or model.demoted or one.demoted:
                continue
            needed = self.sizes[one.index :]
            assert len(needed) > 2 * self.capacity or sum(needed) > 2 * self.capacity_bytes

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "ring"):
            return
        ring, events, size = self.ring, self.capacity, self.capacity_bytes
        assert ring.next_index == len(self.log)
        assert ring.bytes == sum(self.sizes[ring.first_index :])
        assert len(ring) <= 2 * events
        assert ring.bytes <= max(2 * size, self.sizes[-1] if self.sizes else 0)
        over = len(ring) > 1 and (len(ring) > events or ring.bytes > size)
        assert ring.held == over or not any(one.blocks for one in ring._readers.values())
        if ring.held and not ring._stale:
            assert any(one.blocks and one.index == ring.first_index for one in ring._readers.values())
        for (author, epoch), seq in self.next.items():
            ackable = ring.ackable(author, epoch)
            assert self.acked.get((author, epoch), 0) <= ackable <= seq - 1
            self.acked[author, epoch] = max(ackable, self.first[author, epoch] - 1)
        for reader in self.readers:
            assert ring.lagging(reader)

    def teardown(self) -> None:
        """In the end everyone reads: everything due was read or named lost."""
        if not hasattr(self, "ring"):
            return
        for reader, model in self.readers.items():
            if model.paused:
                self.ring.lag(reader, self.ring.next_index, model.options, self.now)
            caught_up = False
            while not caught_up:
                batch = self.ring.read(reader, 3, 10**6, self.now)
                self.check(model, batch)
                caught_up = batch.caught_up
            assert sorted({*model.got, *self.indexes(model.lost)} - model.spare) == model.due
        self.now += 100.0
        self.ring.tick(self.now)
        assert not self.ring.held
        self.acknowledge()


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
