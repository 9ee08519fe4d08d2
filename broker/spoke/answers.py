"""The answering side of calls: runs handlers and sends what they give, on top of protocol/answering.py.

A handler that may wait runs as a task. One that cannot (operations.py knows) is called where its call arrives: a task
costs more than all else that is done for a call here. It has a context of its own as a task has, and what it sees as
its current task is one that is over. A handler that raises is an EXECUTION_ERROR for its caller and nothing more; a
call that is aborted cancels its handler. Not here: which operations there are (operations.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import _enter_task, _leave_task
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from typing import Any, cast

from broker.errors import CallError, EventTooLarge, ExecutionFailed
from broker.protocol import answering
from broker.protocol.codec import encode
from broker.protocol.deadlines import Deadlines
from broker.protocol.registration import Operation
from broker.spoke.operations import Call, Direct, Offer, plain

__all__ = ["Answers", "current_call", "nobody_knows", "unknown"]

log = logging.getLogger("broker.spoke")

CANCEL_TIMEOUT = 2.0
"""Seconds in which a cancelled handler should be over; then it is left to itself."""

MAX_ERROR = 65_536
"""Bytes of a call.error, if the hub takes so many. Of a larger one the details are left out, and the message is cut to
a 16th of as many characters: one may take 6 bytes."""

current_call: ContextVar[Call | None] = ContextVar("broker_current_call", default=None)
"""The call whose handler is running: calls made inside it are its children."""


class _Running:
    """A handler that runs as a task."""

    __slots__ = ("late", "live", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.live = True
        self.late = False
        """Cancelled because its time was over."""


class Answers:
    """The calls that this spoke is answering."""

    def __init__(
        self,
        offers: Mapping[str, Offer],
        send: Callable[[str, Any], bool],
        control: Callable[[str, Any], None],
        *,
        call: type[Call] = Call,
    ) -> None:
        """``send`` may refuse, then outputs wait for :meth:`drained`. ``control`` takes errors and ends. ``call`` is
        what handlers are given."""
        self._offers, self._send, self._control, self._new_call = offers, send, control, call
        self.resume: Callable[[answering.Start], Offer | None] = nobody_knows
        """What answers a call that was asked over a direct connection before."""
        self._room = asyncio.Event()
        self._answering = answering.Answering()
        self._max_error = MAX_ERROR
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deadlines: Deadlines[_Running] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Task[None]
        """What is current while a handler is called without a task of its own."""
        self._credit: dict[str, asyncio.Event] = {}
        self.on_ended: Callable[[str, str, float], None] = lambda _operation, _code, _seconds: None

    def requested(self, detail: Any) -> None:
        """call.requested."""
        effect = self._answering.requested(detail)
        if isinstance(effect, answering.Start):
            self._start(effect)
        elif effect is not None:
            self._end(effect.detail)

    def receive(self, type: str, detail: Any) -> None:
        """call.aborted or call.credit."""
        self._apply(self._answering.on(type, detail, time.monotonic()))

    def connected(self, *, credited: bool, max_frame_bytes: int) -> None:
        """Whether this hub gives credit to streams, and the largest frame that it takes."""
        self._answering.credited = credited
        self._max_error = min(MAX_ERROR, max_frame_bytes)
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_task(_nothing(), name="broker-answers")

    def lost(self) -> None:
        """The connection is gone: nobody is there to hear the answers."""
        for task in list(self._tasks.values()):
            self._cancel(task)
        self._answering.lost()

    def hold(self) -> None:
        """The connection is gone, and calls may be asked for again: they go on, and streams when there is credit."""
        self._answering.hold()
        self.drained()  # answers that wait for room are remembered, and need none

    def allow(self, request_id: str, n: int) -> None:
        """A stream may have credit for ``n`` items now."""
        if (more := n - self._answering.credit(request_id)) > 0:
            self.receive("call.credit", {"requestId": request_id, "n": more})

    def stop(self, unwanted: Callable[[str], bool]) -> int:
        """Ends some of the calls that run, as if they were aborted. How many."""
        stopped = [request_id for request_id in self._tasks if unwanted(request_id)]
        for request_id in stopped:
            self.receive("call.aborted", {"requestId": request_id, "reason": "nobody waits for it"})
        return len(stopped)

    def drained(self) -> None:
        """The path to the hub has room again."""
        self._room.set()
        self._room = asyncio.Event()

    async def finish(self, timeout: float) -> int:
        """Waits for the running handlers, then cancels the rest. Returns how many were cancelled."""
        tasks = list(self._tasks.values())
        if not tasks:
            return 0
        _done, pending = await asyncio.wait(tasks, timeout=timeout)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=CANCEL_TIMEOUT)
        return len(pending)

    @property
    def running(self) -> int:
        return len(self._tasks)

    def _apply(self, effects: list[answering.Effect]) -> None:
        for effect in effects:
            match effect:
                case answering.Cancel(request_id, _reason):
                    if (task := self._tasks.get(request_id)) is not None:
                        self._cancel(task)
                case answering.CreditAdded(request_id, _n):
                    if (credit := self._credit.get(request_id)) is not None:
                        credit.set()
                case answering.Send():
                    self._end(effect.detail)

    def _end(self, error: dict[str, Any]) -> None:
        """Sends a call.error. Its text and details are the handler's, so they may be more than a frame takes."""
        try:
            encoded = encode("call.error", error)
            fits = len(encoded) <= self._max_error
        except ValueError:
            fits = False
        if not fits:
            error = answering.error_detail(error["requestId"], error["code"], error["message"][: self._max_error // 16])
        self._control("call.error", error)

    def _start(self, start: answering.Start) -> None:
        offer = self._offers.get(start.operation) if start.again is None else self.resume(start)
        if offer is None:
            self._apply(
                self._answering.fail(
                    start.request_id, "OPERATION_NOT_FOUND", f"this spoke does not offer {start.operation}"
                )
            )
            return
        call = self._new_call(start.request_id, start.operation, start.identity or {})
        if offer.direct is None or not self._call(offer.direct, call, start):
            work = self._stream if offer.streams else self._respond
            self._spawn(work(offer, call, start), call, start.timeout)

    # Handlers that cannot wait.

    def _call(self, direct: Direct, call: Call, start: answering.Start) -> bool:
        """False: not here, since this is inside of some task, which is nothing to the handler."""
        try:
            _enter_task(self._loop, self._over)
        except RuntimeError:
            return False
        try:
            copy_context().run(self._called, direct, call, start)
        finally:
            _leave_task(self._loop, self._over)
        return True

    def _called(self, direct: Direct, call: Call, start: answering.Start) -> None:
        current_call.set(call)
        began, code = time.monotonic(), "OK"
        try:
            output = direct(start.input, call)
        except (Exception, asyncio.CancelledError) as error:
            code = self._failed(call, error)
        else:
            if self._answering.ends(call.request_id):
                try:
                    if not self._send("call.responded", {"requestId": call.request_id, "output": output}):
                        self._spawn(self._deliver(call, output), call, start.timeout)
                        return  # and is told of when it is done
                except (ValueError, EventTooLarge) as error:
                    code = self._unsendable(call, error)
        self.on_ended(call.operation, code, time.monotonic() - began)

    # Handlers that may wait.

    def _spawn(self, work: Coroutine[Any, Any, str], call: Call, timeout: float | None) -> None:
        """``work`` gives the code that the call ends with."""
        running = _Running()
        self._tasks[call.request_id] = running.task = self._loop.create_task(self._run(work, call, timeout, running))
        if timeout is not None:
            now = time.monotonic()
            self._deadlines.add(now + timeout, running, len(self._tasks))
            self._arm(now)

    async def _run(self, work: Coroutine[Any, Any, str], call: Call, timeout: float | None, running: _Running) -> None:
        """What the task of a call does, from its start to its end."""
        current_call.set(call)  # a task has a context of its own
        began, code = time.monotonic(), "ABORTED"
        try:
            code = await work
        except asyncio.CancelledError as error:
            if not running.late or running.task.uncancel():  # there is another reason than the time
                self._failed(call, error)
                raise
            code = "TIMEOUT"
            self._apply(self._answering.fail(call.request_id, code, f"{call.operation} was not done in {timeout} s"))
        except Exception as error:
            code = self._failed(call, error)
        finally:
            running.live = False
            if self._tasks.get(call.request_id) is running.task:
                del self._tasks[call.request_id]
            self._credit.pop(call.request_id, None)
            self.on_ended(call.operation, code, time.monotonic() - began)

    async def _respond(self, offer: Offer, call: Call, start: answering.Start) -> str:
        output = await cast("Any", offer.handler(start.input, call))
        if self._answering.ends(call.request_id):
            try:
                return await self._deliver(call, output)
            except (ValueError, EventTooLarge) as error:
                return self._unsendable(call, error)
        return "OK"

    async def _deliver(self, call: Call, output: Any) -> str:
        """Waits while the path to the hub is full: an output is never dropped while the connection lasts."""
        while not self._send("call.responded", {"requestId": call.request_id, "output": output}):
            await self._room.wait()
        return "OK"

    async def _stream(self, offer: Offer, call: Call, start: answering.Start) -> str:
        """Sends items while there is credit; a consumer that reads slowly slows the generator."""
        request_id = call.request_id
        async with aclosing(cast("Any", offer.handler(start.input, call))) as items:
            async for output in cast("AsyncIterator[Any]", items):
                while (effects := self._answering.item(request_id, output)) is None:
                    credit = self._credit[request_id] = asyncio.Event()
                    await credit.wait()
                if not effects:  # it is cancelled. Without a wait of its own it would never come to that
                    return "ABORTED"
                await self._deliver(call, output)
        if self._answering.ends(request_id):
            self._control("call.completed", {"requestId": request_id})
        return "OK"

    def _cancel(self, task: asyncio.Task[None]) -> None:
        """After its first step: a task that is cancelled before takes none, and nobody would tidy up and count."""
        self._loop.call_soon(task.cancel)

    # How a call fails.

    def _failed(self, call: Call, error: BaseException) -> str:
        """What its handler raised, as the caller hears it. The call's code."""
        code, message, details = "EXECUTION_ERROR", f"{type(error).__name__}: {error}", None
        if isinstance(error, CallError):
            code, message, details = error.code, error.message, error.details
        elif isinstance(error, asyncio.CancelledError):
            # Nothing is sent if the caller gave up. Else this spoke stops, and another may answer.
            message, details = f"the spoke stopped before {call.operation} was done", {"retryable": True}
        else:
            log.error("the handler of %s failed", call.operation, exc_info=error)
        self._apply(self._answering.fail(call.request_id, code, message, details))
        return "ABORTED" if isinstance(error, asyncio.CancelledError) else code

    def _unsendable(self, call: Call, error: Exception) -> str:
        code = "EXECUTION_ERROR"
        self._end(answering.error_detail(call.request_id, code, f"the output cannot be sent: {error}"))
        return code

    # Deadlines.

    def _arm(self, now: float) -> None:
        """One timer for the earliest; one that is set for an earlier time will look again."""
        due = self._deadlines.next()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_later(max(due - now, 0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for running in self._deadlines.due(now):
            running.late = True
            self._cancel(running.task)
        self._arm(now)


def nobody_knows(start: answering.Start) -> Offer:
    """Answers a call that was asked before, and of which nothing is known: it may have run."""

    async def fails(_input: Any, _call: Call) -> Any:
        raise unknown(start.operation)

    return plain(Operation(start.operation), fails)


def unknown(operation: str) -> ExecutionFailed:
    return ExecutionFailed(f"{operation} may have been done; its answer is not kept here", retryable=True)


async def _nothing() -> None:
    """The life of a task that is over."""
