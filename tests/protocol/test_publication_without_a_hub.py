"""The author's buffer while the hub is away and a swarm hears the events: it goes on in bounds, and says what is
gone."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.publication import Publication, PublicationLimits

A, E = "a" * 64, "0123456789abcdef"


def book(**limits: int) -> Publication:
    return Publication("t", A, E, PublicationLimits(**limits))


def seqs(frames: list[bytes]) -> list[int]:
    return [orjson.loads(frame)["meta"]["seq"] for frame in frames]


def test_it_is_never_full_while_it_yields_and_names_what_is_gone() -> None:
    pub = book(unacked_events=3, retained_events=4)
    for number in range(3):
        pub.publish(number)
    assert pub.full
    pub.yields = True
    for number in range(3, 7):
        assert not pub.full
        pub.publish(number)
    assert (pub.first, pub.next_seq, pub.unacked) == (4, 8, 7)
    pub.yields = False
    assert pub.full, "back with a hub it waits for its acknowledgements"
    resume = pub.resume(1)
    assert (seqs(resume.frames), resume.first, resume.gone) == ([4, 5, 6, 7], 4, (2, 3))
    assert pub.ack(7) == 6
    assert (pub.full, pub.unacked, pub.unacked_bytes, pub.retained) == (False, 0, 0, 4)


def test_what_was_acknowledged_makes_room_before_what_was_not() -> None:
    pub = book(retained_events=4)
    for number in range(4):
        pub.publish(number)
    pub.ack(2)
    pub.yields = True
    pub.publish(4)
    pub.publish(5)
    assert (pub.first, pub.retained, pub.unacked) == (3, 0, 4)
    assert pub.resume(2).gone is None
    assert seqs(pub.resume(2).frames) == [3, 4, 5, 6]


def test_bytes_bound_it_too_and_the_newest_stays() -> None:
    pub = book(retained_bytes=500)
    pub.yields = True
    for _ in range(10):
        pub.publish("x" * 100)
    assert pub.unacked_bytes <= 500
    pub.publish("x" * 1_000)
    assert pub.first == pub.next_seq - 1, "an event larger than the bound is kept alone"


def test_runs_are_consecutive_and_stop_at_what_was_given_up() -> None:
    pub = book()
    for width in (1, 1, 900, 1, 1):
        pub.publish("x" * width)
    assert [(first, seqs(frames)) for first, frames in pub.runs(2, 9)] == [(2, [2, 3, 4, 5])]
    pub.limit(500)
    assert [(first, seqs(frames)) for first, frames in pub.runs(2, 9)] == [(2, [2]), (4, [4, 5])]
    assert pub.runs(6, 9) == []
    assert pub.runs(3, 3) == []
    assert [(first, seqs(frames)) for first, frames in pub.runs(1, 5, max_bytes=1)] == [(1, [1])]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pub"), st.integers(0, 60)),
            st.tuples(st.just("ack"), st.integers(-1, 40)),
            st.tuples(st.just("resume"), st.integers(0, 40)),
            st.tuples(st.just("away"), st.integers(0, 1)),
            st.tuples(st.just("limit"), st.integers(90, 160)),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(100, 900),
)
def test_every_number_is_sent_again_acknowledged_or_named(
    steps: list[tuple[str, int]], events: int, retained: int, retained_bytes: int
) -> None:
    pub = book(unacked_events=events, retained_events=retained, retained_bytes=retained_bytes)
    log: list[bytes] = []
    given_up: set[int] = set()
    for what, number in steps:
        if what == "pub" and not pub.full:
            if len(log) < 60:
                pub.limit(1_000)
                log.append(pub.publish("x" * number))
        elif what == "ack":
            pub.ack(number)
        elif what == "away":
            pub.yields = bool(number)
        elif what == "limit":
            pub.limit(number)
            given_up.update(seq for seq, frame in enumerate(log, 1) if len(frame) > number and seq >= pub.first)
        elif what == "resume" and number <= len(log):
            resume = pub.resume(number)
            gone = set(range(resume.gone[0], resume.gone[1] + 1)) if resume.gone else set()
            again = seqs(resume.frames)
            assert again == [seq for seq in range(resume.first, len(log) + 1) if seq not in given_up]
            assert gone == set(range(number + 1, resume.first))
            assert all(log[seq - 1] == frame for seq, frame in zip(again, resume.frames, strict=True))
        held = [frame for _, run in pub.runs(1, len(log)) for frame in run]
        assert held == [log[seq - 1] for seq in range(pub.first, len(log) + 1) if seq not in given_up]
        after = [frame for _, run in pub.runs(pub.acked + 1, len(log)) for frame in run]
        assert pub.unacked_bytes == sum(map(len, after))
        assert pub.acked + pub.unacked == len(log)
        if pub.yields and what == "pub":
            assert len(log) + 1 - pub.first <= max(1, retained)
