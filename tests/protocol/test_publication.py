"""The author's buffer: numbers without a hole, bounds, acknowledgements, and what is sent again."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import EventTooLarge
from broker.protocol.codec import encode
from broker.protocol.publication import Publication, PublicationLimits, Resume

A, E = "a" * 64, "0123456789abcdef"


def book(**limits: int) -> Publication:
    return Publication("orders.created", A, E, PublicationLimits(**limits))


def seqs(frames: list[bytes]) -> list[int]:
    return [orjson.loads(frame)["meta"]["seq"] for frame in frames]


def test_an_event_on_the_wire() -> None:
    pub = book()
    assert orjson.loads(pub.publish({"n": 1})) == {
        "type": "orders.created",
        "detail": {"n": 1},
        "meta": {"author": A, "epoch": E, "seq": 1},
    }
    second = orjson.loads(pub.publish(None, 7, "x", traceparent="00-1-2-01"))
    assert second["meta"] == {"author": A, "epoch": E, "seq": 2, "id": "x", "ts": 7, "traceparent": "00-1-2-01"}
    assert pub.next_seq == 3
    assert pub.head() == {"topic": "orders.created", "epoch": E, "seq": 2, "first": 1}


@pytest.mark.parametrize("size", [20, 200, 5_000])
def test_what_is_kept_takes_the_memory_that_the_bounds_count(size: int) -> None:
    def published() -> int:
        pub = book()
        kept.append(pub)
        return sum(len(pub.publish("x" * size)) for _ in range(200))

    def encoded() -> int:
        frames = [encode("call.responded", "x" * size) for _ in range(200)]
        kept.append(frames)
        return sum(map(len, frames))

    for make in (published, encoded):
        kept: list[Any] = []
        tracemalloc.start()
        try:
            counted = make()
            assert tracemalloc.get_traced_memory()[0] < counted + 200 * 200, "200 bytes are an object and its place"
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("bad", [object(), {1: 2}, 2**64, "\ud800", {"a": {1, 2}}])
def test_what_is_not_json_takes_no_number(bad: Any) -> None:
    pub = book()
    with pytest.raises(ValueError, match=r"orders\.created.* JSON"):
        pub.publish(bad)
    assert (pub.next_seq, pub.unacked) == (1, 0)


def test_what_is_too_large_takes_no_number() -> None:
    pub = book(max_event_bytes=200)
    with pytest.raises(EventTooLarge) as caught:
        pub.publish("x" * 200)
    assert (caught.value.limit, pub.next_seq) == (200, 1)
    assert caught.value.size > 200
    pub.publish("x")


def sizes(*widths: int, **limits: int) -> Publication:
    """A publication of events that are some 130 bytes and so many more."""
    pub = book(**limits)
    for width in widths:
        pub.publish("x" * width)
    return pub


def test_what_is_too_large_for_the_next_hub_is_given_up_and_the_rest_goes_on() -> None:
    pub = sizes(1, 1_000, 1, 2_000, 1)
    pub.ack(1)
    gone = pub.limit(500)
    assert [seq for seq, _ in gone] == [2, 4]
    assert all(1_000 < size < 2_200 for _, size in gone)
    assert (pub.acked, pub.unacked) == (2, 3), "nobody acknowledges a number that nobody gets"
    resume = pub.resume(1)
    assert (seqs(resume.frames), resume.gone) == ([3, 5], None)
    assert pub.unacked_bytes == sum(map(len, resume.frames))
    assert pub.ack(3) == 1
    assert pub.acked == 4
    assert pub.limit(500) == [], "each is told once"
    with pytest.raises(EventTooLarge) as caught:
        pub.publish("x" * 1_000)
    assert caught.value.limit == 500
    pub.ack(5)
    assert (pub.unacked, pub.unacked_bytes) == (0, 0)


def test_the_newest_that_is_given_up_is_waited_for_by_nobody() -> None:
    pub = sizes(1, 1_000, 1_000)
    assert len(pub.limit(500)) == 2
    assert pub.ack(1) == 1
    assert (pub.acked, pub.unacked, pub.unacked_bytes) == (3, 0, 0)
    assert pub.resume(0).frames == [pub.resume(0).frames[0]], "the first refills a hub without memory"


def test_what_was_acknowledged_is_not_told_when_a_smaller_hub_cannot_be_refilled_with_it() -> None:
    pub = sizes(1, 1_000, 1, retained_events=2)
    pub.ack(3)
    assert pub.limit(500) == []
    assert seqs(pub.resume(0).frames) == [3]
    pub.publish(1)
    pub.ack(4)
    assert (pub.retained, seqs(pub.resume(0).frames)) == (2, [3, 4])


def test_a_given_up_event_makes_room() -> None:
    pub = sizes(1_000, 1_000, unacked_bytes=2_000)
    assert pub.full
    pub.limit(500)
    assert not pub.full


def test_an_acknowledgement_past_a_given_up_event_settles_the_bytes_of_the_others() -> None:
    pub = sizes(1, 1_000, 1, 1)
    pub.limit(500)
    kept = pub.unacked_bytes
    pub.ack(3)
    assert (pub.unacked, 3 * pub.unacked_bytes) == (1, kept)


def test_full_by_events_and_by_bytes() -> None:
    pub = book(unacked_events=2)
    pub.publish(1)
    assert not pub.full
    pub.publish(2)
    assert pub.full
    with pytest.raises(RuntimeError, match="full"):
        pub.publish(3)
    assert pub.ack(1) == 1
    assert not pub.full
    pub = book(unacked_bytes=300)
    pub.publish("x" * 300)
    assert pub.full
    assert pub.unacked_bytes > 300
    pub.ack(1)
    assert (pub.full, pub.unacked_bytes, pub.unacked) == (False, 0, 0)


def test_stale_and_wrong_acknowledgements_are_ignored() -> None:
    pub = book()
    for number in range(5):
        pub.publish(number)
    assert [pub.ack(seq) for seq in (3, 3, 1, 0, -1, 6, 99)] == [3, 0, 0, 0, 0, 0, 0]
    assert (pub.acked, pub.unacked) == (3, 2)


def test_a_hub_that_has_some_gets_the_rest() -> None:
    pub = book()
    for number in range(5):
        pub.publish(number)
    pub.ack(2)
    resume = pub.resume(3)
    assert (seqs(resume.frames), resume.first, resume.gone) == ([4, 5], 4, None)
    assert pub.acked == 3
    assert pub.resume(5) == Resume([], 6, None)


def test_a_hub_that_lost_its_memory_is_refilled() -> None:
    pub = book()
    for number in range(5):
        pub.publish(number)
    pub.ack(4)
    assert seqs(pub.resume(0).frames) == [1, 2, 3, 4, 5]
    assert pub.acked == 4, "another hub did have them"


def test_what_is_kept_no_longer_is_named() -> None:
    pub = book(retained_events=2)
    for number in range(6):
        pub.publish(number)
    pub.ack(5)
    assert pub.retained == 2
    resume = pub.resume(0)
    assert (seqs(resume.frames), resume.first, resume.gone) == ([4, 5, 6], 4, (1, 3))
    assert pub.head()["first"] == 4
    assert pub.resume(3).gone is None
    assert book(retained_events=0).resume(0) == Resume([], 1, None)


def test_a_hub_that_claims_more_than_was_sent_is_not_believed() -> None:
    pub = book()
    pub.publish(1)
    assert pub.resume(2) == Resume([], 2, None)
    assert pub.unacked == 1


@given(
    st.lists(st.one_of(st.tuples(st.just("pub"), st.integers(0, 60)), st.tuples(st.just("ack"), st.integers(-1, 40)),
                       st.tuples(st.just("resume"), st.integers(0, 40))), max_size=60),
    st.integers(1, 6), st.integers(1, 600), st.integers(0, 6), st.integers(0, 600),
)  # fmt: skip
def test_against_a_list(
    steps: list[tuple[str, int]], events: int, size: int, retained: int, retained_bytes: int
) -> None:
    pub = book(unacked_events=events, unacked_bytes=size, retained_events=retained, retained_bytes=retained_bytes)
    log: list[bytes] = []
    acked = 0
    for what, number in steps:
        if what == "pub" and not pub.full:
            log.append(pub.publish("x" * number))
        elif what == "ack":
            pub.ack(number)
            acked = number if acked < number <= len(log) else acked
        elif what == "resume":
            acked = number if acked < number <= len(log) else acked
            resume = pub.resume(number)
            if number <= len(log):
                assert resume.frames == log[resume.first - 1 :]
                assert number < resume.first <= acked + 1 or resume.first == number + 1
                assert resume.gone == ((number + 1, resume.first - 1) if resume.first > number + 1 else None)
        kept = log[pub.head()["first"] - 1 : acked]
        assert pub.acked == acked
        assert pub.unacked == len(log) - acked <= events
        assert pub.unacked_bytes == sum(map(len, log[acked:]))
        assert pub.retained == len(kept) <= retained
        assert sum(map(len, kept)) <= retained_bytes
        more = log[max(0, pub.head()["first"] - 2) : acked]
        assert len(more) == len(kept) or len(more) > retained or sum(map(len, more)) > retained_bytes or not acked
