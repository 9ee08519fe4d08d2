"""The hub's call table: conversations by example, any JSON, and a model that does everything at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.errors import FrameError
from broker.protocol.calls import HUB, MAX_REMEMBERED_ABORTS, CallLimits, CallTable, Complain, Effect, Ended, Send
from broker.protocol.registration import Kind, Operation, Registration

ANN, BOB, CARL, DORA = 1, 2, 3, 4
NAMES = {ANN: "ann", BOB: "bob", CARL: "carl", DORA: "dora"}
NOW_MS = 1_700_000_000_000.0
KINDS: dict[str, Kind] = {"get": "query", "put": "mutation", "watch": "subscription", "hub.ls": "query"}


def offering(*ids: str) -> Registration:
    return Registration(operations=tuple(Operation(id, KINDS.get(id, "query")) for id in ids))


class Talk:
    """A table and what was said: each line is a message of a peer and all that the hub does about it."""

    def __init__(self, **limits: Any):
        self.table = CallTable(CallLimits(**limits), leg_prefix="leg-")
        self.now = 1_000.0

    def join(self, peer: int, *ids: str) -> None:
        self.table.register(peer, f"id-{NAMES.get(peer, 'hub')}", NAMES.get(peer), offering(*ids))

    def asks(self, peer: int, request_id: str, operation: str, **more: Any) -> list[Effect]:
        detail = {"requestId": request_id, "operationId": operation, **more}
        return self.table.requested(peer, {"id": f"id-{NAMES.get(peer)}"}, detail, self.now, NOW_MS)

    def leg(self, peer: int, request_id: str, operation: str, **more: Any) -> str:
        """Asks, and gives the id under which the only spoke was asked."""
        (effect,) = self.asks(peer, request_id, operation, **more)
        assert isinstance(effect, Send)
        assert effect.type == "call.requested"
        return str(effect.detail["requestId"])

    def says(self, peer: int, verb: str, request_id: str, **more: Any) -> list[Effect]:
        handle = getattr(self.table, verb)
        effects: list[Effect] = handle(peer, {"requestId": request_id, **more}, self.now)
        return effects

    def empty(self) -> bool:
        peers = self.table._peers.values()
        return (len(self.table), self.table._legs, any(peer.calls or peer.legs for peer in peers)) == (0, 0, False)


def responded(peer: int, request_id: str, output: Any = None, **more: Any) -> Send:
    return Send(peer, "call.responded", {"requestId": request_id, "output": output, **more})


def completed(peer: int, request_id: str, **more: Any) -> Send:
    return Send(peer, "call.completed", {"requestId": request_id, **more})


def aborted(peer: int, leg: str, reason: str) -> Send:
    return Send(peer, "call.aborted", {"requestId": leg, "reason": reason})


def error(peer: int, request_id: str, code: str, message: str, **more: Any) -> Send:
    return Send(peer, "call.error", {"requestId": request_id, "code": code, "message": message, **more})


def ended(operation: str, code: str, caller: int, answerer: int | None, seconds: float = 0.0) -> Ended:
    return Ended(operation, KINDS[operation], code, seconds, caller, answerer)


def who(peer: int) -> dict[str, Any]:
    return {"id": f"id-{NAMES[peer]}", "name": NAMES[peer]}


@pytest.fixture
def talk() -> Talk:
    """Ann asks, Bob answers."""
    talk = Talk()
    talk.join(ANN)
    talk.join(BOB, "get", "put", "watch")
    return talk


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


# Limits, and what cannot be sent


def code_of(effects: list[Effect]) -> tuple[Any, Any]:
    send = effects[0]
    assert isinstance(send, Send)
    return send.detail.get("code"), send.detail.get("details")


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


# Any JSON

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
values = json | st.sampled_from(["get", "watch", "put", "hub.ls", "1", "w", "r", *(f"leg-{n}" for n in range(1, 9))])
keys = ["operationId", "input", "parentRequestId", "deadline", "timeoutMs", "identity", "all", "stream", "credit", "n"]
keys += ["output", "code", "message", "details", "reason", "from", "missing"]
details = json | st.builds(
    lambda rest, request_id: {**rest, "requestId": request_id},
    st.dictionaries(st.sampled_from(keys), values),
    values,
)
VERBS = ["requested", "responded", "completed", "aborted", "error", "credit"]


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from([HUB, ANN, BOB, CARL]), details), max_size=8))
def test_any_json_gives_effects_or_one_frame_error(said: list[tuple[str, int, Any]]) -> None:
    talk = Talk(slack=2)
    talk.join(HUB, "hub.ls")
    talk.join(ANN, "get")
    talk.join(BOB, "get", "put", "watch")
    talk.asks(ANN, "1", "get")
    talk.asks(ANN, "w", "watch", credit=2)
    talk.asks(BOB, "r", "get", all=True)
    codes: set[int] = set()
    for verb, peer, detail in said:
        try:
            if verb == "requested":
                talk.table.requested(peer, {}, detail, talk.now, NOW_MS)
            else:
                getattr(talk.table, verb)(peer, detail, talk.now)
        except FrameError as error:
            codes.add(error.close_code)
    assert codes <= {24}
    for peer in (ANN, BOB, HUB):
        talk.table.gone(peer, talk.now)
    assert talk.empty()
    assert talk.table.next_deadline() is None
    assert talk.table.operations() == []


# Everything at once


class Model:
    """One call, as somebody who reads all messages sees it."""

    def __init__(self, caller: int, request_id: str, *, streaming: bool, roll: bool, parent: str | None):
        self.caller, self.request_id, self.streaming, self.roll = caller, request_id, streaming, roll
        self.parent = parent
        self.open: dict[str, int] = {}
        self.credit: int | None = None


class Everything(RuleBasedStateMachine):
    """Several peers do what they like. The model reads along and knows what must hold."""

    peers = st.sampled_from([HUB, ANN, BOB, CARL])
    limits = CallLimits(in_flight_per_peer=6, in_flight=12, slack=2, window=3, max_window=5)

    def __init__(self) -> None:
        super().__init__()
        self.table = CallTable(self.limits, leg_prefix="leg-")
        self.now = 0.0
        self.here: set[int] = {HUB}
        self.calls: dict[tuple[int, str], Model] = {}
        self.legs: dict[str, Model] = {}
        """Of open legs."""
        self.ever: list[str] = ["leg-0", "1"]
        self.aborted: set[str] = set()

    # What peers do

    @rule(peer=peers, ids=st.sets(st.sampled_from(["get", "put", "watch", "hub.ls"])))
    def register(self, peer: int, ids: set[str]) -> None:
        self.here.add(peer)
        self.table.register(peer, f"id-{peer}", None, offering(*sorted(ids)))

    @rule(
        peer=peers,
        request_id=st.sampled_from("12345"),
        operation=st.sampled_from(["get", "put", "watch", "hub.ls"]),
        more=st.fixed_dictionaries(
            {},
            optional={
                "timeoutMs": st.sampled_from([-1, 1, 500, 2_000, "x", 10**400]),
                "deadline": st.sampled_from([NOW_MS - 1, NOW_MS + 700, True]),
                "all": st.booleans(),
                "stream": st.booleans(),
                "credit": st.integers(-1, 9),
            },
        ),
        parent=st.none() | st.integers(0, 30),
    )
    def request(self, peer: int, request_id: str, operation: str, more: dict[str, Any], parent: int | None) -> None:
        if peer not in self.here:
            return
        detail = {"requestId": request_id, "operationId": operation, "identity": "forged", **more}
        if parent is not None:
            asked = [leg for leg, call in self.legs.items() if call.open[leg] == peer]
            likely = asked if asked and parent % 4 else self.ever
            detail["parentRequestId"] = likely[-1 - parent % len(likely)]
        before = self.calls.get((peer, request_id))
        effects = self.table.requested(peer, {"stamp": peer}, detail, self.now, NOW_MS)
        if before is not None:
            assert [type(effect) for effect in effects] == [Complain]
        elif isinstance(effects[-1], Ended):
            assert [type(effect) for effect in effects] == [Send, Ended]
            self.refused(peer, request_id, effects[0])
        else:
            self.accepted(peer, detail, effects)

    def refused(self, peer: int, request_id: str, send: Effect) -> None:
        assert isinstance(send, Send)
        assert (send.peer, send.type, send.detail["requestId"]) == (peer, "call.error", request_id)

    def accepted(self, peer: int, detail: dict[str, Any], effects: list[Effect]) -> None:
        """One or more legs, and nothing else."""
        streaming = detail.get("stream", detail["operationId"] == "watch") and not detail.get("all")
        parent = detail.get("parentRequestId")
        assert parent not in self.aborted
        if parent is not None and not (parent in self.legs and self.legs[parent].open[parent] == peer):
            parent = None
        call = Model(peer, detail["requestId"], streaming=streaming, roll=detail.get("all", False), parent=parent)
        self.calls[peer, call.request_id] = call
        assert effects
        assert call.roll or len(effects) == 1
        for send in effects:
            assert isinstance(send, Send)
            assert (send.type, send.detail["identity"]) == ("call.requested", {"stamp": peer})
            assert send.peer in self.here
            leg = send.detail["requestId"]
            assert leg not in self.ever
            self.ever.append(leg)
            call.open[leg] = send.peer
            self.legs[leg] = call
            if detail["operationId"] == "watch":
                call.credit = send.detail["credit"]
                assert 0 <= call.credit <= self.limits.max_window

    @rule(peer=peers, which=st.integers(0, 30), verb=st.sampled_from(VERBS[1:5]), output=st.integers())
    def answer(self, peer: int, which: int, verb: str, output: int) -> None:
        """Somebody answers a leg: often the one who was asked."""
        leg = self.ever[-1 - which % len(self.ever)]
        call = self.legs.get(leg)
        if call is not None and which % 3:
            peer = call.open[leg]
        stray = self.table.stray
        detail = {"requestId": leg, "output": output, "code": "X", "message": "m", "reason": "r"}
        effects: list[Effect] = getattr(self.table, verb)(peer, detail, self.now)
        own_call = verb == "aborted" and (peer, leg) in self.calls
        if own_call:
            self.read(effects, gave_up=(peer, leg))
        elif call is None or call.open.get(leg) != peer:
            assert effects == []
            assert self.table.stray == stray + 1
        else:
            self.answered(call, leg, verb, effects)

    def answered(self, call: Model, leg: str, verb: str, effects: list[Effect]) -> None:
        goes_on = verb == "responded" and call.streaming and call.credit is not None
        if goes_on:
            assert call.credit is not None
            call.credit -= 1
            assert call.credit >= -self.limits.slack - 1
        else:
            del call.open[leg]
            del self.legs[leg]
            # One that took its only answer from a subscription is told to stop.
            if verb == "responded" and call.credit is not None and not call.roll:
                call.open[leg] = next(e.peer for e in effects if isinstance(e, Send) and e.type == "call.aborted")
                self.legs[leg] = call
            else:
                self.orphan(leg)
        assert effects or call.roll
        self.read(effects)

    def orphan(self, leg: str) -> None:
        for call in self.calls.values():
            if call.parent == leg:
                call.parent = None

    @rule(peer=peers, request_id=st.sampled_from("12345"))
    def give_up(self, peer: int, request_id: str) -> None:
        stray, known = self.table.stray, (peer, request_id) in self.calls
        self.read(self.table.aborted(peer, {"requestId": request_id}, self.now), gave_up=(peer, request_id))
        assert self.table.stray == stray + (not known)

    @rule(peer=peers, request_id=st.sampled_from("12345"), n=st.sampled_from([1, 2, 50, 10**30, 0, -3, "x", True]))
    def credit(self, peer: int, request_id: str, n: Any) -> None:
        call = self.calls.get((peer, request_id))
        effects = self.table.credit(peer, {"requestId": request_id, "n": n}, self.now)
        if call is None:
            assert effects == []
        elif type(n) is not int or n < 1:
            assert any(isinstance(effect, Ended) and effect.code == "VALIDATION_ERROR" for effect in effects)
        self.read(effects)

    @rule(peer=peers)
    def leave(self, peer: int) -> None:
        effects = self.table.gone(peer, self.now)
        self.here.discard(peer)
        if peer == HUB:
            self.here.add(HUB)
        for call in [call for call in self.calls.values() if call.caller == peer]:
            del self.calls[peer, call.request_id]
            self.closed(call, effects, left=peer)
        for leg, call in list(self.legs.items()):
            if call.open.get(leg) == peer:
                del call.open[leg], self.legs[leg]
                self.orphan(leg)
        self.read(effects, left=peer)

    @rule(dt=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, 31.0]))
    def wait(self, dt: float) -> None:
        due = self.table.next_deadline()
        if due is not None and due > self.now:
            assert self.table.tick(self.now) == []
        self.now += dt
        effects = self.table.tick(self.now)
        assert bool(effects) == (due is not None and due <= self.now)
        self.read(effects)
        after = self.table.next_deadline()
        assert after is None or after > self.now

    @precondition(lambda self: self.table.next_deadline() is not None)
    @rule()
    def wait_for_the_next(self) -> None:
        due = self.table.next_deadline()
        assert due is not None
        self.now = max(self.now, due)
        effects = self.table.tick(self.now)
        assert any(isinstance(effect, Ended) for effect in effects)
        self.read(effects)

    @rule(which=st.integers(0, 30), full=st.booleans())
    def undeliverable(self, which: int, full: bool) -> None:
        leg = self.ever[-1 - which % len(self.ever)]
        call = self.legs.get(leg)
        if call is None or call.open[leg] not in self.here:
            return
        send = Send(call.open[leg], "call.requested", {"requestId": leg})
        effects = self.table.undeliverable(send, "full", self.now, retryable=full)
        del call.open[leg], self.legs[leg]
        self.orphan(leg)
        self.read(effects)

    # What the model reads in the effects

    def read(self, effects: list[Effect], gave_up: tuple[int, str] | None = None, left: int | None = None) -> None:
        """Every terminal message ends a call that is open, and every end is told once."""
        ends = sum(isinstance(effect, Ended) for effect in effects)
        if left is not None:
            ends -= self.ended_by_leaving
        if gave_up in self.calls:
            assert gave_up is not None
            ends -= 1
            self.closed(self.calls.pop(gave_up), effects)
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.peer in self.here
                assert effect.peer != left
                ends -= self.message(effect, effects)
        assert ends == 0
        self.ended_by_leaving = 0

    ended_by_leaving = 0

    def message(self, send: Send, effects: list[Effect]) -> bool:
        """Whether it was the last word to a caller."""
        id = send.detail["requestId"]
        if send.type == "call.aborted":
            assert id in self.aborted  # closed() saw it
            return False
        if send.type == "call.credit":
            call = self.legs[id]
            assert call.credit is not None
            call.credit += send.detail["n"]
            assert call.credit <= self.limits.max_window
            return False
        call = self.calls[send.peer, id]
        if send.type == "call.responded":
            assert ("from" in send.detail) == call.roll
            last = not call.streaming and not call.roll
        else:
            assert send.type in ("call.completed", "call.error")
            assert send.type == "call.error" or call.streaming or call.roll
            last = True
        if last:
            del self.calls[send.peer, id]
            self.closed(call, effects)
        return last

    def closed(self, call: Model, effects: list[Effect], left: int | None = None) -> None:
        """Whoever was still asked is told to stop."""
        self.ended_by_leaving += left is not None
        for leg, peer in call.open.items():
            del self.legs[leg]
            told = [e for e in effects if isinstance(e, Send) and (e.peer, e.type) == (peer, "call.aborted")]
            assert (leg in [send.detail["requestId"] for send in told]) == (peer != left)
            self.aborted.add(leg)
            if peer == left:
                self.orphan(leg)
                self.aborted.discard(leg)
        call.open = {}

    # What always holds

    @invariant()
    def agree(self) -> None:
        assert len(self.table) == len(self.calls)
        assert self.table._legs == len(self.legs) <= self.limits.in_flight
        for peer in self.here:
            assert self.table.in_flight(peer) == sum(call.open.get(leg) == peer for leg, call in self.legs.items())
        assert all(call.open for call in self.calls.values())
        assert {id(call) for call in self.legs.values()} == {id(call) for call in self.calls.values()}

    @invariant()
    def no_child_of_an_aborted_call_lives(self) -> None:
        assert not any(call.parent in self.aborted for call in self.calls.values())

    def teardown(self) -> None:
        for peer in (ANN, BOB, CARL, HUB):
            self.leave(peer)
        assert len(self.table) == self.table._legs == 0
        assert self.table.next_deadline() is None
        assert self.table.operations() == []
        assert not any(spoke.calls or spoke.legs for spoke in self.table._peers.values())


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
