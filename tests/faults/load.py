"""A process of load: publishes as fast as it may, or subscribes many times over. ``python -m tests.faults.load``.

Its first line on stdin is its job, each later one an order; it answers each with one line of JSON. When stdin ends, so
does it. Not here: what is expected of a hub (test_memory_under_load.py).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson

from broker import Spoke, connect, run
from broker.border import attach
from broker.spoke import Subscription

SILENCE = 0.25
"""Seconds without an event, or without room for one, that are worth telling: a busy machine is late by less."""
SETTLE = 60.0
POLL = 0.05
PATIENCE = 60.0
"""Seconds for a connection on a busy machine."""


async def main() -> None:
    orders = await _lines()
    job = orjson.loads(await anext(orders))
    await (_publish if job["role"] == "publish" else _subscribe)(job, orders)


async def _lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return aiter(reader)


def _say(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


async def _publish(job: dict[str, Any], orders: AsyncIterator[bytes]) -> None:
    """Until the next order; then says how many there are, and when there was no room: (begin, end)."""
    async with connect(job["ticket"], name="publisher", timeout=PATIENCE) as spoke:
        _say("ready")
        stop = asyncio.ensure_future(anext(orders))
        waits: list[tuple[float, float]] = []
        detail, count = "x" * job["size"], 0
        while not stop.done():
            count += 1
            began = time.monotonic()
            await spoke.publish(job["topic"], detail)
            if (ended := time.monotonic()) - began > SILENCE:
                waits.append((began, ended))
            if count % 64 == 0:
                await asyncio.sleep(0)  # publish returns at once while there is room
        await spoke.flush(PATIENCE)
        _say({"published": count, "waits": waits})
        await anext(orders, None)


async def _subscribe(job: dict[str, Any], orders: AsyncIterator[bytes]) -> None:
    async with AsyncExitStack() as stack:
        heard = _Heard()
        readers = [await stack.enter_async_context(_Reader(job, heard)) for _ in range(job["count"])]
        _say("ready")
        async for line in orders:
            match order := orjson.loads(line):
                case {"published": int(published)}:
                    verdicts = [await reader.verdict(published) for reader in readers]
                    _say({"verdicts": verdicts, "silences": heard.silences})
                case "stop":
                    for reader in readers:
                        reader.stop_reading()
                    _say("stopped")
                case "go on":
                    for reader in readers:
                        reader.go_on()
                    _say("goes on")
                case _:
                    raise ValueError(f"no such order: {order}")


class _Heard:
    """When none of a process's readers got anything: (begin, end)."""

    def __init__(self) -> None:
        self.silences: list[tuple[float, float]] = []
        self._last = time.monotonic()

    def now(self) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before > SILENCE:
            self.silences.append((before, self._last))


class _Reader:
    """A spoke with one subscription, which it reads and counts."""

    def __init__(self, job: dict[str, Any], heard: _Heard) -> None:
        self._job, self._heard, self._stack = job, heard, AsyncExitStack()
        self._spoke: Spoke
        self._events: Subscription
        self._got = 0

    async def __aenter__(self) -> _Reader:
        name = self._job["name"]
        self._spoke = await self._stack.enter_async_context(connect(self._job["ticket"], name=name, timeout=PATIENCE))
        events = self._spoke.subscribe(self._job["topic"], patience=self._job["patience"])
        self._events = await self._stack.enter_async_context(events)
        await self._spoke.call("hub.topics", timeout=PATIENCE)  # the hub has heard of it
        reading = asyncio.create_task(self._read())
        self._stack.callback(reading.cancel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _read(self) -> None:
        async for batch in self._events.batches():
            self._got += len(batch)
            self._heard.now()

    def stop_reading(self) -> None:
        """Its connection stays alive, and nobody takes anything off it."""
        self._spoke._link._detach()

    def go_on(self) -> None:
        link = self._spoke._link
        assert link.endpoint is not None
        link._detach = attach(link.endpoint, link)

    async def verdict(self, published: int) -> dict[str, Any]:
        """When everything has come or is named lost, or it has been waited for long enough."""
        try:
            async with asyncio.timeout(SETTLE):
                while not self._settled(published):  # noqa: ASYNC110 - that something is lost is no event
                    await asyncio.sleep(POLL)
        except TimeoutError:
            pass  # what it has to say then is the finding
        lost = sum(b - a + 1 for one in self._events.verdicts for a, b in one.lost)
        merged = sum(one.merged for one in self._events.verdicts)
        return {
            "got": self._got,
            "lost": lost - merged,
            "verdict": self._events.verdict,
            "connects": self._spoke.counts()["connects"],
        }

    def _settled(self, published: int) -> bool:
        verdicts = self._events.verdicts
        known = sum(one.received + sum(b - a + 1 for a, b in one.lost) - one.merged for one in verdicts)
        open = any(one.missing for one in verdicts) or self._events.queued
        return known == published and not open and self._spoke.connected


if __name__ == "__main__":
    run(main())
