"""How readers hold the ring and the acknowledgements up, and how long they may."""

from __future__ import annotations

import pytest

from broker.protocol.patience import HOLDS
from broker.protocol.ring import Demoted, Disconnect, Head, Lost, Ring
from broker.protocol.routing import SubscribeOptions
from tests.counting import functions_in
from tests.protocol.rings import BLOCK, E, fill, numbers, read


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


def test_who_has_just_caught_up_is_credited_before_another_that_lags_is_looked_at() -> None:
    """Found by the simulator: with no patience it was found to have spent it, again and again, and the hub hung."""
    ring, hasty = Ring(capacity_events=4), SubscribeOptions(policy="block", patience=0.0)
    fill(ring, 1)
    ring.lag(1, 0, hasty, 0.0)
    fill(ring, *range(2, 6))
    assert ring.tick(0.0) == [Demoted(1)]
    assert ring.read(1, 10, 10**6, 0.1).caught_up
    fill(ring, *range(6, 11))
    assert ring.held
    ring.lag(2, 9, BLOCK, 0.2)
    assert ring.tick(0.2) == [Demoted(1)]
    assert not ring.held


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
    assert ring.tick(1.95) == []
    assert ring.next_deadline() == pytest.approx(3.95)


def test_of_two_that_hold_the_ring_each_spends_its_own_time() -> None:
    ring = Ring(capacity_events=80)
    fill(ring, *range(1, 81))
    ring.lag(1, 0, BLOCK, 0.0)
    ring.lag(2, 0, SubscribeOptions(patience=50.0), 0.0)
    fill(ring, *range(81, 91))
    ring.tick(0.0)
    assert ring.tick(1.5) == []
    ring.read(1, 15, 10**6, 1.5)
    assert ring.tick(20.0) == [], "no longer in the way"
    fill(ring, *range(91, 101))
    assert ring.tick(21.0) == []
    assert ring.tick(21.4) == []
    assert ring.tick(21.5) == [Demoted(1)]


def test_what_all_may_hold_is_given_back_with_a_capacity_of_events() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, 1, 2, 3, 4)
    for first in range(5, 60):
        ring.lag(1, ring.first_index, BLOCK, float(first))
        fill(ring, first)
        assert ring.tick(float(first)) == []
        assert ring.tick(first + 0.999) == [], "it reads everything in the end"
        while not (batch := ring.read(1, 1, 10**6, first + 0.999)).caught_up:
            assert not batch.lost
        ring.forget(1)
        ring.tick(first + 0.999)


def test_reading_everything_and_giving_it_back_is_no_progress() -> None:
    ring = Ring(capacity_events=4)
    fill(ring, *range(1, 5))
    ring.lag(1, 0, BLOCK, 0.0)
    fill(ring, 5)
    ring.tick(0.0)
    for now in (0.5, 1.0, 1.5):
        ring.lag(1, read(ring, now=now).indexes[0], BLOCK, now)
        assert ring.tick(now) == []
    assert ring.tick(2.0) == [Demoted(1)]


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
    assert held == pytest.approx(HOLDS * 2.0)


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


def held_by(readers: int) -> Ring:
    ring = Ring(capacity_events=100)
    fill(ring, *range(1, 101))
    for peer in range(readers):
        ring.lag(peer, peer % 4, BLOCK, 0.0)
    fill(ring, *range(101, 151))
    assert ring.tick(0.0) == []
    assert ring.held
    return ring


def test_what_one_reads_and_gives_back_of_a_held_ring_takes_no_step_for_each_other_reader() -> None:
    costs = []
    for readers in (4, 400):
        ring = held_by(readers)
        reads = [functions_in(lambda peer=peer, ring=ring: ring.read(peer, 5, 10**6, 0.5)) for peer in range(4)]  # type: ignore[misc]
        backs = [functions_in(lambda peer=peer, ring=ring: ring.lag(peer, peer, BLOCK, 0.5)) for peer in range(4)]  # type: ignore[misc]
        news = functions_in(lambda ring=ring: ring.lag(1_000, 140, BLOCK, 0.5))  # type: ignore[misc]
        costs.append((reads, backs, news))
    assert costs[0] == costs[1]


def test_time_counts_alike_whether_or_not_others_read_meanwhile() -> None:
    """A read counts its reader's time alone; the others' is counted with the next tick, from where it was."""
    for reads in ((), (0.4, 0.9, 1.1)):
        ring = held_by(3)
        for now in reads:
            assert ring.read(1, 1, 10**6, now).frames
        assert ring.tick(1.9) == []
        assert ring.next_deadline() == pytest.approx(2.0)
        assert ring.tick(2.0) == [Demoted(peer) for peer in range(3)]


def test_who_spends_the_last_of_its_patience_as_it_reads_is_demoted() -> None:
    ring = held_by(2)
    ring.read(1, 1, 10**6, 2.0)
    assert ring.tick(2.0) == [Demoted(0), Demoted(1)]


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
