"""What every system is given to carry, and how it is counted: the same for ours and for its peers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

__all__ = ["QUIET_SECONDS", "STEP", "Counter", "call_value", "event_value", "measure_calls", "publish_all"]

WARM_CALLS = 200
YIELD_EVENTS = 64
STEP = 500
"""Deliveries that are counted in one go; the events of a run are a multiple of it."""
QUIET_SECONDS = 10.0

Call = Callable[[Any], Awaitable[Any]]


def call_value(size: int = 200) -> dict[str, str]:
    """JSON of ``size`` bytes."""
    return {"x": "x" * (size - len(orjson.dumps({"x": ""})))}


def event_value(number: int, size: int = 256) -> dict[str, Any]:
    """JSON of ``size`` bytes with a number in it."""
    return {"n": number, "x": "x" * (size - 13 - len(str(number)))}


async def measure_calls(call: Call, order: dict[str, Any]) -> dict[str, Any]:
    """``calls`` calls, ``inflight`` at a time. ``call`` returns the decoded answer."""
    value, seconds = call_value(), list[float]()
    clock = time.perf_counter

    async def caller(left: Any) -> None:
        for _ in left:
            began = clock()
            answer = await call(value)
            seconds.append(clock() - began)
            if answer != value:
                raise RuntimeError(f"a wrong answer: {answer!r}")

    async def all_of(count: int) -> float:
        left = iter(range(count))
        began = clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(order["inflight"]):
                group.create_task(caller(left))
        return clock() - began

    await all_of(WARM_CALLS)
    seconds.clear()
    total = await all_of(order["calls"])
    ordered = sorted(seconds)
    return {
        "per_second": order["calls"] / total,
        "p50_us": ordered[len(ordered) // 2] * 1e6,
        "p99_us": ordered[len(ordered) * 99 // 100] * 1e6,
    }


async def publish_all(
    publish: Callable[[dict[str, Any]], Awaitable[Any]], flush: Callable[[], Awaitable[Any]], order: dict[str, Any]
) -> dict[str, Any]:
    """``events`` events flat out, or ``burst`` of them every ``pause`` seconds."""
    began = time.perf_counter()
    burst, pause = order.get("burst", YIELD_EVENTS), order.get("pause", 0)
    for number in range(order["events"]):
        await publish(event_value(number, order["size"]))
        if number % burst == burst - 1:
            await asyncio.sleep(pause)
    await flush()
    return {"began": began, "ended": time.perf_counter()}


class Counter:
    """Counts what the subscribers of one process get. Each gets 0, 1, 2, ... in a run; anything else is a fault."""

    def __init__(self) -> None:
        self.faults = 0
        self._left = 0
        self._done = asyncio.Event()
        self._received = 0
        self.ended = 0.0

    def begin(self, deliveries: int) -> None:
        self._left, self._received, self.faults = deliveries, 0, 0
        self._done.clear()

    def got(self, count: int) -> None:
        self._left -= count
        self._received += count
        if self._left <= 0:
            self.ended = time.perf_counter()
            self._done.set()

    async def result(self) -> dict[str, Any]:
        """When all has come, or nothing more has for a while."""
        before = -1
        while not self._done.is_set() and before != self._received:
            before = self._received
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._done.wait()
            except TimeoutError:
                self.ended = time.perf_counter()
        return {"received": self._received, "missing": self._left, "faults": self.faults, "ended": self.ended}
