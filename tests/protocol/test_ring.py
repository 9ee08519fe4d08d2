"""The ring and its readers: nothing is read twice, nothing is left out in silence, memory and patience are bounded."""

from __future__ import annotations

import pytest

from broker.protocol import ring as ring_module
from broker.protocol.entries import SLACK
from broker.protocol.ring import Batch, Disconnect, Head, Lost, Outcome, Ring, RingSince
from tests.protocol.rings import BLOCK, CUT, DROP, E, fill, name, numbers, read


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
    assert ring.newly_ackable() == [Head("a", E, 2), Head("b", E, 1)]
    assert ring.newly_ackable() == []
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
    fill(ring, 11)
    assert ring.range("a", E, 8, 11).missing == [(10, 10)]
    assert ring.range("a", "1", 1, 5) == ([], []), "its author may come back and send it again"
    assert ring.range("a", E, 1, 9, max_events=1) == ([name("a", 5)], [(1, 4)])
    assert ring.range("a", E, 1, 2**53 - 1).missing == [(1, 4), (6, 7), (10, 10)]


def test_a_lagging_reader_reads_on_from_its_place() -> None:
    ring = Ring()
    fill(ring, 1, 2, 3, 4)
    ring.lag(1, 1, BLOCK, 0.0)
    assert (ring.lagging(1), ring.readers) == (True, 1)
    batch = ring.read(1, 2, 10**6, 0.0)
    assert (numbers(batch), batch.caught_up, list(batch.indexes)) == ([2, 3], False, [1, 2])
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


def test_authors_whose_last_event_left_after_they_were_forgotten_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "MAX_AUTHORS", 2)
    ring = Ring(capacity_events=4)
    fill(ring, 1)
    ring.lag(1, 0, DROP, 0.0)
    for author in "bcdefghijklm":
        fill(ring, 7, author=author)
    batch = read(ring)
    assert sorted(batch.lost) == [Lost("a", E, 1, 1)] + [Lost(author, E, 7, 7) for author in "bcdefghi"]
    assert [frame[:1] for frame in batch.frames] == [b"j", b"k", b"l", b"m"]


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


def test_a_seeker_that_is_overtaken_is_not_told_of_what_it_had() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, author="b")
    fill(ring, 1, 2, 3)
    ring.seek(1, {"a": (E, 3), "b": (E, 0)}, DROP, 0.0)
    fill(ring, 4, 5, 6, 7)
    assert read(ring).lost == [Lost("b", E, 1, 1)]


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
    assert len(ring._entries) < 100 + 2 * SLACK
    assert numbers(_after_start(ring)) == list(range(9_901, 10_001))


def _after_start(ring: Ring) -> Batch:
    ring.seek(9, "start", BLOCK, 0.0)
    return read(ring, 9)
