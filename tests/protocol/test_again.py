"""A call that is asked again: the hub passes on which one it is, to the spoke that was asked before and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.answering import Answering, CreditAdded, Start
from broker.protocol.caller import Caller, Failed, Resolved
from broker.protocol.caller import Send as CallerSend
from broker.protocol.calls import Ended, Send
from tests.protocol.talk import ANN, BOB, CARL, Talk

AGAIN = {"id": "id-bob", "connection": "c", "requestId": "1", "heard": 3}


def test_it_goes_to_the_spoke_that_was_asked_though_another_has_less_to_do() -> None:
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "get")
    talk.join(CARL, "get")
    legs = []
    for number in range(4):
        (effect,) = talk.asks(ANN, f"x{number}", "get", again={**AGAIN, "unknown": 1})
        assert isinstance(effect, Send)
        assert (effect.peer, effect.detail["again"]) == (BOB, AGAIN)
        legs.append(effect.detail["requestId"])
    answer = talk.says(BOB, "responded", legs[-1], output=7)
    assert Send(ANN, "call.responded", {"requestId": "x3", "output": 7}) in answer


def test_without_that_spoke_it_fails_retryable_and_nobody_else_is_asked() -> None:
    talk = Talk()
    talk.join(ANN)
    talk.join(CARL, "get")
    error, ended = talk.asks(ANN, "x", "get", again=AGAIN)
    assert isinstance(error, Send)
    assert isinstance(ended, Ended)
    assert (error.detail["code"], error.detail["details"]) == ("EXECUTION_ERROR", {"retryable": True})
    assert talk.empty()


@pytest.mark.parametrize(
    "again", [7, "x", [], {}, {**AGAIN, "heard": -1}, {**AGAIN, "heard": "3"}, {**AGAIN, "id": None}]
)
def test_a_malformed_one_is_refused_by_hub_and_spoke(again: Any) -> None:
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "get")
    error, _ = talk.asks(ANN, "x", "get", again=again)
    assert isinstance(error, Send)
    assert error.detail["code"] == "VALIDATION_ERROR"
    effect = Answering().requested({"requestId": "x", "operationId": "get", "again": again})
    assert not isinstance(effect, Start)


def test_a_spoke_reads_it() -> None:
    effect = Answering().requested({"requestId": "x", "operationId": "get", "again": AGAIN})
    assert isinstance(effect, Start)
    assert effect.again == AGAIN
    plain = Answering().requested({"requestId": "x", "operationId": "get"})
    assert isinstance(plain, Start)
    assert plain.again is None


def test_a_stream_too_goes_on_at_the_spoke_that_was_asked_with_the_credit_that_is_left() -> None:
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "watch")
    (effect,) = talk.asks(ANN, "x", "watch", stream=True, credit=3, again=AGAIN)
    assert isinstance(effect, Send)
    assert (effect.detail["again"], effect.detail["credit"]) == (AGAIN, 3)
    item = talk.says(BOB, "responded", effect.detail["requestId"], output=7)
    assert item == [Send(ANN, "call.responded", {"requestId": "x", "output": 7})]


def test_what_waits_counts_where_a_stream_has_moved_to_and_what_was_owed_does_not() -> None:
    caller = Caller()
    caller.start("1", "watch", None, 0.0, stream=True, window=6)
    for number in range(4):
        caller.on("call.responded", {"requestId": "1", "output": number}, 0.0)
    assert caller.consumed("1") == []
    assert caller.moved("1", 9) == 3, "three wait"
    assert caller.consumed("1", 2) == [], "the one before the move is in the three"
    (credit,) = caller.consumed("1")
    assert isinstance(credit, CallerSend)
    assert credit.detail["n"] == 3
    assert caller.moved("1", 2) == 2, "that way takes two at a time"
    for number in range(2):
        caller.on("call.responded", {"requestId": "1", "output": number}, 0.0)
    (credit,) = caller.consumed("1")
    assert isinstance(credit, CallerSend)
    assert (credit.detail["n"], caller.consumed("1")) == (2, [])


def test_streams_that_are_held_go_on_with_new_credit() -> None:
    answering = Answering()
    answering.requested({"requestId": "1", "operationId": "watch", "credit": 9})
    answering.hold()
    assert answering.item("1", 0) is None
    assert answering.on("call.credit", {"requestId": "1", "n": 1}, 0.0) == [CreditAdded("1", 1)]
    assert answering.item("1", 0)
    assert answering.item("1", 1) is None
    assert answering.finish("1"), "and end without"


def test_a_caller_that_lost_its_hub_goes_on_with_what_was_asked_directly() -> None:
    caller = Caller()
    caller.start("hub", "get", None, 0.0)
    caller.start("direct", "get", None, 0.0)
    (failed,) = caller.lost(spared={"direct"})
    assert isinstance(failed, Failed)
    assert failed.request_id == "hub"
    assert caller.on("call.responded", {"requestId": "direct", "output": 1}, 0.0) == [Resolved("direct", 1)]
    assert caller.fail("direct", "over") == []
