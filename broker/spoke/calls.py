"""The asking side of calls: futures and streams on top of protocol/caller.py.

Every wait has a deadline. A call that the program stops waiting for is aborted at the hub, which aborts what it caused.
Not here: answering (answers.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from broker.errors import CallError, ExecutionFailed, call_error
from broker.protocol import caller

__all__ = ["Answer", "Calls", "Missing", "RollCall"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One spoke's answer in a roll-call: ``output``, or the ``error`` that it ended with."""

    node_id: str
    name: str | None
    output: Any = None
    error: CallError | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A spoke that was asked and did not answer in time."""

    node_id: str
    name: str | None


@dataclass(slots=True)
class RollCall:
    answers: list[Answer] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


class _Stream:
    """Items of one call on their way to the program. Bounded by the call's window."""

    __slots__ = ("done", "error", "items", "waiter")

    def __init__(self) -> None:
        self.items: deque[caller.Item] = deque()
        self.done: caller.Finished | None = None
        self.error: CallError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Calls:
    """All calls in flight of one spoke."""

    def __init__(self, send: Callable[[str, Any], bool], control: Callable[[str, Any], None]) -> None:
        """``send`` may refuse; ``control`` takes aborts and credit."""
        self._send, self._control = send, control
        self._caller = caller.Caller()
        self._results: dict[str, asyncio.Future[Any]] = {}
        self._streams: dict[str, _Stream] = {}
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def call(self, operation: str, input: Any, *, timeout: float, parent: str | None) -> Any:
        request_id = self._next_id()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._results[request_id] = future
        try:
            self._start(request_id, operation, input, timeout, parent=parent)
            return await future
        finally:
            self._results.pop(request_id, None)
            if future.cancelled() or not future.done():
                self._give_up(request_id)

    async def stream(
        self, operation: str, input: Any, *, timeout: float | None, window: int, parent: str | None
    ) -> AsyncIterator[Any]:
        async with aclosing(self._items(operation, input, timeout, window, parent, everyone=False)) as items:
            async for item in items:
                if isinstance(item, caller.Item):
                    yield item.output

    async def roll_call(self, operation: str, input: Any, *, timeout: float, parent: str | None) -> RollCall:
        result = RollCall()
        async with aclosing(self._items(operation, input, timeout, 1, parent, everyone=True)) as items:
            async for item in items:
                if isinstance(item, caller.Item):
                    result.answers.append(_answer(item))
                else:
                    result.missing = [Missing(peer.node_id, peer.name) for peer in item.missing]
        return result

    async def _items(
        self, operation: str, input: Any, timeout: float | None, window: int, parent: str | None, *, everyone: bool
    ) -> AsyncGenerator[caller.Item | caller.Finished, None]:
        request_id = self._next_id()
        stream = self._streams[request_id] = _Stream()
        try:
            self._start(
                request_id,
                operation,
                input,
                timeout,
                parent=parent,
                everyone=everyone,
                stream=not everyone,
                window=window,
            )
            while True:
                while stream.items:
                    yield stream.items.popleft()
                    self._apply(self._caller.consumed(request_id))
                if stream.error is not None:
                    raise stream.error
                if stream.done is not None:
                    yield stream.done
                    return
                stream.waiter = asyncio.get_running_loop().create_future()
                await stream.waiter
        finally:
            self._streams.pop(request_id, None)
            if stream.error is None and stream.done is None:
                self._give_up(request_id)

    # What the link tells it.

    def receive(self, type: str, detail: Any) -> None:
        """call.responded, call.completed or call.error."""
        self._apply(self._caller.on(type, detail, time.monotonic()))

    def lost(self) -> None:
        """The connection is gone, and with it every answer."""
        self._apply(self._caller.lost())

    # Inside.

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

    def _start(
        self,
        request_id: str,
        operation: str,
        input: Any,
        timeout: float | None,
        *,
        parent: str | None,
        everyone: bool = False,
        stream: bool = False,
        window: int = 256,
    ) -> None:
        now = time.monotonic()
        detail = self._caller.start(
            request_id, operation, input, now, timeout, parent=parent, all=everyone, stream=stream, window=window
        )
        sent = False
        try:
            sent = self._send("call.requested", detail)
        finally:
            if not sent:
                self._caller.give_up(request_id, "not sent")
        if not sent:
            raise ExecutionFailed(
                f"{operation} was not asked: there is no connection to the hub, or its queue is full", retryable=True
            )
        self._arm(now)

    def _give_up(self, request_id: str) -> None:
        self._apply(self._caller.give_up(request_id, "the caller stopped waiting"))

    def _apply(self, effects: Iterable[caller.Effect]) -> None:
        for effect in effects:
            match effect:
                case caller.Resolved(request_id, output):
                    self._resolve(request_id, output)
                case caller.Item():
                    if (stream := self._streams.get(effect.request_id)) is not None:
                        stream.items.append(effect)
                        stream.wake()
                case caller.Finished():
                    if (stream := self._streams.get(effect.request_id)) is not None:
                        stream.done = effect
                        stream.wake()
                case caller.Failed(request_id, code, message, details):
                    self._fail(request_id, call_error(code, message, details))
                case caller.Send():
                    self._control(effect.type, effect.detail)

    def _resolve(self, request_id: str, output: Any) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_result(output)

    def _fail(self, request_id: str, error: CallError) -> None:
        future = self._results.get(request_id)
        if future is not None and not future.done():
            future.set_exception(error)
        elif (stream := self._streams.get(request_id)) is not None:
            stream.error = error
            stream.wake()

    def _arm(self, now: float) -> None:
        """One timer for the earliest local deadline. They are late by design: the hub's TIMEOUT normally comes
        first."""
        due = self._caller.next_deadline()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(max(due - now, 0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._apply(self._caller.tick(now))
        self._arm(now)


def _answer(item: caller.Item) -> Answer:
    node_id, name = item.sender or ("", None)
    return Answer(node_id, name, item.output, call_error(*item.error) if item.error is not None else None)
