"""The ring and its readers: nothing is read twice, nothing is left out in silence, memory and patience are bounded."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import ring as ring_module
from broker.protocol.ring import Batch, Demoted, Disconnect, Head, Lost, Outcome, Ring, RingSince
from broker.protocol.routing import SubscribeOptions

BLOCK = SubscribeOptions()
DROP = SubscribeOptions(policy="drop_oldest")
CUT = SubscribeOptions(policy="disconnect")
E = "0" * 16
ALL = (10**9, 10**9)


def name(author: str, seq: int, epoch: str = E, size: int = 0) -> bytes:
    return f"{author}/{epoch}/{seq}".encode().ljust(size)


def fill(ring: Ring, *seqs: int, author: str = "a", epoch: str = E) -> None:
    for seq in seqs:
        assert ring.append(author, epoch, seq, name(author, seq, epoch)) is Outcome.ACCEPTED


def numbers(batch: Batch) -> list[int]:
    return [int(frame.rsplit(b"/", 1)[1]) for frame in batch.frames]


def read(ring: Ring, reader: int = 1, now: float = 0.0) -> Batch:
    return ring.read(reader, *ALL, now)


def test_numbers_rise_and_doubles_are_refused() -> None:
    ring = Ring()
    fill(ring, 5, 6, 9)
    for seq in (9, 6, 1, 8):
        assert ring.append("a", E, seq, b"") is Outcome.DUPLICATE
    fill(ring, 1, epoch="1")
    assert ring.heads() == [Head("a", E, 9), Head("a", "1", 1)]
    assert (ring.newest("a", E), ring.newest("b", E)) == (9, 0)


def test_acknowledged_once_a_batch_and_again_for_a_double() -> None:
    ring = Ring()
    fill(ring, 1, 2)
    fill(ring, 1, author="b")
    assert ring.unacknowledged == 3
    assert ring.newly_ackable() == [Head("a", E, 2), Head("b", E, 1)]
    assert ring.newly_ackable() == []
    assert ring.unacknowledged == 0
    ring.append("a", E, 1, b"")
    assert ring.newly_ackable() == [Head("a", E, 2)], "its author has not heard of it"
    assert (ring.ackable("a", E), ring.ackable("nobody", E)) == (2, 0)


def test_a_range_is_answered_with_what_there_is_and_what_is_gone() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 3, 4, 5, 8, 9)
    assert ring.range("a", E, 4, 8) == ([name("a", n) for n in (4, 5, 8)], [(6, 7)])
    assert ring.range("a", E, 1, 4).missing == [(1, 3)]
    assert ring.range("a", E, 9, 20) == ([name("a", 9)], []), "10 may be on its way"
    assert ring.range("a", E, 6, 7) == ([], [(6, 7)])
    assert ring.range("a", "1", 1, 5) == ([], []), "its author may come back and send it again"
    assert ring.range("a", E, 1, 9, max_events=1) == ([name("a", 4)], [(1, 3)])
    assert ring.range("a", E, 1, 2**53 - 1).missing == [(1, 3), (6, 7)]


def test_a_lagging_reader_reads_on_from_its_place() -> None:
    ring = Ring()
    fill(ring, 1, 2, 3, 4)
    ring.lag(1, 1, BLOCK, 0.0)
    assert (ring.lagging(1), ring.behind(1), ring.readers) == (True, 3, 1)
    batch = ring.read(1, 2, 10**6, 0.0)
    assert (numbers(batch), batch.caught_up, batch.indexes) == ([2, 3], False, [1, 2])
    fill(ring, 5)
    batch = read(ring)
    assert (numbers(batch), batch.caught_up, batch.lost) == ([4, 5], True, [])
    fill(ring, 6)
    assert numbers(read(ring)) == [6], "a reader until it is forgotten"
    ring.forget(1)
    assert not ring.lagging(1)


def test_what_a_connection_refuses_is_given_back() -> None:
    ring = Ring()
    fill(ring, 1, 2, 3, 4)
    ring.lag(1, 0, BLOCK, 0.0)
    batch = read(ring)
    ring.lag(1, batch.indexes[2], BLOCK, 0.0)
    assert numbers(read(ring)) == [3, 4]


def test_what_was_read_is_kept_until_it_can_no_longer_be_given_back() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, 1, 2)
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 3, 4)
    batch = read(ring)
    ring.lag(1, batch.indexes[0], BLOCK, 0.0)
    assert ring.newly_ackable() == []
    assert numbers(read(ring)) == [1, 2, 3, 4]
    assert ring.newly_ackable() == [Head("a", E, 4)]
    assert len(ring) == 2


def test_a_batch_is_bounded_by_bytes_but_never_empty() -> None:
    ring = Ring()
    for seq in range(1, 5):
        ring.append("a", E, seq, name("a", seq, size=100))
    ring.lag(1, 0, BLOCK, 0.0)
    assert len(ring.read(1, 100, 250, 0.0).frames) == 2
    assert len(ring.read(1, 100, 1, 0.0).frames) == 1
    assert len(ring.read(1, 0, 1, 0.0).frames) == 1


def test_a_dropping_reader_hears_exactly_what_it_missed() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, 2)
    fill(ring, 1, author="b")
    ring.lag(1, 1, DROP, 0.0)
    fill(ring, 3, 4, 5)
    fill(ring, 2, author="b")
    batch = read(ring)
    assert batch.lost == [Lost("a", E, 2, 2), Lost("b", E, 1, 1)]
    assert numbers(batch) == [3, 4, 5, 2]
    assert ring.overtaken == 1
    assert read(ring).lost == []


def test_authors_that_came_and_went_while_it_was_overtaken_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "MAX_AUTHORS", 2)
    ring = Ring(capacity_events=2)
    fill(ring, 1)
    ring.lag(1, 0, DROP, 0.0)
    for author in "bcdefg":
        fill(ring, 7, 8, author=author)
    batch = read(ring)
    assert batch.lost[0] == Lost("a", E, 1, 1)
    assert batch.lost[1:] == [Lost(author, E, 7, 8) for author in "bcdef"]
    assert [frame[:1] for frame in batch.frames] == [b"g", b"g"]


def test_the_table_of_authors_forgets_the_idle_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "MAX_AUTHORS", 2)
    ring = Ring(capacity_events=2)
    fill(ring, 1, author="idle")
    fill(ring, 1, 2, author="b")
    fill(ring, 1, author="c")
    assert [head.author for head in ring.heads()] == ["b", "c"]
    fill(ring, 1, author="d")
    assert [head.author for head in ring.heads()] == ["c", "d"]
    fill(ring, 1, author="e")
    assert len(ring.heads()) == 2
    assert len(ring) == 2
    ring.seek(1, "start", BLOCK, 0.0)
    assert len(read(ring).frames) == 2, "events stay though their author is forgotten"
    assert {author for author, _, _ in ring.newly_ackable()} == {"idle", "b", "c", "d", "e"}


def test_a_blocking_reader_holds_the_ring_and_the_acknowledgements() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, 2)
    assert ring.newly_ackable() == [Head("a", E, 2)]
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 3, 4, 5, 6)
    assert ring.tick(0.0) == []
    assert ring.held
    assert ring.newly_ackable() == []
    assert ring.ackable("a", E) == 2
    assert numbers(ring.read(1, 2, 10**6, 0.5)) == [1, 2]
    assert ring.next_deadline() == 0.0
    assert ring.newly_ackable() == [Head("a", E, 6)]
    assert not ring.held
    assert len(ring) == 4
    assert numbers(read(ring, now=0.5)) == [3, 4, 5, 6]


def test_beyond_twice_the_capacity_even_a_blocking_reader_loses() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1)
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, *range(2, 9))
    assert len(ring) == 8
    fill(ring, 9)
    assert len(ring) == 4, "once it is lost for this reader nothing holds the rest"
    batch = read(ring)
    assert batch.lost == [Lost("a", E, 1, 5)]
    assert numbers(batch) == [6, 7, 8, 9]


def test_patience_runs_only_while_the_ring_is_held() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, 2, 3, 4)
    ring.lag(1, 0, BLOCK, 0.0)
    assert ring.next_deadline() is None
    assert ring.tick(100.0) == []
    fill(ring, 5)
    assert ring.next_deadline() == 0.0, "the time of an append is not known: tick says it"
    assert ring.tick(200.0) == []
    assert ring.next_deadline() == 202.0
    assert ring.tick(201.9) == []
    assert ring.tick(202.0) == [Demoted(1)]
    assert not ring.held
    assert ring.newly_ackable() == [Head("a", E, 5)]
    assert ring.demotions == 1
    batch = read(ring)
    assert batch.lost == [Lost("a", E, 1, 1)]
    assert batch.caught_up
    ring.lag(1, ring.next_index, BLOCK, 300.0)
    fill(ring, 6, 7, 8, 9, 10)
    ring.tick(300.0)
    assert ring.held, "it has caught up: patient again"


def test_a_quarter_read_gives_patience_back_and_less_does_not() -> None:
    ring = Ring(capacity_events=8)
    fill(ring, *range(1, 9))
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 9, 10, 11, 12)
    ring.tick(0.0)
    ring.tick(1.9)
    assert numbers(ring.read(1, 1, 10**6, 1.9)) == [1]
    assert ring.next_deadline() == 2.0
    assert numbers(ring.read(1, 1, 10**6, 1.95)) == [2]
    deadline = ring.next_deadline()
    assert deadline is not None
    assert deadline == pytest.approx(3.95)


def test_who_gives_back_what_it_read_makes_no_progress() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, *range(1, 5))
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 5)
    ring.tick(0.0)
    now = 0.0
    effects: list[Demoted | Disconnect] = []
    while not effects and now < 10:
        now += 0.5
        batch = ring.read(1, 1, 10**6, now)
        if batch.indexes:
            ring.lag(1, batch.indexes[0], BLOCK, now)
        fill(ring, ring.newest("a", E) + 1) if len(ring) < 8 else None
        effects = ring.tick(now)
    assert effects == [Demoted(1)]


def test_who_seeks_again_and_again_does_not_get_patience_back() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, *range(1, 5))
    ring.seek(1, "start", BLOCK, 0.0)
    fill(ring, 5)
    now = 0.0
    effects: list[Demoted | Disconnect] = []
    while not effects and now < 10:
        effects = ring.tick(now)
        now += 0.5
        ring.seek(1, "start", BLOCK, now)
    assert effects == [Demoted(1)]
    assert now <= 3.0


def test_many_that_take_turns_hold_the_ring_no_longer_than_four_patiences() -> None:
    ring = Ring(capacity_events=1_000)
    fill(ring, *range(1, 1_001))
    for peer in range(1, 101):
        ring.lag(peer, peer * 4, BLOCK, 0.0)
    held, now, seq = 0.0, 0.0, 1_000
    while seq < 1_990:
        if not ring.held:
            seq += 1
            fill(ring, seq)
        ring.tick(now)
        if ring.held:
            held += 0.25
            now += 0.25
    assert held == pytest.approx(ring_module.HOLDS * 2.0)


def test_two_slow_readers_spend_their_patience_together() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, *range(1, 5))
    ring.lag(1, 0, BLOCK, 0.0)
    ring.lag(2, 0, SubscribeOptions(patience=5.0), 0.0)
    fill(ring, 5)
    ring.tick(0.0)
    assert ring.tick(2.0) == [Demoted(1)]
    assert ring.held
    assert ring.next_deadline() == 5.0
    assert ring.tick(5.0) == [Demoted(2)]
    assert not ring.held
    assert read(ring, 1).lost == read(ring, 2).lost == [Lost("a", E, 1, 1)]


def test_no_patience_is_none() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, 1, 2)
    ring.lag(1, 0, SubscribeOptions(patience=0.0), 0.0)
    fill(ring, 3)
    assert ring.tick(0.0) == [Demoted(1)]
    assert len(ring) == 2


def test_a_reader_that_leaves_releases_the_ring() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, 1, 2)
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 3)
    ring.tick(0.0)
    assert ring.held
    ring.forget(1)
    assert ring.tick(0.1) == []
    assert ring.newly_ackable() == [Head("a", E, 3)]
    assert ring.next_deadline() is None


def test_an_overtaken_reader_with_policy_disconnect_is_named_once() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, 1)
    ring.lag(1, 0, CUT, 0.0)
    fill(ring, 2, 3, 4)
    assert ring.next_deadline() == 0.0
    assert ring.tick(0.0) == [Disconnect(1, 3)]
    assert ring.tick(0.0) == []
    assert read(ring).lost == [Lost("a", E, 1, 2)], "whoever reads on is told the truth all the same"


def test_an_event_larger_than_the_ring_stays_alone() -> None:
    ring = Ring(capacity_bytes=100)
    for seq in (1, 2, 3):
        ring.append("a", E, seq, bytes(40))
    ring.append("a", E, 4, bytes(1_000))
    assert (len(ring), ring.held) == (1, False)
    assert ring.newly_ackable() == [Head("a", E, 4)]
    ring.lag(1, 3, BLOCK, 0.0)
    ring.append("a", E, 5, bytes(10))
    assert len(ring) == 1, "a blocking reader cannot hold more than twice the capacity"
    assert read(ring).lost == [Lost("a", E, 4, 4)]
    assert ring.bytes == 10


def test_shedding_overtakes_whoever_needs_it() -> None:
    ring = Ring()
    fill(ring, *range(1, 9))
    ring.lag(1, 2, BLOCK, 0.0)
    assert ring.shed(4) == 4
    assert read(ring).lost == [Lost("a", E, 3, 4)]
    assert ring.shed(100) == 4
    assert (len(ring), ring.bytes) == (0, 0)
    assert ring.range("a", E, 1, 8).missing == [(1, 8)]


def test_a_refusal_heard_of_too_late_names_more_rather_than_less() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, *range(1, 6))
    fill(ring, 1, author="b")
    ring.lag(1, 2, DROP, 0.0)
    batch = read(ring)
    assert batch.lost == [Lost("a", E, 1, 4)]
    assert len(batch.frames) == 2


@pytest.mark.parametrize(
    ("since", "lost", "frames"),
    [
        ({"a": (E, 12)}, [], []),
        ({"a": (E, 10)}, [], [11, 12]),
        ({"a": (E, 8)}, [], [9, 10, 11, 12]),
        ({"a": (E, 5)}, [Lost("a", E, 6, 8)], [9, 10, 11, 12]),
        ({"a": (E, 99)}, [], []),
        ({"a": ("f" * 16, 10)}, [Lost("a", E, 1, 8)], [9, 10, 11, 12]),
        ({}, [Lost("a", E, 1, 8)], [9, 10, 11, 12]),
        ("start", [Lost("a", E, 1, 8)], [9, 10, 11, 12]),
        (7, [Lost("a", E, 7, 8)], [9, 10, 11, 12]),
        (11, [], [11, 12]),
        (50, [], []),
        (0, [Lost("a", E, 1, 8)], [9, 10, 11, 12]),
    ],
)
def test_seek(since: RingSince, lost: list[Lost], frames: list[int]) -> None:
    ring = Ring(capacity_events=4)
    fill(ring, *range(1, 13))
    assert ring.seek(1, since, BLOCK, 0.0) == [Head("a", E, 12)]
    batch = read(ring)
    assert (batch.lost, numbers(batch), batch.caught_up) == (lost, frames, True)


def test_seeking_nothing_is_from_now_on() -> None:
    ring = Ring()
    fill(ring, 1)
    ring.seek(1, "start", BLOCK, 0.0)
    assert ring.seek(1, None, BLOCK, 0.0) == [Head("a", E, 1)]
    assert not ring.lagging(1)


def test_a_seeker_gets_of_each_author_only_what_it_misses() -> None:
    ring = Ring()
    for seq in range(1, 6):
        fill(ring, seq)
        fill(ring, seq, author="b")
        fill(ring, seq, author="c")
    ring.seek(1, {"a": (E, 4), "b": (E, 2)}, BLOCK, 0.0)
    assert [frame.decode().replace(f"/{E}/", "") for frame in read(ring).frames] == [
        "c1", "c2", "b3", "c3", "b4", "c4", "a5", "b5", "c5",
    ]  # fmt: skip


def test_a_hub_that_lost_its_memory_names_what_is_not_refilled() -> None:
    ring = Ring()
    fill(ring, 5, 6, 7, 8)
    ring.seek(1, {"a": (E, 6)}, BLOCK, 0.0)
    assert numbers(read(ring)) == [7, 8]
    ring.seek(2, {"a": (E, 2)}, BLOCK, 0.0)
    batch = read(ring, 2)
    assert (batch.lost, numbers(batch)) == ([Lost("a", E, 3, 4)], [5, 6, 7, 8])
    assert ring.append("a", E, 6, b"") is Outcome.DUPLICATE, "refilled twice"


def test_epochs_before_the_one_a_seeker_names_are_behind_it() -> None:
    ring = Ring()
    for epoch in ("1", "2", "3"):
        fill(ring, 1, 2, epoch=epoch)
    ring.seek(1, {"a": ("2", 1)}, BLOCK, 0.0)
    assert read(ring).frames == [name("a", 2, "2"), name("a", 1, "3"), name("a", 2, "3")]


def test_a_seeker_that_is_overtaken_is_told_only_of_what_it_missed() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, 2, 3, 4)
    ring.seek(1, {"a": (E, 2)}, DROP, 0.0)
    fill(ring, 5, 6)
    assert read(ring).lost == []
    ring.seek(2, {"a": (E, 4)}, DROP, 0.0)
    fill(ring, *range(7, 12))
    assert read(ring, 2).lost == [Lost("a", E, 5, 7)]


def test_a_paused_reader_waits_and_is_told() -> None:
    ring = Ring(capacity_events=2)
    fill(ring, 1)
    ring.pause(1, DROP)
    fill(ring, 2, 3, 4)
    assert read(ring) == ([], [], False, [])
    ring.lag(1, ring.next_index, DROP, 0.0)
    batch = read(ring)
    assert (batch.lost, numbers(batch)) == ([Lost("a", E, 2, 2)], [3, 4])


def test_there_are_not_more_readers_than_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "MAX_READERS", 1)
    ring = Ring()
    ring.lag(1, 0, BLOCK, 0.0)
    ring.lag(1, 0, DROP, 0.0)
    with pytest.raises(RuntimeError):
        ring.lag(2, 0, BLOCK, 0.0)


def test_places_of_evicted_entries_are_given_back() -> None:
    ring = Ring(capacity_events=100)
    fill(ring, *range(1, 10_001))
    assert len(ring._entries) < 100 + 2 * ring_module._SLACK
    assert numbers(_after_start(ring)) == list(range(9_901, 10_001))


def _after_start(ring: Ring) -> Batch:
    ring.seek(9, "start", BLOCK, 0.0)
    return read(ring, 9)


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

    @rule(author=st.sampled_from("ab"), epoch=st.sampled_from("123"), skip=st.sampled_from([0, 0, 0, 0, 2, -1]),
          size=st.sampled_from([10, 10, 10, 50, 200]), count=st.integers(1, 4))  # fmt: skip
    def append(self, author: str, epoch: str, skip: int, size: int, count: int) -> None:
        for _ in range(count):
            entry = Entry(author, epoch, max(1, self.next.get((author, epoch), 1) + skip))
            fresh = entry.seq >= self.next.get(entry.source, 1)
            frame = name(author, entry.seq, epoch, size)
            outcome = self.ring.append(*entry, frame)
            assert outcome is (Outcome.ACCEPTED if fresh else Outcome.DUPLICATE)
            if fresh:
                self.next[entry.source] = entry.seq + 1
                self.first.setdefault(entry.source, entry.seq)
                for model in self.readers.values():
                    if entry.seq > model.had.get(entry.source, 0):
                        model.due.append(len(self.log))
                    else:
                        model.spare.add(len(self.log))
                self.log.append(entry)
                self.sizes.append(len(frame))
            self.overtaken()

    @rule(reader=st.integers(1, 3), back=st.integers(0, 6), options=st.sampled_from([BLOCK, DROP, CUT]))
    def refuse(self, reader: int, back: int, options: SubscribeOptions) -> None:
        if reader in self.readers:
            return
        index = max(self.ring.first_index, self.ring.next_index - back)
        self.ring.lag(reader, index, options, self.now)
        self.readers[reader] = Model(list(range(index, len(self.log))), options)

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
                assert model.options.policy == "block"
                model.demoted = True
            elif isinstance(effect, Disconnect):
                assert effect.pending > 0
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
            assert self.ring.unacknowledged == 0

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
            assert ring.behind(reader) <= len(self.log)

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
