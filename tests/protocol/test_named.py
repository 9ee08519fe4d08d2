"""What a batch only names, and what comes for it: the same bytes or nothing."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import named
from broker.protocol.codec import decode
from broker.protocol.named import Frame, Named, runs

AUTHOR, EPOCH = "a" * 64, "e" * 16
PLACE = ("t", AUTHOR, EPOCH, 7)


def hash_of(frame: bytes) -> bytes:
    return sha256(frame).digest()


def event(detail: str, seq: int = 7) -> bytes:
    return f'{{"type":"t","detail":"{detail}","meta":{{"author":"{AUTHOR}","epoch":"{EPOCH}","seq":{seq}}}}}'.encode()


def reference(frame: bytes) -> named.Reference:
    return len(frame), hash_of(frame)


def test_what_was_named_is_taken_and_nothing_else_however_often_it_comes() -> None:
    one = Named(hash_of)
    one.batch("t", AUTHOR, EPOCH, 6, [event("whole", 6), reference(event("right"))])
    for wrong in (event("wrong"), event("lefty"), b"", event("right") + b" "):
        assert not one.holds(PLACE, wrong)
    assert one.refused == 4
    assert one.holds(PLACE, event("right"))
    assert not one.known, "what has come is forgotten"
    assert one.refused == 4


def test_another_number_author_epoch_and_topic_are_not_meant() -> None:
    one = Named(hash_of)
    one.name(PLACE, reference(event("right")))
    others = [("u", *PLACE[1:]), ("t", "b" * 64, EPOCH, 7), ("t", AUTHOR, "f" * 16, 7), ("t", AUTHOR, EPOCH, 8)]
    assert all(one.holds(other, event("wrong")) for other in others)
    assert not one.right(decode(event("wrong")), event("wrong"))
    assert one.right(decode(event("wrong", 8)), event("wrong", 8))
    assert one.right(decode(b'{"type":"t","detail":1}'), b'{"type":"t","detail":1}'), "an upstream peer's has no place"


def test_of_two_names_for_one_event_the_first_counts() -> None:
    one = Named(hash_of)
    one.name(PLACE, reference(event("right")))
    one.name(PLACE, reference(event("wrong")))
    assert not one.holds(PLACE, event("wrong"))
    assert one.holds(PLACE, event("right"))


def test_it_is_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "MOST", 10)
    one = Named(hash_of)
    for seq in range(1, 13):
        one.name(("t", AUTHOR, EPOCH, seq), reference(event("right")))
    assert [place[3] for place in one.known] == list(range(3, 13))


@given(st.integers(1, 2**53), st.lists(st.binary(max_size=3) | st.just((900, b"hash")), max_size=8))
def test_a_batch_is_its_runs(first: int, frames: list[Frame]) -> None:
    back: list[Frame] = []
    for seq, run in runs(first, frames):
        assert seq == first + len(back)
        back += run or [(900, b"hash")]
    assert back == frames
    lone = [frame if isinstance(frame, bytes) else None for frame in frames]
    assert sum(1 for _, run in runs(first, frames) if run) == sum(
        one is not None and (at == 0 or lone[at - 1] is None) for at, one in enumerate(lone)
    )
