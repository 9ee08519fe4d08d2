"""The hub's call table by example: a call and its answer, time, limits.

Not here: calls cut short (test_calls_cut_short.py), streams and roll-calls (test_calls_rolls_and_streams.py), any JSON
and everything at once (test_calls_model.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from broker.errors import FrameError
from broker.protocol.calls import HUB, Complain, Ended, Send
from tests.protocol.talk import ANN, BOB, CARL, DORA, NOW_MS, Talk, aborted, code_of, ended, error, responded

# A call


def test_a_call_and_its_answer(talk: Talk) -> None:
    assert talk.asks(ANN, "1", "get", input={"sku": "a"}, identity={"id": "forged"}, timeoutMs=2_000) == [
        Send(
            BOB,
            "call.requested",
            {
                "requestId": "leg-1",
                "operationId": "get",
                "input": {"sku": "a"},
                "identity": {"id": "id-ann"},
                "timeoutMs": 2_000,
                "deadline": int(NOW_MS) + 2_000,
            },
        )
    ]
    assert (len(talk.table), talk.table.in_flight(BOB), talk.table.in_flight(ANN)) == (1, 1, 0)
    talk.now += 0.5
    assert talk.says(BOB, "responded", "leg-1", output=7) == [responded(ANN, "1", 7), ended("get", "OK", ANN, BOB, 0.5)]
    assert talk.empty()
    assert talk.table.next_deadline() is None


def test_an_error_is_passed_on_also_with_a_code_of_tomorrow(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "put")
    assert talk.says(BOB, "error", leg, code="SOLD_OUT", message="none left", details=[1]) == [
        error(ANN, "1", "SOLD_OUT", "none left", details=[1]),
        ended("put", "UNKNOWN_ERROR", ANN, BOB),
    ]
    leg = talk.leg(ANN, "1", "put")
    assert talk.says(BOB, "error", leg, code="ACCESS_DENIED", message="no") == [
        error(ANN, "1", "ACCESS_DENIED", "no"),
        ended("put", "ACCESS_DENIED", ANN, BOB),
    ]


@pytest.mark.parametrize("code", [None, 5, "", "x" * 65, {}, True])
def test_a_malformed_error_is_still_the_end(talk: Talk, code: Any) -> None:
    leg = talk.leg(ANN, "1", "put")
    send, end = talk.says(BOB, "error", leg, code=code, message={"no": "string"})
    assert send == error(ANN, "1", "UNKNOWN_ERROR", "the operation failed without a message")
    assert end == ended("put", "UNKNOWN_ERROR", ANN, BOB)


def test_whether_a_call_is_open(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert [talk.table.asks(peer, "1") for peer in (ANN, BOB, DORA)] == [True, False, False]
    talk.says(BOB, "responded", leg)
    assert not talk.table.asks(ANN, "1")


def test_an_error_cannot_pass_for_success(talk: Talk) -> None:
    _, end = talk.says(BOB, "error", talk.leg(ANN, "1", "put"), code="OK", message="")
    assert end == ended("put", "UNKNOWN_ERROR", ANN, BOB)


def test_the_first_answer_wins(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert len(talk.says(BOB, "responded", leg, output=1)) == 2
    for verb in ("responded", "completed", "error", "aborted", "credit"):
        assert talk.says(BOB, verb, leg, output=2, code="X", message="", n=1) == []
    assert talk.table.stray == 5


def test_only_the_asked_spoke_answers(talk: Talk) -> None:
    talk.join(CARL, "put")
    leg = talk.leg(ANN, "1", "get")
    for stranger in (ANN, CARL, DORA, HUB):
        for verb in ("responded", "completed", "error", "aborted"):
            assert talk.says(stranger, verb, leg, output="forged", code="X", message="") == []
    assert talk.says(BOB, "responded", "1", output="under the caller's id") == []
    assert talk.says(BOB, "responded", leg, output="true") == [
        responded(ANN, "1", "true"),
        ended("get", "OK", ANN, BOB),
    ]


def test_two_callers_may_use_one_id(talk: Talk) -> None:
    talk.join(CARL)
    of_ann, of_carl = talk.leg(ANN, "same", "get"), talk.leg(CARL, "same", "get")
    assert of_ann != of_carl
    assert talk.says(BOB, "responded", of_carl, output=1)[0] == responded(CARL, "same", 1)
    assert talk.says(BOB, "responded", of_ann, output=2)[0] == responded(ANN, "same", 2)


def test_an_id_in_use_is_complained_about_and_the_first_call_goes_on(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    (complaint,) = talk.asks(ANN, "1", "put")
    assert isinstance(complaint, Complain)
    assert (complaint.peer, complaint.code, complaint.about) == (ANN, "VALIDATION_ERROR", "call.requested")
    assert talk.says(BOB, "responded", leg, output=1)[0] == responded(ANN, "1", 1)
    assert talk.leg(ANN, "1", "get") != leg


def test_nobody_offers_it(talk: Talk) -> None:
    assert talk.asks(ANN, "1", "nothing." * 100) == [
        error(ANN, "1", "OPERATION_NOT_FOUND", "no connected spoke offers " + "nothing." * 10),
        Ended(("nothing." * 100)[:255], None, "OPERATION_NOT_FOUND", 0.0, ANN, None),
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"operationId": None},
        {"operationId": 5},
        {"operationId": ["get"]},
        {"timeoutMs": "5"},
        {"timeoutMs": True},
        {"timeoutMs": []},
        {"deadline": "tomorrow"},
        {"deadline": False},
        {"all": 1},
        {"all": "yes"},
        {"stream": 0},
        {"parentRequestId": 5},
        {"parentRequestId": {}},
        {"operationId": "watch", "credit": -1},
        {"operationId": "watch", "credit": 1.5},
        {"operationId": "watch", "credit": True},
        {"operationId": "watch", "all": True},
    ],
)
def test_a_malformed_request_is_answered(talk: Talk, more: dict[str, Any]) -> None:
    detail = {"requestId": "1", "operationId": "get", **more}
    send, end = talk.table.requested(ANN, {}, detail, talk.now, NOW_MS)
    assert isinstance(send, Send)
    assert isinstance(end, Ended)
    assert (send.peer, send.type, send.detail["requestId"], send.detail["code"], end.code) == (
        ANN,
        "call.error",
        "1",
        "VALIDATION_ERROR",
        "VALIDATION_ERROR",
    )
    assert talk.empty()


def test_a_request_before_registration_ends_the_connection() -> None:
    with pytest.raises(FrameError, match=r"before hub\.register") as caught:
        Talk().asks(ANN, "1", "get")
    assert caught.value.close_code == 24


def test_a_query_that_completes_has_not_answered(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    assert talk.says(BOB, "completed", leg) == [
        error(ANN, "1", "EXECUTION_ERROR", "the operation ended without an answer"),
        ended("get", "EXECUTION_ERROR", ANN, BOB),
    ]


def test_a_spoke_may_call_itself(talk: Talk) -> None:
    leg = talk.leg(BOB, "1", "get")
    assert talk.says(BOB, "responded", leg, output=1) == [responded(BOB, "1", 1), ended("get", "OK", BOB, BOB)]
    talk.leg(BOB, "2", "get")
    assert talk.table.gone(BOB, talk.now) == [ended("get", "ABORTED", BOB, BOB)]
    assert talk.empty()


def test_the_hub_answers_and_asks_like_anyone(talk: Talk) -> None:
    talk.join(HUB, "hub.ls")
    leg = talk.leg(ANN, "1", "hub.ls")
    assert talk.says(HUB, "responded", leg, output=[]) == [responded(ANN, "1", []), ended("hub.ls", "OK", ANN, HUB)]
    leg = talk.leg(HUB, "1", "get")
    assert talk.says(BOB, "responded", leg, output=3)[0] == responded(HUB, "1", 3)
    talk.leg(HUB, "2", "get")
    assert len(talk.table.gone(HUB, talk.now)) == 2
    assert talk.asks(HUB, "3", "hub.ls")[0] == error(
        HUB, "3", "OPERATION_NOT_FOUND", "no connected spoke offers hub.ls"
    )


def test_a_new_registration_leaves_calls_in_flight_alone(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get")
    talk.join(BOB, "put")
    assert talk.asks(ANN, "2", "get")[0] == error(ANN, "2", "OPERATION_NOT_FOUND", "no connected spoke offers get")
    assert talk.says(BOB, "responded", leg, output=1)[0] == responded(ANN, "1", 1)
    assert [operation.id for operation in talk.table.offered(BOB)] == ["put"]
    assert talk.table.offered(DORA) == ()


def test_the_listing(talk: Talk) -> None:
    talk.join(CARL, "get")
    rows = {row.operation.id: row.spokes for row in talk.table.operations()}
    assert rows == {
        "get": [("id-bob", "bob"), ("id-carl", "carl")],
        "put": [("id-bob", "bob")],
        "watch": [("id-bob", "bob")],
    }


def test_calls_go_to_the_least_busy(talk: Talk) -> None:
    talk.join(CARL, "get")
    asked = []
    for n in range(6):
        (send,) = talk.asks(ANN, str(n), "get")
        assert isinstance(send, Send)
        asked.append((send.peer, send.detail["requestId"]))
    assert [peer for peer, _ in asked] == [BOB, CARL] * 3
    for peer, leg in asked:
        if peer == CARL:
            talk.says(CARL, "responded", leg)
    assert [
        effect.peer for n in range(6, 9) for effect in talk.asks(ANN, str(n), "get") if isinstance(effect, Send)
    ] == [
        CARL,
        CARL,
        CARL,
    ]


# Time


def test_the_hub_says_timeout_and_tells_the_spoke(talk: Talk) -> None:
    leg = talk.leg(ANN, "1", "get", timeoutMs=1_500)
    assert talk.table.next_deadline() == 1_001.5
    assert talk.table.tick(1_001.4) == []
    assert talk.table.tick(1_001.5) == [
        error(ANN, "1", "TIMEOUT", "no answer within 1.5 s"),
        ended("get", "TIMEOUT", ANN, BOB, 1.5),
        aborted(BOB, leg, "no answer within 1.5 s"),
    ]
    assert talk.table.tick(9_999.0) == []
    assert talk.empty()


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({}, 30.0),
        ({"timeoutMs": None, "deadline": None}, 30.0),
        ({"timeoutMs": 1}, 0.001),
        ({"timeoutMs": 0.5}, 0.0005),
        ({"timeoutMs": 2_000, "deadline": NOW_MS - 5_000}, 2.0),
        ({"deadline": NOW_MS + 4_000}, 4.0),
        ({"timeoutMs": 1e300}, 3_600.0),
        ({"timeoutMs": 10**400}, 3_600.0),
        ({"deadline": 10**400}, 3_600.0),
        ({"deadline": 2**64 - 1}, 3_600.0),
        ({"operationId": "watch"}, None),
        ({"operationId": "watch", "timeoutMs": 500}, 0.5),
        ({"operationId": "watch", "stream": False}, 30.0),
        ({"stream": True}, None),
    ],
)
def test_how_long_a_call_may_take(talk: Talk, more: dict[str, Any], seconds: float | None) -> None:
    detail = {"requestId": "1", "operationId": "get", **more}
    (send,) = talk.table.requested(ANN, {}, detail, 0.0, NOW_MS)
    assert isinstance(send, Send)
    assert talk.table.next_deadline() == seconds
    assert send.detail.get("timeoutMs") == (None if seconds is None else max(1, int(seconds * 1_000)))
    assert send.detail.get("deadline") == (None if seconds is None else int(NOW_MS + seconds * 1_000))


@pytest.mark.parametrize(
    "more", [{"timeoutMs": 0}, {"timeoutMs": -5}, {"timeoutMs": -(10**400)}, {"deadline": 5}, {"deadline": NOW_MS}]
)
def test_a_deadline_in_the_past_is_a_timeout_at_once(talk: Talk, more: dict[str, Any]) -> None:
    assert talk.asks(ANN, "1", "get", **more) == [
        error(ANN, "1", "TIMEOUT", "the deadline had passed when the call arrived"),
        Ended("get", None, "TIMEOUT", 0.0, ANN, None),
    ]
    assert talk.empty()


def test_deadlines_come_in_their_order(talk: Talk) -> None:
    for n, left in enumerate([300, 100, 200]):
        talk.leg(ANN, str(n), "get", timeoutMs=left)
    sends = [effect for effect in talk.table.tick(1_000.25) if isinstance(effect, Send) and effect.type == "call.error"]
    assert [send.detail["requestId"] for send in sends] == ["1", "2"]
    assert talk.table.next_deadline() == 1_000.3


def test_deadlines_of_ended_calls_do_not_pile_up(talk: Talk) -> None:
    held = [talk.leg(ANN, f"held-{n}", "get", timeoutMs=3_600_000) for n in range(50)]
    for n in range(20_000):
        talk.says(BOB, "responded", talk.leg(ANN, str(n), "get"))
        assert len(talk.table._deadlines) <= 2 * 51 + 1_024
    assert talk.table.next_deadline() == 4_600.0
    for leg in held:
        talk.says(BOB, "responded", leg)
    assert talk.table.next_deadline() is None
    assert len(talk.table._deadlines) == 0


# Limits

BUSY = ("EXECUTION_ERROR", {"retryable": True})


def test_a_caller_has_a_limit() -> None:
    talk = Talk(in_flight_per_peer=2)
    talk.join(ANN)
    talk.join(BOB, "get")
    talk.join(CARL, "get")
    for n in range(2):
        talk.leg(ANN, str(n), "get")
    assert code_of(talk.asks(ANN, "x", "get")) == BUSY
    talk.says(ANN, "aborted", "0")
    talk.leg(ANN, "x", "get")


def test_a_spoke_has_a_limit() -> None:
    talk = Talk(in_flight_per_peer=2)
    for peer in (ANN, CARL, DORA):
        talk.join(peer)
    talk.join(BOB, "get")
    talk.leg(ANN, "1", "get")
    talk.leg(CARL, "1", "get")
    assert code_of(talk.asks(DORA, "1", "get")) == BUSY
    assert code_of(talk.asks(HUB, "1", "get")) == BUSY


def test_the_hub_has_only_the_limit_of_all() -> None:
    talk = Talk(in_flight_per_peer=1, in_flight=3)
    talk.join(HUB, "hub.ls")
    for n in range(3):
        talk.leg(HUB, str(n), "hub.ls")
    assert code_of(talk.asks(HUB, "x", "hub.ls")) == BUSY


def test_a_roll_call_counts_every_spoke() -> None:
    talk = Talk(in_flight=2)
    talk.join(ANN)
    for peer in (BOB, CARL, DORA):
        talk.join(peer, "get")
    assert code_of(talk.asks(ANN, "r", "get", all=True)) == BUSY
    assert talk.empty()
