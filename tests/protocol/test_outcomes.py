"""What a spoke remembers of calls that came directly: one that is asked again runs once, a stream goes on where it was,
or nobody claims to know. Not here: any course of events (test_outcomes_model.py)."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol import outcomes as module
from broker.protocol.outcomes import BESIDE, KEEP, MAX_LIVES, Asked, Found, Life, Outcomes


def opened(outcomes: Outcomes, connection: str = "c") -> Life:
    life = outcomes.open("ann", connection)
    assert life is not None
    return life


def answered(outcomes: Outcomes, life: Life, request_id: str, answer: bytes = b"x") -> None:
    assert outcomes.began(life, request_id, "get")
    assert outcomes.ended(life, request_id, answer)
    outcomes.sent(life, request_id)


def streamed(outcomes: Outcomes, life: Life, request_id: str, items: str) -> Asked:
    assert outcomes.began(life, request_id, "watch", stream=True)
    asked = life.calls[request_id]
    for item in items:
        outcomes.item(asked, item.encode())
    return asked


def rest(outcomes: Outcomes, request_id: str, heard: int, operation: str = "get", connection: str = "c") -> Any:
    """What is given of a call that is asked again, as far as there is something."""
    found = outcomes.again("ann", connection, request_id, heard, operation)
    if isinstance(found, Found):
        return found
    given = []
    while isinstance(frame := outcomes.take(found), bytes):
        given.append(frame)
    return given if frame is None else frame


def test_each_of_the_answers() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1", b"done")
    outcomes.began(life, "2", "get")
    assert rest(outcomes, "1", 0, connection="other") is Found.UNKNOWN
    assert outcomes.again("bob", "c", "1", 0, "get") is Found.UNKNOWN, "another caller's calls are not to be had"
    assert rest(outcomes, "1", 0) == [b"done"]
    assert rest(outcomes, "2", 0) == [], "it runs"
    assert rest(outcomes, "3", 0) is Found.NEW
    assert [rest(outcomes, request_id, 0) for request_id in "123"] == [Found.UNKNOWN] * 3, "who was first goes on"


def test_after_the_first_question_the_connection_brings_nothing_more() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    assert rest(outcomes, "1", 0) is Found.NEW
    assert not outcomes.began(life, "1", "get"), "it was under way, and runs elsewhere by now"
    assert not outcomes.began(life, "2", "get")


def test_a_request_id_is_run_once() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1")
    assert not outcomes.began(life, "1", "get")
    outcomes.began(life, "2", "get")
    assert not outcomes.began(life, "2", "get")
    assert not outcomes.ended(life, "1", b"y")


def test_what_was_dropped_and_may_not_have_been_heard_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    for request_id in "1234":
        answered(outcomes, life, request_id)
    assert rest(outcomes, "1", 1) is Found.UNKNOWN
    assert rest(outcomes, "5", 1) is Found.UNKNOWN, "for all that is known it is one of those"
    assert rest(outcomes, "5", 5) is Found.UNKNOWN, "nobody has heard what was not sent"
    assert rest(outcomes, "3", 2) == [b"x"]
    assert rest(outcomes, "5", 2) is Found.NEW, "it had heard all that was dropped"


def test_who_asks_for_more_than_anybody_may_have_asked_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    for request_id in "12":
        answered(outcomes, life, request_id)
    assert [rest(outcomes, request_id, 2) for request_id in "345"] == [Found.NEW, Found.NEW, Found.UNKNOWN]
    assert len(life.calls) == 4


def test_a_word_about_a_call_that_has_its_answer_already_counts_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when somebody uses its requestId once more, for what no grant covers."""
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1")
    outcomes.sent(life, "1")
    for request_id in "234":
        answered(outcomes, life, request_id)
    assert rest(outcomes, "4", 4) == [b"x"]


def test_kept_bytes_are_bounded_over_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100 + BESIDE)
    outcomes = Outcomes()
    one, other = opened(outcomes, "one"), opened(outcomes, "other")
    answered(outcomes, one, "1", b"x" * 60)
    answered(outcomes, other, "1", b"y" * 60)
    assert outcomes.bytes == 60 + BESIDE
    assert rest(outcomes, "1", 0, connection="one") is Found.UNKNOWN
    assert rest(outcomes, "1", 0, connection="other") == [b"y" * 60]
    assert outcomes.bytes == 0
    third = opened(outcomes, "third")
    answered(outcomes, third, "1", b"x" * 60)
    outcomes.forget(third)
    assert outcomes.bytes == 0


def test_of_a_stream_its_caller_gets_what_it_has_not_heard_and_what_comes_then() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "ab")
    answered(outcomes, life, "2")
    for item in "cd":
        outcomes.item(stream, item.encode())
    assert outcomes.again("ann", "c", "1", 4, "watch") is stream, "a, b, the answer and c"
    assert (outcomes.take(stream), outcomes.take(stream)) == (b"d", None)
    outcomes.item(stream, b"e")
    outcomes.ended(life, "1", b"end")
    assert [outcomes.take(stream) for _ in range(3)] == [b"e", b"end", None]


