"""A spoke's incoming calls: each Start is ended once, and no item is sent without credit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import FrameError
from broker.protocol.answering import (
    MAX_RUNNING,
    MAX_WINDOW,
    Answering,
    Cancel,
    CreditAdded,
    Effect,
    Send,
    Start,
    error_detail,
)


def asked(answering: Answering, request_id: str, **more: Any) -> Effect:
    detail = {"requestId": request_id, "operationId": "get", **more}
    (effect,) = answering.on("call.requested", detail, 0.0)
    return effect


def on(answering: Answering, type: str, request_id: str, **more: Any) -> list[Effect]:
    return answering.on(type, {"requestId": request_id, **more}, 0.0)


@pytest.fixture
def answering() -> Answering:
    return Answering()


def test_a_call_and_its_answer(answering: Answering) -> None:
    start = asked(answering, "1", input={"a": 1}, identity={"id": "x"}, timeoutMs=1_500, deadline=5)
    assert start == Start("1", "get", {"a": 1}, {"id": "x"}, 1.5, 256, None)
    assert (len(answering), "1" in answering) == (1, True)
    assert answering.respond("1", 7) == [Send("call.responded", {"requestId": "1", "output": 7})]
    assert len(answering) == 0


def test_little_is_enough(answering: Answering) -> None:
    assert asked(answering, "1", identity="forged", deadline="x") == Start("1", "get", None, None, None, 256, None)
    assert asked(answering, "2", timeoutMs=10**400, stream=False) == Start("2", "get", None, None, 3_600.0, 256, False)


def test_results_after_the_end_go_nowhere(answering: Answering) -> None:
    asked(answering, "1")
    assert answering.fail("1", "X", "y") == [Send("call.error", {"requestId": "1", "code": "X", "message": "y"})]
    assert answering.respond("1", 7) == []
    assert answering.item("1", 7) == []
    assert answering.finish("1") == []
    assert answering.fail("1", "X", "y") == []


def test_a_cancelled_call(answering: Answering) -> None:
    asked(answering, "1")
    asked(answering, "2")
    assert on(answering, "call.aborted", "1", reason="bored") == [Cancel("1", "bored")]
    assert on(answering, "call.aborted", "1") == []
    assert on(answering, "call.aborted", "2", reason=5) == [Cancel("2", "aborted")]
    assert answering.respond("1", 7) == []
    assert answering.stray == 1


def test_items_wait_for_credit(answering: Answering) -> None:
    assert asked(answering, "1", credit=2) == Start("1", "get", None, None, None, 2, None)
    for n in range(2):
        assert answering.item("1", n) == [Send("call.responded", {"requestId": "1", "output": n})]
    assert answering.item("1", 2) is None
    assert answering.credit("1") == 0
    assert on(answering, "call.credit", "1", n=1) == [CreditAdded("1", 1)]
    assert answering.item("1", 2) == [Send("call.responded", {"requestId": "1", "output": 2})]
    assert answering.finish("1") == [Send("call.completed", {"requestId": "1"})]
    assert on(answering, "call.credit", "1", n=1) == []
    assert answering.credit("1") == 0


def test_a_stream_may_start_without_credit(answering: Answering) -> None:
    asked(answering, "1", credit=0)
    assert answering.item("1", 0) is None
    assert "1" in answering


@pytest.mark.parametrize("n", [None, 0, -5, True, 1.0, "1"])
def test_malformed_credit_is_nothing(answering: Answering, n: Any) -> None:
    asked(answering, "1", credit=0)
    assert on(answering, "call.credit", "1", n=n) == []
    assert (answering.credit("1"), answering.stray) == (0, 1)


def test_credit_is_bounded(answering: Answering) -> None:
    asked(answering, "1", credit=MAX_WINDOW - 1)
    assert on(answering, "call.credit", "1", n=10**30) == [CreditAdded("1", 1)]
    assert on(answering, "call.credit", "1", n=10**30) == []
    start = asked(answering, "2", credit=10**30)
    assert isinstance(start, Start)
    assert start.window == MAX_WINDOW


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"operationId": 5}, "VALIDATION_ERROR"),
        ({"operationId": None}, "VALIDATION_ERROR"),
        ({"credit": -1}, "VALIDATION_ERROR"),
        ({"credit": True}, "VALIDATION_ERROR"),
        ({"stream": 1}, "VALIDATION_ERROR"),
        ({"timeoutMs": "x"}, "VALIDATION_ERROR"),
        ({"timeoutMs": 0}, "TIMEOUT"),
        ({"timeoutMs": -(10**400)}, "TIMEOUT"),
    ],
)
def test_what_cannot_be_run_is_answered(answering: Answering, more: dict[str, Any], code: str) -> None:
    send = asked(answering, "1", **more)
    assert isinstance(send, Send)
    assert (send.type, send.detail["requestId"], send.detail["code"]) == ("call.error", "1", code)
    assert len(answering) == 0


def test_too_many_are_busy(answering: Answering) -> None:
    for n in range(MAX_RUNNING):
        assert isinstance(asked(answering, str(n)), Start)
    busy = "busy: 1024 calls are running, which is the limit"
    assert asked(answering, "x") == Send("call.error", error_detail("x", "EXECUTION_ERROR", busy, {"retryable": True}))
    answering.respond("0", None)
    assert isinstance(asked(answering, "x"), Start)


def test_an_id_that_runs_is_not_started_again(answering: Answering) -> None:
    asked(answering, "1", credit=1)
    assert on(answering, "call.requested", "1", operationId="put") == []
    assert (answering.stray, answering.credit("1")) == (1, 1)


def test_a_lost_connection_stops_everything(answering: Answering) -> None:
    asked(answering, "1")
    asked(answering, "2")
    assert answering.lost("gone") == [Cancel("1", "gone"), Cancel("2", "gone")]
    assert answering.respond("1", 7) == []
    assert answering.lost() == []


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
likely = json | st.sampled_from(["1", "2", "get"])
keys = ["operationId", "input", "identity", "timeoutMs", "deadline", "credit", "stream", "reason", "n"]
details = json | st.builds(
    lambda rest, id: {**rest, "requestId": id}, st.dictionaries(st.sampled_from(keys), likely), likely
)
types = st.sampled_from(["call.requested", "call.aborted", "call.credit", "call.responded", "call.x"])


@given(st.lists(st.tuples(types, details), max_size=8))
def test_any_json_gives_effects_or_one_frame_error(said: list[tuple[str, Any]]) -> None:
    answering, codes, running = Answering(), set(), set()
    for type, detail in said:
        try:
            effects = answering.on(type, detail, 0.0)
        except FrameError as error:
            codes.add(error.close_code)
            continue
        for effect in effects:
            match effect:
                case Start(request_id):
                    assert request_id not in running
                    running.add(request_id)
                case Cancel(request_id):
                    running.remove(request_id)
                case CreditAdded(request_id, n):
                    assert request_id in running
                    assert n > 0
    assert codes <= {24}
    assert {effect.request_id for effect in answering.lost() if isinstance(effect, Cancel)} == running
