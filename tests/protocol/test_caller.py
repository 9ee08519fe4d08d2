"""A spoke's outgoing calls by example and with any JSON.

Not here: a hub that answers (test_caller_through_a_hub.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ExecutionFailed, FrameError
from broker.protocol.caller import (
    GRACE,
    MAX_CALLS,
    SLACK,
    Caller,
    Effect,
    Error,
    Failed,
    Finished,
    Item,
    Member,
    Resolved,
    Send,
)


def on(caller: Caller, type: str, request_id: str, **more: Any) -> list[Effect]:
    return caller.on(type, {"requestId": request_id, **more}, 0.0)


@pytest.fixture
def caller() -> Caller:
    return Caller()


# What is sent


def test_a_call(caller: Caller) -> None:
    assert caller.start("1", "get", {"a": 1}, 10.0, 2.5, parent="leg-7") == {
        "requestId": "1",
        "operationId": "get",
        "input": {"a": 1},
        "stream": False,
        "timeoutMs": 2_500,
        "parentRequestId": "leg-7",
    }
    assert (len(caller), "1" in caller) == (1, True)
    assert on(caller, "call.responded", "1", output=5) == [Resolved("1", 5)]
    assert (len(caller), caller.next_deadline()) == (0, None)


def test_a_stream_and_a_roll_call(caller: Caller) -> None:
    stream = caller.start("1", "watch", None, 0.0, stream=True, window=8)
    assert stream == {"requestId": "1", "operationId": "watch", "input": None, "stream": True, "credit": 8}
    assert caller.next_deadline() is None
    roll = caller.start("2", "get", None, 0.0, 1, all=True)
    assert roll == {"requestId": "2", "operationId": "get", "input": None, "all": True, "timeoutMs": 1_000}


def test_misuse_is_a_value_error_and_changes_nothing(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    for request_id in ("1", "", "x" * 129):
        with pytest.raises(ValueError, match="request id"):
            caller.start(request_id, "get", None, 0.0)
    with pytest.raises(ValueError, match="a roll-call is not a stream"):
        caller.start("2", "get", None, 0.0, all=True, stream=True)
    with pytest.raises(ValueError, match="window"):
        caller.start("2", "get", None, 0.0, stream=True, window=0)
    with pytest.raises(ValueError, match="NaN"):
        caller.start("2", "get", None, 0.0, float("nan"))
    assert len(caller) == 1


@pytest.mark.parametrize(("timeout", "sent"), [(-5, 1), (0, 1), (0.0004, 1), (1.5, 1_500), (1e300, 3_600_000)])
def test_a_timeout_is_kept_within_reason(caller: Caller, timeout: float, sent: int) -> None:
    assert caller.start("1", "get", None, 0.0, timeout)["timeoutMs"] == sent
    assert caller.next_deadline() == sent / 1_000 + GRACE


def test_a_caller_is_bounded(caller: Caller) -> None:
    for n in range(MAX_CALLS):
        assert not caller.full
        caller.start(str(n), "get", None, 0.0)
    assert caller.full
    with pytest.raises(ExecutionFailed, match="1024 calls are in flight") as caught:
        caller.start("x", "get", None, 0.0)
    assert caught.value.retryable
    on(caller, "call.responded", "7")
    assert caller.start("x", "get", None, 0.0)["requestId"] == "x"


# How it ends


def test_each_call_ends_once(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert on(caller, "call.error", "1", code="ACCESS_DENIED", message="no", details=[1]) == [
        Failed("1", "ACCESS_DENIED", "no", [1])
    ]
    for type in ("call.responded", "call.completed", "call.error", "call.aborted", "call.else"):
        assert on(caller, type, "1") == []
    assert caller.stray == 5
    assert caller.give_up("1") == []
    assert caller.consumed("1") == []


def test_malformed_errors_are_errors(caller: Caller) -> None:
    malformed: list[dict[str, Any]] = [{}, {"code": 5, "message": []}, {"code": "", "message": None}]
    for n, more in enumerate(malformed):
        caller.start(str(n), "get", None, 0.0)
        assert on(caller, "call.error", str(n), **more) == [
            Failed(str(n), "UNKNOWN_ERROR", "the call failed without a message", None)
        ]


def test_a_peer_may_abort(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    caller.start("2", "get", None, 0.0)
    assert on(caller, "call.aborted", "1", reason="going") == [Failed("1", "ABORTED", "going", None)]
    assert on(caller, "call.aborted", "2", reason=5) == [Failed("2", "ABORTED", "aborted", None)]


def test_a_call_that_completes_has_no_answer(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert on(caller, "call.completed", "1") == [Failed("1", "EXECUTION_ERROR", "get ended without an answer", None)]


def test_giving_up(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert caller.give_up("1", "bored") == [Send("call.aborted", {"requestId": "1", "reason": "bored"})]
    assert caller.give_up("1") == []
    assert on(caller, "call.responded", "1") == []
    assert caller.next_deadline() is None


def test_a_silent_hub(caller: Caller) -> None:
    caller.start("1", "get", None, 100.0, 5)
    assert caller.next_deadline() == 105.0 + GRACE
    assert caller.tick(105.0) == []
    failed, abort = caller.tick(105.0 + GRACE)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.details) == ("TIMEOUT", {"retryable": True})
    assert abort == Send("call.aborted", {"requestId": "1", "reason": "deadline"})
    assert caller.tick(999.0) == []


def test_a_lost_connection(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    caller.start("2", "watch", None, 0.0, stream=True)
    assert caller.lost("gone") == [
        Failed("1", "EXECUTION_ERROR", "get: gone", {"retryable": True}),
        Failed("2", "EXECUTION_ERROR", "watch: gone", {"retryable": True}),
    ]
    assert (len(caller), caller.lost()) == (0, [])


# Streams and roll-calls


def test_credit_is_given_back_by_halves(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=4)
    for n in range(4):
        assert on(caller, "call.responded", "1", output=n) == [Item("1", n)]
    assert caller.consumed("1") == []
    assert caller.consumed("1") == [Send("call.credit", {"requestId": "1", "n": 2})]
    assert caller.consumed("1", 99) == [Send("call.credit", {"requestId": "1", "n": 2})]
    assert caller.consumed("1", 5) == []
    assert on(caller, "call.completed", "1") == [Finished("1", [])]


def test_a_window_of_one(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=1)
    on(caller, "call.responded", "1")
    assert caller.consumed("1") == [Send("call.credit", {"requestId": "1", "n": 1})]


def test_a_flood_ends_the_stream(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=4)
    for n in range(4 + SLACK):
        assert on(caller, "call.responded", "1", output=n) == [Item("1", n)]
    message = "watch: more items than its window lets wait"
    assert on(caller, "call.responded", "1") == [
        Failed("1", "EXECUTION_ERROR", message, None),
        Send("call.aborted", {"requestId": "1", "reason": message}),
    ]


def test_a_roll_call_says_who(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0, all=True)
    ann = {"id": "id-ann", "name": "ann"}
    assert on(caller, "call.responded", "1", output=5, **{"from": ann}) == [Item("1", 5, Member("id-ann", "ann"))]
    failed = {"code": "X", "message": "y"}
    assert on(caller, "call.responded", "1", error=failed, **{"from": {"id": "b", "name": 5}}) == [
        Item("1", None, Member("b", None), Error("X", "y", None))
    ]
    assert caller.consumed("1", 5) == []
    for sender in (None, 5, {}, {"id": 5}):
        assert on(caller, "call.responded", "1", output=5, **{"from": sender}) == []
    assert caller.stray == 4
    assert on(caller, "call.completed", "1", missing=[ann, 5, {}, {"id": "c"}]) == [
        Finished("1", [Member("id-ann", "ann"), Member("c", None)])
    ]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
likely = json | st.sampled_from(["1", "2", "3", "a"])
keys = ["output", "code", "message", "details", "reason", "from", "error", "missing", "n", "id", "name"]
parts = likely | st.dictionaries(st.sampled_from(keys), likely)
details = json | st.builds(
    lambda rest, id: {**rest, "requestId": id}, st.dictionaries(st.sampled_from(keys), parts), likely
)
types = st.sampled_from(["call.responded", "call.completed", "call.error", "call.aborted", "call.credit", "call.x"])


@given(st.lists(st.tuples(types, details), max_size=6))
def test_any_json_gives_effects_or_one_frame_error(said: list[tuple[str, Any]]) -> None:
    caller = Caller()
    caller.start("1", "get", None, 0.0)
    caller.start("2", "watch", None, 0.0, stream=True)
    caller.start("3", "get", None, 0.0, all=True)
    last: list[str] = []
    codes: set[int] = set()
    for type, detail in said:
        try:
            effects = caller.on(type, detail, 0.0)
        except FrameError as error:
            codes.add(error.close_code)
        else:
            last += [effect.request_id for effect in effects if isinstance(effect, (Resolved, Finished, Failed))]
    assert codes <= {24}
    last += [effect.request_id for effect in caller.lost() if isinstance(effect, Failed)]
    assert sorted(last) == ["1", "2", "3"]
