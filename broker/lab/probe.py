"""What a caller sees of its way to the hub: when the first answer came, which path it is on, what became of its calls.

An app to be called is here too: ``broker serve TICKET broker.lab.probe:app``. Not here: networks (internet.py), and
what is made of it (nat.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from broker.errors import CallError, ConnectionLost
from broker.spoke.spoke import Spoke

__all__ = ["OPERATION", "Probe", "app"]

OPERATION: Final = "lab.echo"
LOOK: Final = 0.002
"""Seconds between looks at the path: direct ones are there after milliseconds."""
MOST: Final = 4_096
"""Calls that may be under way. What a rate asks beyond it is left out, and counted."""
CALL_TIMEOUT: Final = 30.0

app = Spoke("echo")


@app.operation(OPERATION, kind="query")
async def _echo(n: int) -> int:
    """What it was given."""
    return n


class Probe:
    """Measures over one spoke, from its start on. ``say`` gets a row for each thing that happens."""

    def __init__(self, spoke: Spoke, say: Callable[[dict[str, Any]], None]) -> None:
        self._spoke, self._say = spoke, say
        self._began = time.monotonic()
        self._path = "none"
        self._direct = asyncio.Event()
        self._seconds: list[float] = []
        self._failed: Counter[str] = Counter()
        self._left_out = 0

    @asynccontextmanager
    async def at(self, ticket: str, timeout: float) -> AsyncIterator[None]:
        """Connected, and answered once; the path is watched inside. Raises as `Spoke.wait_connected`."""
        self._began = time.monotonic()
        self._spoke.start(ticket)
        watching = asyncio.create_task(self._watch())
        try:
            await self._spoke.wait_connected(timeout)
            await self._spoke.call("hub.topics", timeout=timeout)
            self._say({"event": "answer", "ms": self._now_ms()})
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def wait_direct(self, timeout: float) -> None:
        """Until the path is direct, or for so long."""
        try:
            await asyncio.wait_for(self._direct.wait(), timeout)
        except TimeoutError:
            return

    async def flat_out(self, seconds: float, inflight: int) -> None:
        """Calls, so many at a time."""
        began = time.monotonic()

        async def caller() -> None:
            while time.monotonic() < began + seconds:
                await self._call()

        async with asyncio.TaskGroup() as group:
            for _ in range(inflight):
                group.create_task(caller())
        self._report(time.monotonic() - began)

    async def steadily(self, rate: float, stop: asyncio.Event) -> None:
        """So many calls a second, whatever becomes of them, until ``stop``; then all of them end."""
        loop, calls = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        began = turn = loop.time()
        while not stop.is_set():
            if len(calls) < MOST:
                task = asyncio.create_task(self._call())
                calls.add(task)
                task.add_done_callback(calls.discard)
            else:
                self._left_out += 1
            turn += 1 / rate
            await asyncio.sleep(turn - loop.time())
        await asyncio.gather(*calls)
        self._report(loop.time() - began)

    async def _call(self) -> None:
        began = time.monotonic()
        try:
            await self._spoke.call(OPERATION, {"n": 1}, timeout=CALL_TIMEOUT)
        except CallError as error:
            self._fail(error.code, str(error), began)
        except ConnectionLost as error:
            self._fail("ConnectionLost", str(error), began)
        else:
            self._seconds.append(time.monotonic() - began)

    def _fail(self, code: str, message: str, began: float) -> None:
        self._failed[code] += 1
        if self._failed[code] == 1:
            lasted = round(1000 * (time.monotonic() - began), 1)
            row = {"event": "failed", "code": code, "message": message, "ms": self._now_ms(), "lasted_ms": lasted}
            self._say(row)

    def _report(self, seconds: float) -> None:
        done = sorted(self._seconds)
        self._say(
            {
                "event": "calls",
                "path": self._path,
                "calls": len(done),
                "failed": dict(self._failed),
                "left_out": self._left_out,
                "calls_per_s": round(len(done) / seconds, 1),
                "p50_ms": round(1000 * done[len(done) // 2], 3) if done else None,
                "max_ms": round(1000 * done[-1], 3) if done else None,
                "connects": self._spoke.counts()["connects"],
            }
        )

    async def _watch(self) -> None:
        while True:
            path = self._look()
            if path != self._path:
                self._path = path
                self._say({"event": "path", "path": path, "ms": self._now_ms()})
                if path == "direct":
                    self._direct.set()
            await asyncio.sleep(LOOK)

    def _look(self) -> str:
        endpoint = self._spoke.endpoint
        paths = endpoint.overview(()).paths if endpoint is not None else []
        return paths[0][1] if paths else "none"

    def _now_ms(self) -> float:
        return round(1000 * (time.monotonic() - self._began), 1)
