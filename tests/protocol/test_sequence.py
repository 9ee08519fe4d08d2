"""Sequences and trackers: order, no doubles, and a verdict that is never better than the truth."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import orjson
import pytest

from broker.errors import FrameError
from broker.protocol import tracker as tracker_module
from broker.protocol.sequence import (
    MAX_SEQ,
    Repair,
    SequenceLimits,
    Sequences,
    Since,
    Verdict,
)
from broker.protocol.tracker import add_range, covers

T, A, E = "t", "a" * 64, "0" * 16


def one(since: Since = None) -> Sequences[int]:
    return Sequences(since)


def feed(seqs: Sequences[int], *numbers: int, now: float = 0.0) -> list[int]:
    out: list[int] = []
    for number in numbers:
        out += seqs.event(T, A, E, number, number, now)
    return out


def verdict(seqs: Sequences[Any], epoch: str = E) -> Verdict:
    found = seqs.verdict(T, A, epoch)
    assert found is not None
    return found


def test_in_order_is_delivered_at_once() -> None:
    seqs = one()
    assert feed(seqs, 1, 2, 3) == [1, 2, 3]
    assert verdict(seqs).word == "complete"
    assert seqs.wanted(0.0) == []
    assert seqs.next_due() is None


def test_a_gap_holds_back_is_asked_for_and_repaired() -> None:
    seqs = one()
    assert feed(seqs, 1, 4, 5) == [1]
    assert verdict(seqs).word == "pending"
    assert verdict(seqs).missing == ((2, 3),)
    assert seqs.wanted(0.0) == [Repair(T, A, E, 2, 3)]
    assert feed(seqs, 3) == []
    assert feed(seqs, 2) == [2, 3, 4, 5]
    assert verdict(seqs).word == "repaired(2)"


def test_duplicates_are_dropped_wherever_they_are() -> None:
    seqs = one()
    assert feed(seqs, 5, 5, 7, 7, 6, 6, 3) == [5, 6, 7]
    assert (verdict(seqs).duplicates, verdict(seqs).start) == (4, 5)
    assert verdict(seqs).word == "repaired(1)"


def test_lost_releases_what_waited_and_stays_lost() -> None:
    seqs = one()
    feed(seqs, 1, 4)
    assert seqs.lost(T, A, E, 2, 3, 0.0) == [4]
    assert verdict(seqs).word == "lost([2,3])"
    assert feed(seqs, 3, 5) == [5]
    assert (verdict(seqs).late, verdict(seqs).lost) == (1, ((2, 3),))
    assert seqs.lost(T, A, E, 1, 5, 0.0) == []
    assert verdict(seqs).lost == ((2, 3),)


def test_lost_ahead_of_a_hole_is_not_delivered_past() -> None:
    seqs = one()
    feed(seqs, 1, 3)
    assert seqs.lost(T, A, E, 4, 5, 0.0) == []
    assert feed(seqs, 6, 5) == []
    assert feed(seqs, 2) == [2, 3, 6]
    assert verdict(seqs).word == "lost([4,5])"


def test_the_last_event_lost_is_seen_by_a_head() -> None:
    seqs = one()
    feed(seqs, 1, 2)
    seqs.head(T, A, E, 3, 10.0)
    assert verdict(seqs).word == "pending"
    assert seqs.wanted(10.0) == [], "it may be on its way"
    assert seqs.next_due() == 11.0
    assert seqs.wanted(11.0) == [Repair(T, A, E, 3, 3)]
    assert feed(seqs, 3) == [3]
    assert verdict(seqs).word == "repaired(1)"


def test_a_baseline_is_where_it_begins() -> None:
    seqs = one()
    seqs.head(T, A, E, 7, 0.0, baseline=True)
    assert verdict(seqs).word == "complete"
    assert seqs.positions() == {T: {A: (E, 7)}}
    assert feed(seqs, 7, 8) == [8]
    assert feed(seqs, 10) == []
    assert verdict(seqs).missing == ((9, 9),)


def test_an_event_lost_right_after_the_baseline_is_a_hole() -> None:
    seqs = one()
    seqs.head(T, A, E, 7, 0.0, baseline=True)
    assert feed(seqs, 9) == []
    assert verdict(seqs).word == "pending"


def test_a_head_of_an_unknown_author_is_a_hole_from_one() -> None:
    seqs = one()
    seqs.head(T, A, E, 7, 0.0)
    assert verdict(seqs).missing == ((1, 7),)


@pytest.mark.parametrize(("since", "first"), [("start", 1), (1, 1), (0, 1), (5, 5)])
def test_since_says_where_it_begins(since: Since, first: int) -> None:
    seqs = one(since)
    assert feed(seqs, first + 1) == []
    assert verdict(seqs).missing == ((first, first),)
    seqs = one(since)
    seqs.head(T, A, E, first + 1, 0.0)
    assert verdict(seqs).word == "pending"
    assert feed(seqs, first, first + 1) == [first, first + 1]
    assert verdict(seqs).word == "complete", "what was still to come was no hole"
    assert feed(seqs, *range(1, first)) == []


def test_after_a_reconnect_an_unknown_author_began_at_one() -> None:
    seqs = one()
    assert feed(seqs, 40) == [40], "before: it may have sent 39 to others before us"
    seqs.resumed(0.0)
    assert seqs.event(T, A, "1" * 16, 3, 3, 0.0) == []
    assert verdict(seqs, "1" * 16).missing == ((1, 2),)
    assert seqs.lost(T, A, "2" * 16, 3, 4, 0.0) == []
    assert verdict(seqs, "2" * 16).missing == ((1, 2),)
    seqs.head(T, A, "3" * 16, 5, 0.0, baseline=True)
    assert verdict(seqs, "3" * 16).missing == ((1, 5),)


def test_positions_given_at_the_beginning_are_where_it_goes_on() -> None:
    seqs = one({T: {A: (E, 7)}})
    assert feed(seqs, 7, 8) == [8]
    assert seqs.event(T, "b", E, 2, 2, 0.0) == [], "unknown there, so it began later: 1 is missing"
    assert seqs.positions() == {T: {A: (E, 8), "b": (E, 0)}}


def test_positions_speak_of_the_oldest_epoch_with_a_hole() -> None:
    seqs = one()
    feed(seqs, 1, 3)
    seqs.event(T, A, "f" * 16, 1, 1, 0.0)
    assert seqs.positions() == {T: {A: (E, 1)}}
    feed(seqs, 2)
    assert seqs.positions() == {T: {A: ("f" * 16, 1)}}


def test_positions_keep_within_their_size() -> None:
    seqs = one()
    for number in range(100):
        seqs.event("t" * 100 + str(number % 10), f"{number:064}", E, 1, 1, 0.0)
    for most in (0, 200, 1_000, 20_000):
        assert len(orjson.dumps(seqs.positions(most))) <= most + 2
    assert sum(map(len, seqs.positions().values())) == 100


def test_holes_are_asked_for_with_growing_pauses_then_given_up() -> None:
    seqs = one()
    feed(seqs, 1, 3)
    times: list[float] = []
    due: float | None = None
    released: list[int] = []
    while verdict(seqs).missing:
        due = seqs.next_due()
        assert due is not None
        assert seqs.expire(due - 0.001) == []
        released = seqs.expire(due)
        if seqs.wanted(due):
            times.append(due)
    assert times == [0.0, 1.0, 3.0, 7.0, 15.0, 29.0]
    assert due == 31.0
    assert released == [3]
    assert verdict(seqs).word == "lost([2,2])"


def test_a_hole_that_is_being_filled_is_not_given_up() -> None:
    seqs = one()
    feed(seqs, 1)
    seqs.head(T, A, E, 1_000, 0.0)
    now = 0.0
    for number in range(2, 1_001):
        now += 0.9
        assert seqs.expire(now) == []
        assert seqs.wanted(now) == []
        assert feed(seqs, number, now=now) == [number]
    assert verdict(seqs).word == "repaired(999)"


def test_an_answer_in_parts_is_asked_on_after_a_short_silence() -> None:
    seqs = one()
    feed(seqs, 1, 2_000)
    assert seqs.wanted(0.0) == [Repair(T, A, E, 2, 1_999)]
    feed(seqs, *range(2, 500), now=0.05)
    assert seqs.wanted(0.1) == []
    assert seqs.wanted(0.2) == [Repair(T, A, E, 500, 1_999)]


def test_a_reconnect_starts_the_questions_anew() -> None:
    seqs = one()
    feed(seqs, 1, 3)
    for now in (0.0, 1.0, 3.0, 7.0, 15.0):
        assert seqs.wanted(now)
    seqs.resumed(100.0)
    assert seqs.expire(100.0) == []
    assert seqs.wanted(100.0) == []
    assert seqs.wanted(101.0)


def test_a_subscribe_over_the_same_connection_goes_on_with_the_questions() -> None:
    """Who does so every few seconds would never be told that a thing is lost."""
    seqs = one()
    feed(seqs, 1, 3)
    now, asked = 0.0, 0
    while verdict(seqs).missing:
        assert now < 60.0
        seqs.expire(now)
        asked += len(seqs.wanted(now))
        seqs.resumed(now, anew=False)
        now += 2.5
    assert asked == 6
    assert verdict(seqs).word == "lost([2,2])"


def test_a_local_drop_is_lost() -> None:
    seqs = one()
    feed(seqs, 1, 2, 3)
    for _ in range(2):
        seqs.dropped(T, A, E, 2)
    assert (verdict(seqs).word, verdict(seqs).received) == ("lost([2,2])", 2)
    seqs.dropped(T, A, E, 9)
    seqs.dropped(T, "nobody", E, 1)
    assert verdict(seqs).word == "lost([2,2])"


def test_changed_tells_each_word_once() -> None:
    seqs = one()
    feed(seqs, 1, 2)
    assert [one.word for one in seqs.changed()] == ["complete"]
    feed(seqs, 3, 5)
    assert [one.word for one in seqs.changed()] == ["pending"]
    feed(seqs, 6, 4)
    assert [one.word for one in seqs.changed()] == ["repaired(1)"]
    feed(seqs, 7, 7)
    assert seqs.changed() == []
    seqs.dropped(T, A, E, 7)
    assert [one.word for one in seqs.changed()] == ["lost([7,7])"]


def test_a_run_is_the_same_as_its_events() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        single, runs = one(), one()
        for _ in range(30):
            first, count = rng.randint(1, 40), rng.randint(0, 12)
            numbers = list(range(first, first + count))
            assert runs.run(T, A, E, first, numbers, 0.0) == feed(single, *numbers)
            if rng.random() < 0.2 and len(single):
                a = rng.randint(1, 40)
                assert single.lost(T, A, E, a, a + 2, 0.0) == runs.lost(T, A, E, a, a + 2, 0.0)
            assert single.verdicts() == runs.verdicts()
            assert single.summary() == runs.summary()


def test_held_back_is_bounded_and_the_rest_stays_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "HELD_EVENTS", 3)
    seqs = one()
    assert feed(seqs, 1, 3, 4, 5, 6, 8) == [1]
    assert verdict(seqs).missing == ((2, 2), (6, 8))
    assert feed(seqs, 2) == [2, 3, 4, 5]
    assert feed(seqs, 7, 8, 6) == [6, 7, 8]
    assert (verdict(seqs).received, verdict(seqs).word) == (8, "repaired(4)")


def test_held_back_is_bounded_over_all_sequences() -> None:
    seqs: Sequences[int] = Sequences(limits=SequenceLimits(held_total=2))
    for author in ("a", "b", "c"):
        seqs.event(T, author, E, 1, 1, 0.0)
        seqs.event(T, author, E, 3, 3, 0.0)
    assert [one.missing for one in seqs.verdicts()] == [((2, 2),), ((2, 2),), ((2, 3),)]
    assert seqs.event(T, "a", E, 2, 2, 0.0) == [2, 3]
    assert seqs.event(T, "c", E, 3, 3, 0.0) == [], "room again"
    assert seqs.event(T, "c", E, 2, 2, 0.0) == [2, 3]


def test_holes_are_bounded_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MAX_RANGES", 3)
    seqs = one("start")
    assert feed(seqs, *range(2, 41, 2)) == []
    assert verdict(seqs).known == 40
    seqs.head(T, A, E, 44, 0.0)
    out: list[int] = []
    for round_ in range(100):
        for hole in seqs.wanted(round_ * 100.0):
            out += feed(seqs, *range(hole.a, hole.b + 1), now=round_ * 100.0)
    assert out == list(range(1, 45))
    assert verdict(seqs).missing == ()


def test_what_was_known_beyond_the_holes_is_repaired_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MAX_RANGES", 1)
    seqs = one("start")
    assert feed(seqs, 2, 5, 3) == []
    assert verdict(seqs).missing == ((1, 1), (4, 5))
    assert feed(seqs, 1) == [1, 2, 3]
    assert feed(seqs, 4, 5) == [4, 5]
    assert verdict(seqs).word == "repaired(4)"


def test_lost_ranges_are_bounded_and_merge_towards_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "MAX_RANGES", 3)
    seqs = one()
    feed(seqs, *range(1, 101))
    gone = [5, 20, 22, 50, 80, 7]
    for number in gone:
        seqs.dropped(T, A, E, number)
    found = verdict(seqs)
    assert len(found.lost) == 3
    assert all(covers(list(found.lost), number) for number in gone)
    assert sum(b - a + 1 for a, b in found.lost) - found.merged == len(gone)
    assert seqs.summary().lost == len(gone)
    assert found.received == 94


def test_a_giant_hole_costs_nothing() -> None:
    seqs = one()
    feed(seqs, 1, MAX_SEQ)
    assert seqs.wanted(0.0) == [Repair(T, A, E, 2, MAX_SEQ - 1)]
    assert seqs.lost(T, A, E, 2, MAX_SEQ - 1, 0.0) == [MAX_SEQ]
    assert verdict(seqs).word == f"lost([2,{MAX_SEQ - 1}])"


@pytest.mark.parametrize("bad", [0, -1, MAX_SEQ + 1, 1.5, "1", None])
def test_numbers_that_are_none_end_the_connection(bad: Any) -> None:
    seqs = one()
    feed(seqs, 1)
    with pytest.raises(FrameError) as caught:
        seqs.event(T, A, E, bad, 0, 0.0)
    assert caught.value.close_code == 24
    with pytest.raises(FrameError):
        seqs.event(T, "new", E, bad, 0, 0.0)
    with pytest.raises(FrameError):
        seqs.lost(T, A, E, bad, 5, 0.0)
    assert len(seqs) == 1


def test_sequences_put_away_go_on_where_they_were() -> None:
    seqs: Sequences[int] = Sequences(limits=SequenceLimits(trackers=16))
    feed(seqs, 1, 2)
    seqs.dropped(T, A, E, 1)
    for number in range(40):
        seqs.event(T, f"b{number}", E, 1, 1, now=1.0 + number)
    assert len(seqs) <= 16
    assert seqs.verdict(T, A, E) is None
    assert seqs.summary().lost == 1, "the loss is not forgotten with the sequence"
    assert seqs.summary().received == 41
    assert feed(seqs, 2, 4, now=50.0) == [], "no double, and 3 is a hole"
    assert verdict(seqs).missing == ((3, 3),)
    assert feed(seqs, 3) == [3, 4]
    assert verdict(seqs).word == "unknown", "it had lost something before"


def test_sequences_forgotten_are_never_called_complete() -> None:
    seqs: Sequences[int] = Sequences("start", limits=SequenceLimits(trackers=16, remembered=8))
    for number in range(100):
        for seq in (1, 2, 3):
            assert seqs.event(T, f"b{number}", E, seq, seq, now=float(number)) == [seq]
    assert seqs.summary().forgotten > 0
    assert seqs.summary().word == "unknown"
    assert seqs.event(T, "b0", E, 5, 5, 200.0) == [5], "from the past nothing is asked for twice"
    found = seqs.verdict(T, "b0", E)
    assert found is not None
    assert found.word == "unknown"


def test_what_is_put_away_gives_its_room_back() -> None:
    seqs: Sequences[int] = Sequences(limits=SequenceLimits(trackers=2, held_total=2))
    for number in range(9):
        seqs.event(T, f"b{number}", E, 1, 1, now=float(number))
        assert seqs.event(T, f"b{number}", E, 3, 3, now=float(number)) == []
        assert seqs.event(T, f"b{number}", E, 2, 2, now=float(number)) == [2, 3]
        seqs.event(T, f"b{number}", E, 5, 5, now=float(number))
    assert sum(one.received for one in seqs.verdicts()) == 8, "of both that are left 1, 2, 3 and, held back, 5"


def test_forgetting_spares_what_is_open() -> None:
    seqs: Sequences[int] = Sequences(limits=SequenceLimits(trackers=16))
    feed(seqs, 1, 3)
    for number in range(40):
        seqs.event(T, f"b{number}", E, 1, 1, now=1.0 + number)
    assert verdict(seqs).missing == ((2, 2),)


def test_json() -> None:
    seqs = one()
    feed(seqs, 1, 4)
    assert Repair(T, A, E, 2, 3).to_json() == {"topic": T, "author": A, "epoch": E, "from": 2, "to": 3}
    shown = orjson.loads(orjson.dumps(verdict(seqs).to_json()))
    assert shown["verdict"] == "pending"
    assert shown["missing"] == [[2, 3]]


def test_a_long_word_is_cut() -> None:
    seqs = one()
    feed(seqs, *range(1, 41, 2))
    for number in range(2, 40, 2):
        seqs.lost(T, A, E, number, number, 0.0)
    assert verdict(seqs).word.endswith("[16,16],...11 more)")


def test_ranges_against_a_set() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        ranges: list[tuple[int, int]] = []
        model: set[int] = set()
        for _ in range(40):
            a = rng.randint(1, 60)
            b = a + rng.randint(0, 6)
            add_range(ranges, a, b)
            model.update(range(a, b + 1))
            assert [n for n in range(1, 70) if covers(ranges, n)] == sorted(model)
            assert all(x[1] + 1 < y[0] for x, y in pairwise(ranges))
