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

from broker.errors import CallError
from broker.protocol import answering
from broker.spoke.operations import Call, Offer

__all__ = ["Answers", "current_call"]

log = logging.getLogger("broker.spoke")

current_call: ContextVar[Call | None] = ContextVar("broker_current_call", default=None)
"""The call whose handler is running: calls made inside it are its children."""


class Answers:
    """The calls that this spoke is answering."""

    def __init__(self, offers: Mapping[str, Offer], send: Callable[[str, Any], bool]) -> None:
        self._offers, self._send = offers, send
        self._answering = answering.Answering()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._credit: dict[str, asyncio.Event] = {}

    def receive(self, type: str, detail: Any) -> None:
        """call.requested, call.aborted or call.credit."""
        self._apply(self._answering.on(type, detail, time.monotonic()))

    def lost(self) -> None:
        """The connection is gone: nobody is there to hear the answers."""
        for task in list(self._tasks.values()):
            task.cancel()
        self._answering.lost()

    async def finish(self, timeout: float) -> int:
        """Waits for the running handlers, then cancels the rest. Returns how many were cancelled."""
        tasks = list(self._tasks.values())
        if not tasks:
            return 0
        _done, pending = await asyncio.wait(tasks, timeout=timeout)
        for task in pending:
            task.cancel()
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
                    self._send(effect.type, effect.detail)

    def _start(self, start: answering.Start) -> None:
        offer = self._offers.get(start.operation)
        if offer is None:
            self._apply(
                self._answering.fail(start.request_id, "OPERATION_NOT_FOUND", f"this spoke does not offer {start.operation}")
            )
            return
        call = Call(start.request_id, start.operation, start.identity or {})
        task = asyncio.get_running_loop().create_task(self._run(offer, call, start))
        self._tasks[start.request_id] = task

    async def _run(self, offer: Offer, call: Call, start: answering.Start) -> None:
        request_id = call.request_id
        current_call.set(call)  # a task has a context of its own
        try:
            async with asyncio.timeout(start.timeout):
                if offer.streams:
                    await self._stream(offer, call, start)
                else:
                    output = await cast("Any", offer.handler(start.input, call))
                    self._apply(self._answering.respond(request_id, output))
        except CallError as error:
            self._apply(self._answering.fail(request_id, error.code, error.message, error.details))
        except TimeoutError:
            message = f"{call.operation} was not done in {start.timeout} s"
            self._apply(self._answering.fail(request_id, "TIMEOUT", message))
        except Exception as error:
            log.exception("the handler of %s failed", call.operation)
            self._apply(self._answering.fail(request_id, "EXECUTION_ERROR", f"{type(error).__name__}: {error}"))
        except asyncio.CancelledError:
            self._apply(self._answering.fail(request_id, "ABORTED", "the call was given up"))
            raise
        finally:
            if self._tasks.get(request_id) is asyncio.current_task():
                del self._tasks[request_id]
            self._credit.pop(request_id, None)

    async def _stream(self, offer: Offer, call: Call, start: answering.Start) -> None:
        """Sends items while there is credit; a consumer that reads slowly slows the generator."""
        request_id = call.request_id
        async with aclosing(cast("Any", offer.handler(start.input, call))) as items:
            async for output in cast("AsyncIterator[Any]", items):
                while (effects := self._answering.item(request_id, output)) is None:
                    credit = self._credit[request_id] = asyncio.Event()
                    await credit.wait()
                self._apply(effects)
        self._apply(self._answering.finish(request_id))
