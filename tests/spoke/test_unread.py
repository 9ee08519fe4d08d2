"""What waits for a reader: each event once and in order, whichever way it is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.events import Event
from broker.protocol.codec import Places
from broker.spoke.unread import Unread

AUTHOR, EPOCH = "a" * 64, "e" * 16


def run_of(first: int, count: int) -> Places[Event]:
    return Places(range(first, first + count), "t", AUTHOR, EPOCH, Event)


Steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5)),
        st.tuples(st.just("add a list"), st.integers(0, 5)),
        st.tuples(st.just("next"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["run", "events"]), st.just(0)),
    ),
    max_size=60,
)


@given(Steps)
def test_each_event_is_read_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    """Against a list of numbers."""
    unread, waiting, newest = Unread(), list[int](), 0
    for what, number in steps:
        match what:
            case "add" | "add a list":
                run = run_of(newest + 1, number)
                unread.add(run if what == "add" else list(run))
                waiting += range(newest + 1, newest + number + 1)
                newest += number
            case "next":
                for _ in range(number):
                    assert unread.refill() is bool(waiting)
                    if waiting:
                        assert unread.next.popleft().seq == waiting.pop(0)
            case "run":
                if waiting:
                    read = [event.seq for event in unread.run()]
                    assert read
                    assert read == waiting[: len(read)]
                    del waiting[: len(read)]
            case _:
                assert [event.seq for event in unread.events()] == waiting
                waiting.clear()
        assert len(unread) == len(waiting)


def test_runs_are_handed_on_as_they_came() -> None:
    """So of what is only counted no event is made; and what one reader is given may be another's, too."""
    unread, places, events = Unread(), run_of(1, 3), list(run_of(4, 2))
    unread.add(places)
    unread.add(events)
    assert unread.run() is places
    assert unread.run() is events
    unread.add(events)
    own = unread.events()
    assert own == events
    assert own is not events


def test_of_a_run_that_was_begun_the_rest_comes_first() -> None:
    unread = Unread()
    unread.add(run_of(1, 3))
    unread.add(run_of(4, 2))
    assert unread.refill()
    unread.next.popleft()
    assert [[event.seq for event in unread.run()] for _ in range(2)] == [[2, 3], [4, 5]]
    assert not unread.refill()
    assert len(unread) == 0
