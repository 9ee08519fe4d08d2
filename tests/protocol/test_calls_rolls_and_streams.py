"""The hub's call table by example: streams and their credit, roll-calls, and what of them cannot be sent.

Not here: a call with one answer (test_calls.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.calls import Send
from broker.protocol.registration import Operation, Registration
from tests.protocol.talk import ANN, BOB, CARL, DORA, Talk, aborted, completed, ended, error, responded, who

# Streams


def test_a_stream(talk: Talk) -> None:
    (send,) = talk.asks(ANN, "1", "watch", credit=2, stream=True)
    assert isinstance(send, Send)
    assert (send.detail["credit"], "timeoutMs" in send.detail) == (2, False)
    leg = send.detail["requestId"]
    assert talk.says(BOB, "responded", leg, output="x") == [responded(ANN, "1", "x")]
    assert talk.says(BOB, "responded", leg, output="y") == [responded(ANN, "1", "y")]
    assert talk.says(ANN, "credit", "1", n=2) == [Send(BOB, "call.credit", {"requestId": leg, "n": 2})]
    assert talk.says(BOB, "completed", leg) == [completed(ANN, "1"), ended("watch", "OK", ANN, BOB)]
    assert talk.says(ANN, "credit", "1", n=2) == []
    assert talk.empty()


def test_a_spoke_that_ignores_credit_is_stopped(talk: Talk) -> None:
    talk = Talk(slack=3)
    talk.join(ANN)
    talk.join(BOB, "watch")
    leg = talk.leg(ANN, "1", "watch", credit=2)
    for n in range(5):
        assert talk.says(BOB, "responded", leg, output=n) == [responded(ANN, "1", n)]
    message = "the spoke sent 3 responses more than it had credit for"
    assert talk.says(BOB, "responded", leg, output=5) == [
        responded(ANN, "1", 5),
        error(ANN, "1", "EXECUTION_ERROR", message),
        ended("watch", "EXECUTION_ERROR", ANN, BOB),
        aborted(BOB, leg, message),
    ]
    assert talk.empty()


def test_for_a_caller_that_knows_no_credit_the_hub_gives_it(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "watch")
    credit = 256
    for n in range(2_000):
        assert credit > 0
        credit -= 1
        first, *rest = talk.says(BOB, "responded", leg, output=n)
        assert first == responded(ANN, "1", n)
        for send in rest:
            assert isinstance(send, Send)
            assert (send.peer, send.type, send.detail["requestId"]) == (BOB, "call.credit", leg)
            credit += send.detail["n"]
        assert 128 <= credit <= 256


def test_a_caller_that_gives_credit_after_all_is_taken_at_its_word(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "watch")
    assert talk.says(ANN, "credit", "1", n=1) == [Send(BOB, "call.credit", {"requestId": leg, "n": 1})]
    for n in range(257):
        assert talk.says(BOB, "responded", leg, output=n) == [responded(ANN, "1", n)]


@pytest.mark.parametrize("n", [None, 0, -1, 1.5, True, "1", [], {}])
def test_malformed_credit_ends_the_call(talk: Talk, n: Any) -> None:
    leg = talk.leg(ANN, "1", "watch", credit=1)
    message = "call.credit: n is not a whole number from 1"
    assert talk.says(ANN, "credit", "1", n=n) == [
        error(ANN, "1", "VALIDATION_ERROR", message),
        ended("watch", "VALIDATION_ERROR", ANN, BOB),
        aborted(BOB, leg, message),
    ]


def test_huge_credit_is_the_largest_window(talk: Talk) -> None:
    (send,) = talk.asks(ANN, "1", "watch", credit=10**30)
    assert isinstance(send, Send)
    assert send.detail["credit"] == 65_536
    leg = send.detail["requestId"]
    assert talk.says(ANN, "credit", "1", n=10**30) == []
    talk.says(BOB, "responded", leg)
    assert talk.says(ANN, "credit", "1", n=10**30) == [Send(BOB, "call.credit", {"requestId": leg, "n": 1})]


def test_credit_for_a_call_is_nothing(talk: Talk) -> None:
    talk.leg(ANN, "1", "get")
    assert talk.says(ANN, "credit", "1", n=5) == []
    assert len(talk.table) == 1


def test_one_answer_of_a_subscription(talk: Talk) -> None:
    (send,) = talk.asks(ANN, "1", "watch", stream=False, credit=50)
    assert isinstance(send, Send)
    assert send.detail["credit"] == 1
    leg = send.detail["requestId"]
    assert talk.says(BOB, "responded", leg, output=1) == [
        responded(ANN, "1", 1),
        ended("watch", "OK", ANN, BOB),
        aborted(BOB, leg, "the caller took one answer"),
    ]


def test_a_query_as_a_stream(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get", stream=True, credit=5)
    assert talk.says(BOB, "responded", leg, output=1) == [
        responded(ANN, "1", 1),
        completed(ANN, "1"),
        ended("get", "OK", ANN, BOB),
    ]


# Roll-calls


def roll(**more: Any) -> tuple[Talk, dict[int, str]]:
    talk = Talk()
    talk.join(ANN)
    for peer in (BOB, CARL, DORA):
        talk.join(peer, "get")
    legs = {}
    for send in talk.asks(ANN, "r", "get", all=True, **more):
        assert isinstance(send, Send)
        legs[send.peer] = send.detail["requestId"]
    assert list(legs) == [BOB, CARL, DORA]
    return talk, legs


def test_a_roll_call() -> None:
    talk, legs = roll()
    assert len(talk.table) == 1
    assert talk.says(CARL, "responded", legs[CARL], output=3) == [responded(ANN, "r", 3, **{"from": who(CARL)})]
    assert talk.says(CARL, "responded", legs[CARL], output=4) == []
    failed = {"requestId": "r", "error": {"code": "X", "message": "y"}, "from": who(BOB)}
    assert talk.says(BOB, "error", legs[BOB], code="X", message="y") == [Send(ANN, "call.responded", failed)]
    assert talk.says(DORA, "responded", legs[DORA], output=5) == [
        responded(ANN, "r", 5, **{"from": who(DORA)}),
        completed(ANN, "r", missing=[]),
        ended("get", "OK", ANN, None),
    ]
    assert talk.empty()


def test_a_roll_call_at_its_deadline_names_who_is_missing() -> None:
    talk, legs = roll(timeoutMs=1_000)
    talk.says(CARL, "responded", legs[CARL], output=3)
    assert talk.table.tick(1_001.0) == [
        completed(ANN, "r", missing=[who(BOB), who(DORA)]),
        ended("get", "TIMEOUT", ANN, None, 1.0),
        aborted(BOB, legs[BOB], "no answer by the deadline"),
        aborted(DORA, legs[DORA], "no answer by the deadline"),
    ]
    assert talk.empty()


def test_who_leaves_a_roll_call_is_missing() -> None:
    talk, legs = roll()
    assert talk.table.gone(BOB, talk.now) == []
    talk.join(BOB, "get")
    assert talk.says(BOB, "responded", legs[BOB], output="of another connection") == []
    talk.says(CARL, "responded", legs[CARL], output=3)
    assert talk.table.gone(DORA, talk.now) == [
        completed(ANN, "r", missing=[who(BOB), who(DORA)]),
        ended("get", "OK", ANN, None),
    ]
    assert talk.empty()


def test_a_roll_call_given_up() -> None:
    talk, legs = roll()
    talk.says(CARL, "responded", legs[CARL], output=3)
    assert talk.says(ANN, "aborted", "r", reason="enough") == [
        ended("get", "ABORTED", ANN, None),
        aborted(BOB, legs[BOB], "enough"),
        aborted(DORA, legs[DORA], "enough"),
    ]
    assert talk.empty()


def test_a_roll_call_includes_the_caller_and_leaves_out_subscriptions() -> None:
    talk = Talk()
    talk.join(ANN, "get")
    talk.table.register(BOB, "id-bob", "bob", Registration(operations=(Operation("get", "subscription"),)))
    (send,) = talk.asks(ANN, "r", "get", all=True)
    assert isinstance(send, Send)
    assert send.peer == ANN
    assert talk.asks(ANN, "q", "none", all=True)[0].detail["code"] == "OPERATION_NOT_FOUND"  # type: ignore[union-attr]


# What cannot be sent


def test_an_item_that_cannot_be_sent_ends_the_stream(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "watch")
    (item,) = talk.says(BOB, "responded", leg, output="huge")
    assert isinstance(item, Send)
    assert talk.table.undeliverable(item, "ann's queue is full", talk.now) == [
        error(ANN, "1", "EXECUTION_ERROR", "ann's queue is full", details={"retryable": True}),
        ended("watch", "EXECUTION_ERROR", ANN, BOB),
        aborted(BOB, leg, "ann's queue is full"),
    ]


def test_one_answer_of_a_roll_call_that_cannot_be_sent_is_an_error_of_that_spoke() -> None:
    talk, legs = roll()
    (answer,) = talk.says(CARL, "responded", legs[CARL], output="huge")
    assert isinstance(answer, Send)
    (instead,) = talk.table.undeliverable(answer, "too large", talk.now, retryable=False)
    failed = {"code": "EXECUTION_ERROR", "message": "too large", "details": {"retryable": False}}
    assert instead == Send(ANN, "call.responded", {"requestId": "r", "error": failed, "from": who(CARL)})
    assert isinstance(instead, Send)
    effects = talk.table.undeliverable(instead, "full", talk.now)
    assert (len(effects), talk.empty()) == (4, True)
