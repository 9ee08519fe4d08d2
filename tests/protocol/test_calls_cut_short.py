"""The hub's call table by example: who gives up, who goes away, what cannot be sent, and the calls made under those.

Not here: deadlines (test_calls.py), streams and roll-calls that are cut short (test_calls_rolls_and_streams.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.calls import MAX_REMEMBERED_ABORTS, Ended, Send
from tests.protocol.talk import ANN, BOB, CARL, DORA, Talk, aborted, code_of, ended, error, responded

# Departures and aborts


def test_a_caller_gives_up(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert talk.says(ANN, "aborted", "1", reason="bored") == [
        ended("get", "ABORTED", ANN, BOB),
        aborted(BOB, leg, "bored"),
    ]
    assert talk.says(BOB, "responded", leg) == []
    assert talk.says(ANN, "aborted", "1") == []


@pytest.mark.parametrize("reason", [None, 5, {}, "x" * 1_025])
def test_a_malformed_reason_is_not_passed_on(talk: Talk, reason: Any) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert talk.says(ANN, "aborted", "1", reason=reason)[1] == aborted(BOB, leg, "aborted")


def test_a_spoke_gives_up(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert talk.says(BOB, "aborted", leg, reason="shutting down") == [
        error(ANN, "1", "ABORTED", "shutting down"),
        ended("get", "ABORTED", ANN, BOB),
    ]


def test_a_caller_goes_away(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "watch")
    assert talk.table.gone(ANN, talk.now) == [
        ended("watch", "ABORTED", ANN, BOB),
        aborted(BOB, leg, "the caller has gone"),
    ]
    assert talk.table.gone(ANN, talk.now) == []
    assert talk.empty()


@pytest.mark.parametrize("operation", ["get", "watch"])
def test_who_waits_for_a_spoke_that_goes_away_hears_it_at_once(talk: Talk, operation: str) -> None:
    leg = talk.leg(ANN, "1", operation)
    if operation == "watch":
        assert talk.says(BOB, "responded", leg, output=1) == [responded(ANN, "1", 1)]
    assert talk.table.gone(BOB, talk.now) == [
        error(ANN, "1", "EXECUTION_ERROR", "bob went away before it answered", details={"retryable": True}),
        ended(operation, "EXECUTION_ERROR", ANN, BOB),
    ]
    assert talk.empty()
    assert talk.asks(ANN, "2", operation)[0].detail["code"] == "OPERATION_NOT_FOUND"  # type: ignore[union-attr]


def family() -> tuple[Talk, str, str, str]:
    """Ann asked Bob, who for that asked Carl, who for that asked Dora."""
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "get")
    talk.join(CARL, "put")
    talk.join(DORA, "watch")
    bob = talk.leg(ANN, "a", "get")
    carl = talk.leg(BOB, "b", "put", parentRequestId=bob)
    dora = talk.leg(CARL, "c", "watch", parentRequestId=carl)
    return talk, bob, carl, dora


def test_an_abort_reaches_the_grandchildren() -> None:
    talk, bob, carl, dora = family()
    assert talk.says(ANN, "aborted", "a", reason="bored") == [
        ended("get", "ABORTED", ANN, BOB),
        aborted(BOB, bob, "bored"),
        error(BOB, "b", "ABORTED", "the parent call was aborted"),
        ended("put", "ABORTED", BOB, CARL),
        aborted(CARL, carl, "bored"),
        error(CARL, "c", "ABORTED", "the parent call was aborted"),
        ended("watch", "ABORTED", CARL, DORA),
        aborted(DORA, dora, "bored"),
    ]
    assert talk.empty()


def test_a_child_that_has_ended_is_not_aborted_again() -> None:
    talk, bob, carl, dora = family()
    talk.says(DORA, "completed", dora)
    talk.says(CARL, "responded", carl)
    assert talk.says(ANN, "aborted", "a", reason="bored") == [
        ended("get", "ABORTED", ANN, BOB),
        aborted(BOB, bob, "bored"),
    ]
    assert talk.empty()


def test_a_child_that_comes_after_the_abort_is_not_begun() -> None:
    talk, bob, *_ = family()
    talk.says(ANN, "aborted", "a")
    assert talk.asks(BOB, "late", "put", parentRequestId=bob)[0] == error(
        BOB, "late", "ABORTED", "the parent call was aborted"
    )
    assert talk.empty()


def test_a_timeout_and_a_departure_cascade_too() -> None:
    talk, *_ = family()
    ends = [(e.caller, e.code) for e in talk.table.tick(1_030.0) if isinstance(e, Ended)]
    assert ends[0] == (ANN, "TIMEOUT")
    assert talk.empty()
    talk, *_ = family()
    ends = [(e.caller, e.code) for e in talk.table.gone(ANN, talk.now) if isinstance(e, Ended)]
    assert ends == [(ANN, "ABORTED"), (BOB, "ABORTED"), (CARL, "ABORTED")]
    assert talk.empty()


def test_a_spoke_in_the_middle_goes_away() -> None:
    talk, _bob, carl, dora = family()
    assert talk.table.gone(BOB, talk.now) == [
        ended("put", "ABORTED", BOB, CARL),
        aborted(CARL, carl, "the caller has gone"),
        error(CARL, "c", "ABORTED", "the parent call was aborted"),
        ended("watch", "ABORTED", CARL, DORA),
        aborted(DORA, dora, "the caller has gone"),
        error(ANN, "a", "EXECUTION_ERROR", "bob went away before it answered", details={"retryable": True}),
        ended("get", "EXECUTION_ERROR", ANN, BOB),
    ]
    assert talk.empty()


def test_children_of_a_call_that_was_answered_go_on() -> None:
    talk, bob, carl, _ = family()
    talk.says(BOB, "responded", bob, output=1)
    assert len(talk.table) == 2
    assert talk.asks(BOB, "late", "put", parentRequestId=bob)[0].type == "call.requested"  # type: ignore[union-attr]
    assert talk.says(CARL, "responded", carl, output=2)[0] == responded(BOB, "b", 2)


def test_a_parent_of_somebody_else_is_no_parent() -> None:
    talk, _bob, carl, _ = family()
    talk.leg(ANN, "x", "get", parentRequestId=carl)
    talk.says(ANN, "aborted", "a")
    assert len(talk.table) == 1


def test_a_spoke_that_goes_away_under_a_call_of_its_own_hears_nothing(talk: Talk) -> None:
    leg = talk.leg(BOB, "1", "get")
    talk.leg(BOB, "2", "put", parentRequestId=leg)
    talk.leg(BOB, "3", "watch", parentRequestId=leg)
    effects = talk.table.gone(BOB, talk.now)
    assert [type(effect) for effect in effects] == [Ended] * 3
    assert talk.empty()


def test_memory_of_aborted_calls_is_bounded(talk: Talk) -> None:
    legs = []
    for _ in range(MAX_REMEMBERED_ABORTS + 10):
        legs.append(talk.leg(ANN, "1", "get"))
        talk.says(ANN, "aborted", "1")
    assert len(talk.table._aborted) == MAX_REMEMBERED_ABORTS
    assert code_of(talk.asks(BOB, "late", "get", parentRequestId=legs[-1]))[0] == "ABORTED"
    assert code_of(talk.asks(BOB, "later", "get", parentRequestId=legs[0]))[0] is None


def test_a_chain_of_calls_may_be_long(talk: Talk) -> None:
    talk = Talk(in_flight_per_peer=5_000)
    talk.join(BOB, "get")
    leg = talk.leg(BOB, "0", "get")
    for n in range(1, 4_000):
        leg = talk.leg(BOB, str(n), "get", parentRequestId=leg)
    effects = talk.says(BOB, "aborted", "0")
    assert sum(isinstance(effect, Ended) for effect in effects) == 4_000
    assert talk.empty()


# What cannot be sent


def test_a_request_that_cannot_be_sent_fails_at_once(talk: Talk) -> None:
    (send,) = talk.asks(ANN, "1", "get")
    assert isinstance(send, Send)
    assert talk.table.undeliverable(send, "bob's queue is full", talk.now) == [
        error(ANN, "1", "EXECUTION_ERROR", "bob's queue is full", details={"retryable": True}),
        ended("get", "EXECUTION_ERROR", ANN, BOB),
    ]
    assert talk.table.undeliverable(send, "again", talk.now) == []


def test_an_answer_that_cannot_be_sent_becomes_an_error(talk: Talk) -> None:
    answer, end = talk.says(BOB, "responded", talk.leg(ANN, "1", "get"), output="huge")
    assert isinstance(answer, Send)
    (instead,) = talk.table.undeliverable(answer, "too large", talk.now, retryable=False)
    assert instead == error(ANN, "1", "EXECUTION_ERROR", "too large", details={"retryable": False})
    assert isinstance(instead, Send)
    assert talk.table.undeliverable(instead, "full", talk.now) == []
    assert isinstance(end, Ended)
