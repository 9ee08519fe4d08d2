"""When a hub sends its heartbeat."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.beats import BEAT, SETTLING, Beats


def test_it_beats_often_while_somebody_settles_and_rarely_after() -> None:
    beats = Beats()
    assert beats.tick(100.0, 5, settling=False)
    assert beats.due == 100.0 + BEAT
    beats.told(100.5, 5)
    soon = beats.due
    assert 100.5 + SETTLING <= soon < 100.5 + 2 * SETTLING
    assert not beats.tick(soon - 0.001, 5, settling=True)
    assert beats.tick(soon, 5, settling=True)
    assert beats.due - soon < 2 * SETTLING
    assert beats.tick(beats.due, 5, settling=False)
    assert beats.due > soon + BEAT


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.integers(0, 5_000)), max_size=50))
def test_however_many_join_it_beats_in_time_and_not_faster_than_it_may(steps: list[tuple[float, bool, int]]) -> None:
    beats, now, last = Beats(), 0.0, float("-inf")
    for seconds, tells, members in steps:
        end = now + seconds
        while beats.due <= end:
            now = max(now, beats.due)
            assert beats.tick(now, members, settling=tells)
            assert now - last >= SETTLING
            last = now
        now = end
        assert now - last <= BEAT
        if tells:
            beats.told(now, members)
            assert beats.due <= now + BEAT
