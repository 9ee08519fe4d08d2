"""When an author's next message to a swarm waits for more events to go with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.holding import MOST, REMEMBERED, SLACK, Holding

NEAR, FAR = 0.002, 0.4
"""Seconds that an acknowledgement takes."""


def used_to(seconds: float) -> Holding:
    """An author whose acknowledgements take so long; the next number is 2, the time 10."""
    one = Holding()
    one.gave(1, 9.0)
    one.acknowledged(1, 9.0 + seconds)
    return one


def test_nothing_waits_while_nothing_is_under_way() -> None:
    assert Holding().wait(0.0) == 0.0
    assert used_to(NEAR).wait(10.0) == 0.0


def test_nothing_waits_before_the_first_acknowledgement() -> None:
    """Nobody knows yet what is late here."""
    one = Holding()
    one.gave(1, 0.0)
    assert one.wait(100.0) == 0.0


def test_what_is_on_a_long_way_is_not_late() -> None:
    """A hundred messages a second to a hub that is far: some eighty are under way, and none of them waits."""
    one, now = used_to(FAR), 10.0
    under_way: list[tuple[int, float]] = []
    for seq in range(2, 500):
        now += 0.01
        while under_way and under_way[0][1] + 2 * FAR <= now:
            one.acknowledged(under_way.pop(0)[0], now)
        assert one.wait(now) == 0.0
        one.gave(seq, now)
        under_way.append((seq, now))


def test_while_one_is_late_the_next_waits_for_a_moment() -> None:
    one = used_to(NEAR)
    one.gave(2, 10.0)
    assert one.wait(10.0 + 2 * NEAR + SLACK / 2) == 0.0
    late = 10.0 + 2 * NEAR + 2 * SLACK
    assert one.wait(late) == pytest.approx(10.0 + MOST - late)
    assert one.wait(10.0 + MOST) == 0.0, "no longer than that after the last one"
    one.gave(3, 11.0)
    assert one.wait(11.0) == pytest.approx(MOST), "the first is late still"


def test_what_is_acknowledged_is_late_no_more() -> None:
    one = used_to(NEAR)
    one.gave(5, 10.0)
    late = 10.0 + 2 * NEAR + 2 * SLACK
    one.acknowledged(4, late)
    assert one.wait(late) > 0.0, "not all of it"
    one.acknowledged(5, late)
    assert one.wait(late) == 0.0


def test_another_way_to_the_hub_is_measured_anew() -> None:
    one = used_to(NEAR)
    one.gave(2, 10.0)
    one.forget()
    assert one.wait(100.0) == 0.0
    one.gave(3, 100.0)
    assert one.wait(101.0) == 0.0


def test_what_is_remembered_has_a_bound_and_the_oldest_counts() -> None:
    one = used_to(NEAR)
    for seq in range(2, 10 * REMEMBERED):
        one.gave(seq, 10.0 + seq / 1_000)
    assert len(one._given) == REMEMBERED
    one.acknowledged(REMEMBERED, 10.65)
    assert one.wait(10.65) > 0.0, "one is left"
    one.acknowledged(REMEMBERED + 1, 10.65)
    assert one.wait(10.65) == 0.0


@given(st.lists(st.tuples(st.sampled_from(["gave", "acknowledged", "forget"]), st.floats(0, 0.2)), max_size=300))
def test_it_never_waits_for_ever(steps: list[tuple[str, float]]) -> None:
    one, now, seq, acked = Holding(), 0.0, 0, 0
    for what, seconds in steps:
        now += seconds
        wait = one.wait(now)
        assert 0.0 <= wait <= MOST
        assert one.wait(now + MOST) == 0.0
        match what:
            case "gave":
                seq += 1
                one.gave(seq, now)
            case "acknowledged" if acked < seq:
                acked += 1
                one.acknowledged(acked, now)
            case _:
                one.forget()
