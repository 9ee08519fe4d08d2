"""The asking side of calls: futures and streams on top of protocol/caller.py.

Every wait has a deadline. A call that the program stops waiting for is aborted at the hub, which aborts what it caused.
A call goes to the hub, or over a direct connection with the spoke that answers it (a `Way`); when that ends, what was
asked there is asked again through the hub, once, and a stream goes on. Not here: answering (answers.py), and which way
a call goes (ways of direct.py).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Protocol

from broker.errors import CallError, EventTooLarge, ExecutionFailed, call_error
from broker.protocol import caller
from broker.protocol.codec import request_id_of

__all__ = ["Answer", "Calls", "Missing", "RollCall", "Way"]

MOVED_BYTES: Final = 4_194_304
"""Of items on their way at a time, of all streams that go on by way of the hub: half of what a hub queues for one
connection. A direct connection makes a stream wait when it is full, a hub ends it."""


class Way(Protocol):
    """A connection with the spoke that is asked, beside the hub's (direct.py)."""

    asked: dict[str, tuple[dict[str, Any], float]]
    """Calls that went this way and have not ended: the call.requested, and when (loop time)."""
    streams_again: bool
    """Whether a stream can be asked for again by way of the hub."""
    largest: int
    """Bytes of the largest message that has come this way."""

    def ask(self, detail: dict[str, Any]) -> bool:
        """False: there is no room. ValueError, EventTooLarge as of the link."""

    def control(self, type: str, detail: Any) -> None:
        """Aborts and credit."""


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
        self._loop: asyncio.AbstractEventLoop
        """Set by each first word of a hub: nothing is under way before. To ask for it is a system call up to 3.11."""
        self._caller = caller.Caller()
        self._results: dict[str, asyncio.Future[Any]] = {}
        self._streams: dict[str, _Stream] = {}
        self._ways: dict[str, Way] = {}
        """Of calls that did not go to the hub."""
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.direct = self.again = 0
        """Calls that went another way than the hub's, and those of them that had to be asked again."""

    @property
    def asked(self) -> int:
        """Calls, streams and roll-calls so far."""
        return self._count

    def connected(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def call(
        self, operation: str, input: Any, *, timeout: float, parent: str | None, way: Way | None = None
    ) -> Any:
        request_id = self._next_id()
        self._start(request_id, operation, input, timeout, parent=parent, way=way)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._results[request_id] = future
        try:
            return await future
        finally:
            self._results.pop(request_id, None)
            if future.cancelled() or not future.done():
                self._give_up(request_id)
            if way is not None:
                self._leave(request_id)

    async def stream(
        self,
        operation: str,
        input: Any,
        *,
        timeout: float | None,
        window: int,
        parent: str | None,
        way: Way | None = None,
    ) -> AsyncIterator[Any]:
        async with aclosing(self._items(operation, input, timeout, window, parent, everyone=False, way=way)) as items:
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
        self,
        operation: str,
        input: Any,
        timeout: float | None,
        window: int,
        parent: str | None,
        *,
        everyone: bool,
        way: Way | None = None,
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
                way=way,
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
                stream.waiter = self._loop.create_future()
                await stream.waiter
        finally:
            self._streams.pop(request_id, None)
            if stream.error is None and stream.done is None:
                self._give_up(request_id)
            if way is not None:
                self._leave(request_id)

    # What the link tells it.

    def receive(self, type: str, detail: Any) -> None:
        """call.responded, call.completed or call.error."""
        self._apply(self._caller.on(type, detail, time.monotonic()))

    def lost(self) -> None:
        """The connection to the hub is gone, and with it every answer that was to come by it."""
        self._apply(self._caller.lost(spared=self._ways))

    # What a direct connection tells it.

    def receive_from(self, way: Way, type: str, detail: Any) -> None:
        """The same over a direct connection, which speaks of what was asked there alone."""
        if self._ways.get(request_id_of(detail, type)) is way:
            self._apply(self._caller.on(type, detail, time.monotonic()))

    def way_lost(self, way: Way, again: dict[str, Any] | None) -> None:
        """It has ended. What was asked there is asked again by way of the hub, with ``again`` and the requestId, for
        the time that is left; the spoke that was asked knows what it has done of it, and which items have come here.
        ``again`` is None when the hub does not know the word: it would ask anybody."""
        now = self._loop.time()
        asked, way.asked = way.asked, {}
        most = MOVED_BYTES // (max(way.largest, 1) * max(len(asked.keys() & self._streams.keys()), 1))
        for request_id, (detail, since) in asked.items():
            del self._ways[request_id]
            if request_id not in self._caller:
                continue
            stream, left = request_id in self._streams, detail.get("timeoutMs", inf) - (now - since) * 1000
            if again is None or left < 1 or (stream and not way.streams_again):
                self._apply(self._caller.fail(request_id, "the direct connection to the spoke that answers was lost"))
                continue
            self.again += 1
            detail = {**detail, "again": {**again, "requestId": request_id}}
            if left < inf:
                detail["timeoutMs"] = int(left)
            if stream:
                detail["credit"] = self._caller.moved(request_id, most)
            why = "there is no hub to ask again by way of"
            try:
                if self._send("call.requested", detail):
                    continue
            except EventTooLarge as error:  # with what was added
                why = str(error)
            self._apply(self._caller.fail(request_id, f"the direct connection was lost, and {why}"))

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
        way: Way | None = None,
    ) -> None:
        now = time.monotonic()
        detail = self._caller.start(
            request_id, operation, input, now, timeout, parent=parent, all=everyone, stream=stream, window=window
        )
        sent = False
        try:
            if way is not None and way.ask(detail):
                self._ways[request_id] = way
                way.asked[request_id] = (detail, self._loop.time())
                self.direct += 1
                sent = True
            else:
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

    def _leave(self, request_id: str) -> None:
        """A call that did not go to the hub has ended, or goes there now."""
        if (way := self._ways.pop(request_id, None)) is not None:
            way.asked.pop(request_id, None)

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
                    way = self._ways.get(effect.detail["requestId"])
                    (self._control if way is None else way.control)(effect.type, effect.detail)

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
        self._timer = self._loop.call_later(max(due - now, 0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._apply(self._caller.tick(now))
        self._arm(now)


def _answer(item: caller.Item) -> Answer:
    node_id, name = item.sender or ("", None)
    return Answer(node_id, name, item.output, call_error(*item.error) if item.error is not None else None)
