"""How a spoke runs handlers: as tasks, or, when they cannot wait, where the call arrives. Same promises either way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from broker.errors import EventTooLarge, OperationNotFound
from broker.protocol.registration import Operation
from broker.spoke.answers import Answers, current_call
from broker.spoke.operations import Call, Offer, plain, typed
from tests.rig import until

WAIT = 5.0
mark: ContextVar[str] = ContextVar("mark", default="unset")


class Rig:
    """Answers with nothing around it. ``sent`` is what the hub would get."""

    def __init__(self, *offers: Offer) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.ended: list[tuple[str, str]] = []
        self.room = True
        self.answers = Answers({offer.operation.id: offer for offer in offers}, self._send, self._control)
        self.answers.on_ended = lambda operation, code, _seconds: self.ended.append((operation, code))
        self.answers.connected(credited=True, max_frame_bytes=1 << 20)
        self._arrived = asyncio.Event()

    def _send(self, type: str, detail: Any) -> bool:
        if detail["output"] == "too large":
            raise EventTooLarge("too large", size=2, limit=1)
        if self.room:
            self._control(type, detail)
        return self.room

    def _control(self, type: str, detail: Any) -> None:
        self.sent.append((type, detail))
        self._arrived.set()

    async def ask(self, operation: str, input: Any = None, *, id: str = "1", timeout: float | None = None) -> None:
        """Hands the call over as the link does: from a callback of the loop, and returns after it."""
        detail = {"requestId": id, "operationId": operation, "input": input, "identity": {"id": "me"}}
        if timeout is not None:
            detail["timeoutMs"] = timeout * 1000
        await self.call(lambda: self.answers.requested(detail))

    async def call(self, callback: Callable[[], None]) -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().call_soon(callback)
        asyncio.get_running_loop().call_soon(done.set)
        await done.wait()

    async def last(self) -> tuple[str, Any]:
        """What is sent next, or was sent last."""
        async with asyncio.timeout(WAIT):
            await self._arrived.wait()
        self._arrived.clear()
        return self.sent[-1]


def offer(handler: Any) -> Offer:
    return plain(Operation(id="op", kind="query"), handler)


async def at_once(input: Any, call: Call) -> Any:
    return input


async def later(input: Any, call: Call) -> Any:
    await asyncio.sleep(0)
    return input


async def test_who_cannot_wait_is_known() -> None:
    def function(n: int) -> int:
        return n

    async def coroutine(n: int) -> int:
        return n

    async def waits(n: int) -> int:
        async with asyncio.Lock():
            return n

    class Offers:
        async def method(self, input: Any, call: Call) -> Any:
            return input

    assert offer(at_once).direct
    assert offer(Offers().method).direct
    assert offer(later).direct is None
    assert plain(Operation(id="op", kind="subscription"), at_once).direct is None
    assert [bool(typed(one, "op").direct) for one in (function, coroutine, waits)] == [True, True, False]


async def test_a_handler_that_cannot_wait_has_answered_when_its_call_was_handed_over() -> None:
    rig = Rig(offer(at_once))
    await rig.ask("op", {"a": 1})
    assert rig.sent == [("call.responded", {"requestId": "1", "output": {"a": 1}})]
    assert rig.answers.running == 0
    assert rig.ended == [("op", "OK")]


@pytest.mark.parametrize("function", [at_once, later])
async def test_a_call_arrives_inside_of_another_task(function: Any) -> None:
    rig = Rig(offer(function))
    rig.answers.requested({"requestId": "1", "operationId": "op", "input": 7})
    assert await rig.last() == ("call.responded", {"requestId": "1", "output": 7})


@pytest.mark.parametrize("waits", [False, True])
async def test_each_handler_has_a_context_of_its_own_and_knows_its_call(waits: bool) -> None:
    seen = []

    def look(call: Call) -> None:
        seen.append((mark.get(), current_call.get() is call))
        mark.set(call.request_id)

    async def direct(input: Any, call: Call) -> None:
        look(call)

    async def waiting(input: Any, call: Call) -> None:
        await asyncio.sleep(0)
        look(call)

    rig = Rig(offer(waiting if waits else direct))

    def both() -> None:
        for id in ("1", "2"):
            rig.answers.requested({"requestId": id, "operationId": "op"})

    await rig.call(both)
    await rig.answers.finish(WAIT)
    assert seen == [("unset", True), ("unset", True)]
    assert (mark.get(), current_call.get()) == ("unset", None)


async def test_the_current_task_of_a_handler_that_cannot_wait_cannot_be_used_against_others() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(input: Any, call: Call) -> str:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        task.cancel()
        return task.get_name()

    rig = Rig(offer(handler))
    await asyncio.sleep(0)
    for id in ("1", "2"):
        await rig.ask("op", id=id)
        assert (await rig.last())[1] == {"requestId": id, "output": "broker-answers"}
    assert all(task.done() and not task.cancelled() for task in tasks)
    assert asyncio.current_task() not in tasks


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "message", "ended"),
    [
        (KeyError("k"), "EXECUTION_ERROR", "KeyError: 'k'", "EXECUTION_ERROR"),
        (TimeoutError("mine"), "EXECUTION_ERROR", "TimeoutError: mine", "EXECUTION_ERROR"),
        (OperationNotFound("no"), "OPERATION_NOT_FOUND", "no", "OPERATION_NOT_FOUND"),
        (asyncio.CancelledError(), "EXECUTION_ERROR", "the spoke stopped before op was done", "ABORTED"),
    ],
)
async def test_what_a_handler_raises_is_its_callers_error(
    error: BaseException, code: str, message: str, ended: str, waits: bool
) -> None:
    async def direct(input: Any, call: Call) -> None:
        raise error

    async def waiting(input: Any, call: Call) -> None:
        await asyncio.sleep(0)
        raise error

    rig = Rig(offer(waiting if waits else direct))
    await rig.ask("op")
    kind, detail = await rig.last()
    assert (kind, detail["code"], detail["message"]) == ("call.error", code, message)
    await rig.answers.finish(WAIT)
    assert (rig.ended, len(rig.sent)) == ([("op", ended)], 1)


@pytest.mark.parametrize("function", [at_once, later])
async def test_an_output_that_cannot_be_sent_is_an_error(function: Any) -> None:
    rig = Rig(offer(function))
    await rig.ask("op", "too large")
    kind, detail = await rig.last()
    assert (kind, detail["code"]) == ("call.error", "EXECUTION_ERROR")
    assert "the output cannot be sent" in detail["message"]
    await rig.answers.finish(WAIT)
    assert rig.ended == [("op", "EXECUTION_ERROR")]


@pytest.mark.parametrize("function", [at_once, later])
async def test_an_output_waits_for_room(function: Any) -> None:
    rig = Rig(offer(function))
    rig.room = False
    await rig.ask("op", 1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert (rig.sent, rig.ended, rig.answers.running) == ([], [], 1)
    rig.room = True
    rig.answers.drained()
    assert await rig.last() == ("call.responded", {"requestId": "1", "output": 1})
    await rig.answers.finish(WAIT)
    assert (rig.ended, rig.answers.running) == ([("op", "OK")], 0)


async def test_a_handler_that_waits_too_long_is_cancelled_and_others_are_not() -> None:
    async def handler(input: Any, call: Call) -> Any:
        await asyncio.sleep(input)
        return input

    rig = Rig(offer(handler))
    await rig.ask("op", 0.2, id="long", timeout=60)
    await rig.ask("op", 60, id="short", timeout=0.05)
    kind, detail = await rig.last()
    assert (kind, detail["requestId"], detail["code"]) == ("call.error", "short", "TIMEOUT")
    assert await rig.last() == ("call.responded", {"requestId": "long", "output": 0.2})
    await rig.answers.finish(WAIT)
    assert rig.ended == [("op", "TIMEOUT"), ("op", "OK")]


@pytest.mark.parametrize("how", ["aborted", "lost"])
async def test_what_ends_a_call_before_its_first_step_leaves_nothing_behind(how: str) -> None:
    """A batch may bring a call and its end. A task that is cancelled before it began runs not even its `finally`."""
    rig = Rig(offer(later))
    rig.answers.requested({"requestId": "1", "operationId": "op", "input": 1, "identity": {"id": "me"}})
    assert rig.answers.running == 1
    if how == "aborted":
        rig.answers.receive("call.aborted", {"requestId": "1"})
    else:
        rig.answers.lost()
    await until(lambda: not rig.answers.running, WAIT)
    assert rig.ended == [("op", "ABORTED")]


async def test_an_abort_is_not_taken_for_the_end_of_its_time() -> None:
    async def handler(input: Any, call: Call) -> None:
        await asyncio.Event().wait()

    rig = Rig(offer(handler))
    await rig.ask("op", timeout=60)
    await asyncio.sleep(0)
    rig.answers.receive("call.aborted", {"requestId": "1"})
    assert await rig.answers.finish(WAIT) == 0
    assert (rig.sent, rig.ended) == ([], [("op", "ABORTED")])


async def test_a_stream_that_never_waits_and_is_aborted_with_credit_in_hand_stops() -> None:
    """Both in one batch: its task goes on before the cancellation comes, and there is no place where it would."""
    made = 0
    closed = asyncio.Event()

    async def endless(_input: Any, _call: Call) -> AsyncIterator[int]:
        nonlocal made
        try:
            while made < 100_000:
                made += 1
                yield made
        finally:
            closed.set()

    rig = Rig(plain(Operation(id="op", kind="subscription"), endless))
    await rig.ask("op")
    await until(lambda: made == 257)

    def batch() -> None:
        rig.answers.receive("call.credit", {"requestId": "1", "n": 1})
        rig.answers.receive("call.aborted", {"requestId": "1"})

    await rig.call(batch)
    async with asyncio.timeout(WAIT):
        await closed.wait()
    await until(lambda: rig.ended == [("op", "ABORTED")])
    assert (made, len(rig.sent), rig.answers.running) == (257, 256, 0)
