"""When a hub sends its heartbeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.beats import BEAT, LEAST, Beats

ROUNDING = 1e-6


def test_it_beats_often_while_somebody_settles_and_rarely_after() -> None:
    beats = Beats()
    assert beats.tick(100.0, 3, settling=False)
    assert beats.due == 100.0 + BEAT
    beats.told(100.5, 3)
    soon = beats.due
    assert 100.5 < soon <= 100.5 + 3 * LEAST
    assert not beats.tick(soon - 0.001, 3, settling=True)
    assert beats.tick(soon, 3, settling=True)
    assert beats.due - soon <= 3 * LEAST
    assert beats.tick(beats.due, 3, settling=False)
    assert beats.due > soon + BEAT


@pytest.mark.parametrize(("members", "least"), [(2, LEAST), (10, 0.1), (25, 0.25), (50, 0.3), (200, 0.6), (5_000, 1.9)])
def test_the_more_members_the_longer_a_heartbeat_has_to_be_everywhere(members: int, least: float) -> None:
    beats = Beats()
    beats.tick(7.0, members, settling=True)
    assert least <= beats.due - 7.0 + ROUNDING <= least + 0.1 + LEAST


def test_swarms_that_settle_at_once_beat_at_once() -> None:
    dues = set()
    for number in range(200):
        beats = Beats()
        beats.tick(50.0, 3, settling=False)
        beats.told(50.001 + number / 5_000, 3)
        dues.add(beats.due)
    assert len(dues) <= 2


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.integers(0, 5_000)), max_size=50))
def test_however_many_join_it_beats_in_time_and_not_faster_than_it_may(steps: list[tuple[float, bool, int]]) -> None:
    beats, now, last = Beats(), 0.0, float("-inf")
    for seconds, tells, members in steps:
        end = now + seconds
        while beats.due <= end:
            now = max(now, beats.due)
            assert beats.tick(now, members, settling=tells)
            assert now - last >= LEAST - ROUNDING
            last = now
        now = end
        assert now - last <= BEAT + ROUNDING
        if tells:
            beats.told(now, members)
            assert beats.due <= now + BEAT + ROUNDING
