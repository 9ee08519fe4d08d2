"""Publish and subscribe on any event target, and three operators on what comes out.

A subscription is an async iterator with a bounded queue. Stopping it (``aclose``, leaving ``async with``, or dropping
the last reference to it, as ``break`` in ``async for x in pubsub.subscribe(...)`` does) takes its listener away; a
remote target says ``__subscribe`` for the first listener of a topic and ``__unsubscribe`` after the last one, whoever
they are. A reader that does not keep up reads what was queued and then gets SlowConsumer; one whose target failed gets
that error. Not here: order, repair and resumption across reconnects, which are the spoke's subscriptions
(broker/spoke/).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from broker.errors import BrokerError, SlowConsumer
from broker.targets.event_target import CLOSE, Event, EventTarget

__all__ = ["SUBSCRIPTION_EVENTS", "PubSub", "Stream", "Subscription", "create_pubsub", "filter", "map", "pipe"]

SUBSCRIPTION_EVENTS = 1_024
"""Default bound of a subscription's queue: unread events, one queue a subscription. graphql-yoga's Repeater has the
same number, and drops beyond it without a word."""

T = TypeVar("T")
U = TypeVar("U")


class Stream(AsyncIterator[T]):
    """An async iterator that can be stopped. It has one reader."""

    async def aclose(self) -> None:
        """Stops it; reading on ends at once. A second call does nothing."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Queue(Generic[T]):
    """What a subscription's listener fills. Apart from the subscription, so that the target does not keep that
    alive."""

    __slots__ = ("_limit", "_pick", "error", "items", "over", "stop", "waiter")

    def __init__(self, pick: Callable[[Event], T], limit: int) -> None:
        self.items: deque[T] = deque()
        self.over = False
        self.error: BrokerError | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.stop: Callable[[], None] = _nothing
        self._pick, self._limit = pick, limit

    def event(self, event: Event) -> None:
        if len(self.items) < self._limit:
            self.items.append(self._pick(event))
            self.wake()
            return
        self.finish(
            SlowConsumer(
                f"the reader of {event.type} fell {self._limit} events behind and its subscription was ended; "
                "read faster, or subscribe with a larger limit",
                pending=len(self.items) + 1,
            )
        )

    def target_closed(self, event: Event) -> None:
        self.finish(event.detail.error)

    def finish(self, error: BrokerError | None) -> None:
        if not self.over:
            self.over, self.error = True, error
            self.stop()
            self.stop = _nothing  # it knows this queue: a circle
            self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


def _nothing() -> None:
    """There is no listener to take away, or no more."""


class Subscription(Stream[T]):
    """What ``subscribe`` returns. It listens from then on, before the first read."""

    def __init__(self, target: EventTarget, type: str, pick: Callable[[Event], T], limit: int) -> None:
        if limit < 1:
            raise ValueError("limit: a subscription holds at least one event")
        queue = self._queue = _Queue(pick, limit)
        on_event, on_close = queue.event, queue.target_closed
        target.add_event_listener(type, on_event)
        target.add_event_listener(CLOSE, on_close)

        def stop() -> None:
            target.remove_event_listener(type, on_event)
            target.remove_event_listener(CLOSE, on_close)

        queue.stop = stop
        if queue.over:  # the target was closed already
            stop()
        weakref.finalize(self, _run_in, asyncio.get_running_loop(), threading.get_ident(), stop).atexit = False

    @property
    def queued(self) -> int:
        """Events that came and were not read."""
        return len(self._queue.items)

    async def __anext__(self) -> T:
        queue = self._queue
        while not queue.items:
            if queue.over:
                error, queue.error = queue.error, None
                raise error or StopAsyncIteration
            if queue.waiter is not None:
                raise RuntimeError("one subscription has one reader; subscribe twice for two")
            queue.waiter = asyncio.get_running_loop().create_future()
            try:
                await queue.waiter
            finally:
                queue.waiter = None
        return queue.items.popleft()

    async def aclose(self) -> None:
        self._queue.items.clear()
        self._queue.finish(None)
        self._queue.error = None


def _run_in(loop: asyncio.AbstractEventLoop, thread: int, stop: Callable[[], None]) -> None:
    """A finalizer may run on any thread; listeners are the loop's."""
    if threading.get_ident() == thread:
        stop()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(stop)


class PubSub:
    """Publish and subscribe on one target."""

    def __init__(self, event_target: EventTarget) -> None:
        self.event_target = event_target

    def publish(self, type: str, detail: Any = None, *, reliable: bool = True) -> bool:
        """False: the path is full and the event was not taken; the target's ``DRAIN`` says when to try again."""
        return self.event_target.dispatch_event(Event(type, detail), reliable=reliable)

    def subscribe(self, type: str, *, limit: int = SUBSCRIPTION_EVENTS) -> Subscription[Any]:
        """The details of the events of a topic or pattern."""
        return Subscription(self.event_target, type, lambda event: event.detail, limit)

    def events(self, type: str, *, limit: int = SUBSCRIPTION_EVENTS) -> Subscription[Event]:
        """The same, as whole events: a pattern's reader wants the topic too."""
        return Subscription(self.event_target, type, lambda event: event, limit)


def create_pubsub(event_target: EventTarget) -> PubSub:
    """Any target will do; several on one target share its subscriptions."""
    return PubSub(event_target)


class _Operated(Stream[U], Generic[T, U]):
    """A stream made of another. ``step`` gives a result and whether it counts. No generator: one that is dropped is
    closed a loop turn later, and so would its source be."""

    def __init__(self, source: AsyncIterable[T], step: Callable[[T], Awaitable[tuple[bool, U]]]) -> None:
        self._source, self._step = source.__aiter__(), step
        self._stopped = False

    async def __anext__(self) -> U:
        while not self._stopped:
            counts, result = await self._step(await self._source.__anext__())
            if counts:
                return result
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._stopped = True
        close: Callable[[], Awaitable[None]] | None = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


def filter(predicate: Callable[[T], bool | Awaitable[bool]]) -> Callable[[AsyncIterable[T]], Stream[T]]:
    """An operator that lets through what ``predicate`` (plain or async) says yes to."""

    async def step(value: T) -> tuple[bool, T]:
        return await _value(predicate(value)), value

    return lambda source: _Operated(source, step)


def map(function: Callable[[T], U | Awaitable[U]]) -> Callable[[AsyncIterable[T]], Stream[U]]:
    """An operator that puts ``function`` (plain or async) of each value in its place."""

    async def step(value: T) -> tuple[bool, U]:
        return True, await _value(function(value))

    return lambda source: _Operated(source, step)


async def _value(result: U | Awaitable[U]) -> U:
    return await result if inspect.isawaitable(result) else result


def pipe(source: AsyncIterable[Any], *operators: Callable[[AsyncIterable[Any]], Stream[Any]]) -> Stream[Any]:
    """``source`` through the operators from left to right; stopping the result stops the source. Untyped on purpose:
    the typed form costs upstream 288 lines of overloads."""
    stream: AsyncIterable[Any] = source
    for operator in operators:
        stream = operator(stream)
    return stream if isinstance(stream, Stream) else _Operated(stream, _same)


async def _same(value: Any) -> tuple[bool, Any]:
    return True, value
