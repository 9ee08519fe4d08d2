"""A process of ``broker bench``: answers calls, or subscribes many times. Its job is one line of JSON on stdin; it
writes one line when it is ready and one with what it saw. When stdin ends, so does it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson

from broker.cli.output import dumps, read_chunks, start_logging
from broker.errors import BrokerError

if TYPE_CHECKING:
    from broker.spoke.options import SpokeOptions
    from broker.spoke.subscription import Subscription

__all__: list[str] = []

SAMPLE = 16
"""Every so many-th event's latency is kept."""
POLL_SECONDS = 0.005
OPENING_AT_A_TIME = 50


async def main() -> None:
    """Reads the job and does it."""
    chunks = read_chunks(0)
    job = orjson.loads((await anext(chunks)).partition(b"\n")[0])
    work = asyncio.create_task(_answer(job) if job["role"] == "answer" else _subscribe(job))
    ended = asyncio.create_task(_drained(chunks))
    await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    work.cancel()
    ended.cancel()


async def _drained(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


def _say(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(dumps(value))
    sys.stdout.buffer.flush()


def _options(job: dict[str, Any]) -> SpokeOptions:
    from broker.spoke.options import SpokeOptions

    counts = job.get("native", False)
    return SpokeOptions(relays=tuple(job["relays"]), relay_ca=job["relay_ca"], counts_gossip=counts)


async def _answer(job: dict[str, Any]) -> None:
    from broker import Spoke

    spoke = Spoke("bench answers", options=_options(job))

    async def echo(input: Any, _call: Any) -> Any:
        return input

    spoke.offer(job["operation"], echo, kind="query", description="answers with its input")
    serving = asyncio.create_task(spoke.run(job["ticket"]))
    await spoke.wait_connected(10.0)
    _say({"ready": True})
    await serving


async def _subscribe(job: dict[str, Any]) -> None:
    open_one = _native if job["native"] and job["carrier"] != "gossip" else _spoke
    async with AsyncExitStack() as stack:
        gate = asyncio.Semaphore(OPENING_AT_A_TIME)

        async def opened() -> Any:
            async with gate:
                return await stack.enter_async_context(open_one(job))

        readers = await asyncio.gather(*(opened() for _ in range(job["subscribers"])))
        _say({"ready": True})
        async with asyncio.TaskGroup() as group:
            counting = [group.create_task(reader.count()) for reader in readers]
        reports = [task.result() for task in counting]
    _say(
        {
            "received": sum(report["received"] for report in reports),
            "ended": max(report["ended"] for report in reports),
            "latencies": [one for report in reports for one in report["latencies"]],
            "verdicts": sorted({report["verdict"] for report in reports if report["verdict"]}),
        }
    )


class _Reader:
    """A subscription whose events are decoded, as a program would; or, of a spoke that counts, are not."""

    def __init__(self, events: Subscription, job: dict[str, Any]) -> None:
        self._events, self._expected, self._quiet = events, job["events"], job["quiet"]
        self._native = job["native"]

    async def count(self) -> dict[str, Any]:
        received, ended = 0, time.perf_counter()
        latencies: list[float] = []
        batches = aiter(self._events.runs() if self._native else self._events.batches())
        while received < self._expected:
            try:
                # Before the first event the publisher may still be waiting for other processes.
                batch = await asyncio.wait_for(anext(batches), self._quiet * (1 if received else 10))
            except (TimeoutError, StopAsyncIteration):
                break
            ended, now = time.perf_counter(), time.monotonic_ns()
            read = () if self._native else batch
            latencies += [(now - event.detail["t"]) / 1e9 for event in read if event.detail["n"] % SAMPLE == 0]
            received += len(batch)
        return {"received": received, "ended": ended, "latencies": latencies, "verdict": self._events.verdict}


@asynccontextmanager
async def _spoke(job: dict[str, Any]) -> AsyncIterator[_Reader]:
    from broker import connect

    async with (
        connect(job["ticket"], name="bench subscribes", options=_options(job)) as spoke,
        spoke.subscribe(job["topic"], patience=job["quiet"], carrier=job["carrier"]) as events,
    ):
        await spoke.call("hub.topics")  # calls are answered in order after it: the hub has the subscription
        yield _Reader(events, job)


@asynccontextmanager
async def _native(job: dict[str, Any]) -> AsyncIterator[Any]:
    from broker.cli.bench_native import native_reader

    async with native_reader(job["ticket"], _options(job), job["topic"], job["events"], job["quiet"]) as reader:
        yield reader


if __name__ == "__main__":
    from broker.loop import run

    start_logging("warning", "text")
    try:
        run(main())
    except BrokerError as error:
        _say({"error": str(error)})
