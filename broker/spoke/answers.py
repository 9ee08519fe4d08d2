"""The answering side of calls: runs handlers as tasks and sends what they give, on top of protocol/answering.py.

A handler that raises is an EXECUTION_ERROR for its caller and nothing more; a call that is aborted cancels its
handler. Not here: which operations there are (operations.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, cast

from broker.errors import CallError, EventTooLarge
from broker.protocol import answering
from broker.protocol.codec import encode
from broker.spoke.operations import Call, Offer

__all__ = ["Answers", "current_call"]

log = logging.getLogger("broker.spoke")

CANCEL_TIMEOUT = 2.0
"""Seconds in which a cancelled handler should be over; then it is left to itself."""

MAX_ERROR = 65_536
"""Bytes of a call.error; of a larger one the details are left out."""
MAX_MESSAGE = 4_096

current_call: ContextVar[Call | None] = ContextVar("broker_current_call", default=None)
"""The call whose handler is running: calls made inside it are its children."""


class Answers:
    """The calls that this spoke is answering."""

    def __init__(
        self, offers: Mapping[str, Offer], send: Callable[[str, Any], bool], control: Callable[[str, Any], None]
    ) -> None:
        """``send`` may refuse, then outputs wait for :meth:`drained`. ``control`` takes errors and ends."""
        self._offers, self._send, self._control = offers, send, control
        self._room = asyncio.Event()
        self._answering = answering.Answering()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._credit: dict[str, asyncio.Event] = {}
        self.on_ended: Callable[[str, str, float], None] = lambda _operation, _code, _seconds: None

    def receive(self, type: str, detail: Any) -> None:
        """call.requested, call.aborted or call.credit."""
        self._apply(self._answering.on(type, detail, time.monotonic()))

    def connected(self, *, credited: bool) -> None:
        """Whether this hub gives credit to streams."""
        self._answering.credited = credited

    def lost(self) -> None:
        """The connection is gone: nobody is there to hear the answers."""
        for task in list(self._tasks.values()):
            task.cancel()
        self._answering.lost()

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
                case answering.Start():
                    self._start(effect)
                case answering.Cancel(request_id, _reason):
                    if (task := self._tasks.get(request_id)) is not None:
                        task.cancel()
                case answering.CreditAdded(request_id, _n):
                    if (credit := self._credit.get(request_id)) is not None:
                        credit.set()
                case answering.Send():
                    self._end(effect.detail)

    def _end(self, error: dict[str, Any]) -> None:
        """Sends a call.error. Its text and details are the handler's, so they may be more than a frame takes."""
        try:
            encoded = encode("call.error", error)
            fits = len(encoded) <= MAX_ERROR
        except ValueError:
            fits = False
        if not fits:
            error = answering.error_detail(error["requestId"], error["code"], error["message"][:MAX_MESSAGE])
        self._control("call.error", error)

    def _start(self, start: answering.Start) -> None:
        offer = self._offers.get(start.operation)
        if offer is None:
            self._apply(
                self._answering.fail(
                    start.request_id, "OPERATION_NOT_FOUND", f"this spoke does not offer {start.operation}"
                )
            )
            return
        call = Call(start.request_id, start.operation, start.identity or {})
        task = asyncio.get_running_loop().create_task(self._run(offer, call, start))
        self._tasks[start.request_id] = task

    async def _run(self, offer: Offer, call: Call, start: answering.Start) -> None:
        request_id = call.request_id
        current_call.set(call)  # a task has a context of its own
        began, code = time.monotonic(), "OK"
        limit = asyncio.timeout(start.timeout)
        try:
            async with limit:
                if offer.streams:
                    await self._stream(offer, call, start)
                else:
                    output = await cast("Any", offer.handler(start.input, call))
                    code = await self._respond(request_id, output)
        except CallError as error:
            code = error.code
            self._apply(self._answering.fail(request_id, error.code, error.message, error.details))
        except TimeoutError as error:
            if not limit.expired():
                log.exception("the handler of %s failed", call.operation)
                code = "EXECUTION_ERROR"
                self._apply(self._answering.fail(request_id, code, f"TimeoutError: {error}"))
                return
            message = f"{call.operation} was not done in {start.timeout} s"
            code = "TIMEOUT"
            self._apply(self._answering.fail(request_id, code, message))
        except Exception as error:
            log.exception("the handler of %s failed", call.operation)
            code = "EXECUTION_ERROR"
            self._apply(self._answering.fail(request_id, code, f"{type(error).__name__}: {error}"))
        except asyncio.CancelledError:
            code = "ABORTED"
            # Nothing is sent if the caller gave up. Else this spoke stops, and another may answer.
            message, details = f"the spoke stopped before {call.operation} was done", {"retryable": True}
            self._apply(self._answering.fail(request_id, "EXECUTION_ERROR", message, details))
            raise
        finally:
            if self._tasks.get(request_id) is asyncio.current_task():
                del self._tasks[request_id]
            self._credit.pop(request_id, None)
            self.on_ended(call.operation, code, time.monotonic() - began)

    async def _respond(self, request_id: str, output: Any) -> str:
        """Sends the answer, or why it cannot be sent. The call's code."""
        if self._answering.respond(request_id, output):
            try:
                await self._deliver(request_id, output)
            except (ValueError, EventTooLarge) as error:
                code, message = "EXECUTION_ERROR", f"the output cannot be sent: {error}"
                self._end(answering.error_detail(request_id, code, message))
                return code
        return "OK"

    async def _deliver(self, request_id: str, output: Any) -> None:
        """Waits while the path to the hub is full: an output is never dropped while the connection lasts."""
        while not self._send("call.responded", {"requestId": request_id, "output": output}):
            await self._room.wait()

    async def _stream(self, offer: Offer, call: Call, start: answering.Start) -> None:
        """Sends items while there is credit; a consumer that reads slowly slows the generator."""
        request_id = call.request_id
        async with aclosing(cast("Any", offer.handler(start.input, call))) as items:
            async for output in cast("AsyncIterator[Any]", items):
                while (effects := self._answering.item(request_id, output)) is None:
                    credit = self._credit[request_id] = asyncio.Event()
                    await credit.wait()
                if effects:
                    await self._deliver(request_id, output)
        if self._answering.finish(request_id):
            self._control("call.completed", {"requestId": request_id})
