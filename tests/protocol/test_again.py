"""A call that is asked again: the hub passes on which one it is, to the spoke that was asked before and nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.answering import Answering, Start
from broker.protocol.caller import Caller, Failed, Resolved
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


def test_a_caller_that_lost_its_hub_goes_on_with_what_was_asked_directly() -> None:
    caller = Caller()
    caller.start("hub", "get", None, 0.0)
    caller.start("direct", "get", None, 0.0)
    (failed,) = caller.lost(spared={"direct"})
    assert isinstance(failed, Failed)
    assert failed.request_id == "hub"
    assert caller.on("call.responded", {"requestId": "direct", "output": 1}, 0.0) == [Resolved("direct", 1)]
    assert caller.fail("direct", "over") == []