def test_items_are_kept_until_their_caller_gives_credit_for_them() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "abcd")
    for no_credit in (None, "3", 0, -1, True, 1.0):
        outcomes.credited(life, "1", no_credit)
    outcomes.credited(life, "2", 2)
    assert len(stream.frames) == 4
    outcomes.credited(life, "1", 3)
    assert outcomes.bytes == 1 + BESIDE
    outcomes.credited(life, "1", 10**30)
    assert (outcomes.bytes, stream.confirmed) == (0, 4), "credit for more than was sent says nothing"
    outcomes.item(stream, b"e")
    outcomes.ended(life, "1", b"end")
    outcomes.credited(life, "1", 1)
    outcomes.credited(life, "1", 1)
    assert rest(outcomes, "1", 3, "watch") is Found.UNKNOWN, "d was not heard, though there was credit for it"
    assert rest(outcomes, "1", 5, "watch") == [b"end"], "for the end there is none"


def test_who_asks_for_a_stream_by_another_name_or_has_heard_what_was_not_sent_gets_nothing_of_it() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    streamed(outcomes, life, "1", "abcd")
    assert rest(outcomes, "1", 0, "get") is Found.UNKNOWN, "whether it may call that was asked, and not of watch"
    assert rest(outcomes, "1", 5, "watch") is Found.UNKNOWN
    assert outcomes.again("bob", "c", "1", 0, "watch") is Found.UNKNOWN
    assert rest(outcomes, "1", 3, "watch", connection="other") is Found.UNKNOWN
    assert rest(outcomes, "1", 3, "watch") == [b"d"]


def test_a_stream_that_was_aborted_keeps_nothing() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "abcd")
    outcomes.drop(life, "1")
    assert (outcomes.bytes, outcomes.ended(life, "1", b"end"), stream.frames) == (0, False, [])


def test_items_too_are_bounded_over_all_connections_and_what_is_missing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4 * (1 + BESIDE))
    outcomes = Outcomes()
    one, other = opened(outcomes, "one"), opened(outcomes, "other")
    old = streamed(outcomes, one, "1", "abc")
    new = streamed(outcomes, other, "1", "abc")
    assert (len(old.frames), len(new.frames)) == (2, 2), "the one that is still longer gives way up to a share"
    assert rest(outcomes, "1", 0, "watch", connection="one") is Found.UNKNOWN
    assert outcomes.again("ann", "one", "1", 1, "watch") is old
    assert outcomes.take(old) == b"b"
    for number in range(3):
        answered(outcomes, other, str(2 + number))
    assert outcomes.take(old) is Found.UNKNOWN, "c is gone, and what comes after it would be a lie"
    outcomes.item(old, b"d")
    assert outcomes.take(old) is Found.UNKNOWN
    outcomes.drop(one, "1")
    outcomes.forget(other)
    assert outcomes.bytes == 0


def test_a_large_stream_does_not_take_the_room_of_others_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10 * (1 + BESIDE))
    outcomes = Outcomes()
    life, other = opened(outcomes), opened(outcomes, "other")
    quiet = streamed(outcomes, other, "1", "ab")
    for request_id in "234":
        answered(outcomes, other, request_id)
    large = streamed(outcomes, life, "1", "abcdefghijklmnopqrstuvwxyz")
    assert ([frame for _, frame in large.frames], len(quiet.frames)) == ([b"v", b"w", b"x", b"y", b"z"], 2)
    for request_id in "5678":
        answered(outcomes, other, request_id)
    assert (len(large.frames), len(quiet.frames)) == (5, 0), "what is small takes the room of what is old"
    assert [rest(outcomes, request_id, 0, connection="other") for request_id in "2345678"] == [
        *[Found.UNKNOWN] * 2,
        *[[b"x"]] * 5,
    ]
    assert rest(outcomes, "1", 21, "watch") == [b"v", b"w", b"x", b"y", b"z"]


def test_connections_are_remembered_for_a_while_and_are_so_many() -> None:
    outcomes = Outcomes()
    lives = [opened(outcomes, str(number)) for number in range(MAX_LIVES)]
    assert outcomes.open("ann", "one more") is None
    assert outcomes.open("ann", "0") is None
    outcomes.began(lives[0], "1", "get")
    taken = streamed(outcomes, lives[0], "2", "ab")
    streamed(outcomes, lives[0], "3", "ab")
    assert outcomes.again("ann", "0", "2", 1, "watch") is taken
    outcomes.over(lives[0], 10.0)
    assert outcomes.next_due() == 10.0 + KEEP
    assert outcomes.tick(10.0 + KEEP - 0.1) == []
    assert outcomes.tick(10.0 + KEEP) == [lives[0]]
    assert rest(outcomes, "1", 0, connection="0") is Found.UNKNOWN
    assert not outcomes.ended(lives[0], "1", b"late")
    assert (outcomes.take(taken), outcomes.bytes) == (b"b", 0), "who has asked by then goes on"
    outcomes.item(taken, b"c")
    assert outcomes.ended(lives[0], "2", b"end")
    assert (outcomes.take(taken), outcomes.take(taken), outcomes.bytes) == (b"c", b"end", 0)
    opened(outcomes, "one more")
