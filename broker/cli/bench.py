"""``broker bench``: load on a hub from this machine, and what it took. Not here: who answers and who
listens (bench_worker.py)."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from broker.cli.options import (
    Carrier,
    CarrierOption,
    Common,
    ConnectTimeout,
    Json,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    RelaysOption,
    TicketArgument,
    read_ticket,
)
from broker.cli.output import LineWriter
from broker.cli.running import run
from broker.errors import BrokerError, CallError, ConnectError, UsageError

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["bench", "percentiles"]

WORKER_READY_SECONDS = 60.0
QUIET_SECONDS = 10.0
"""Deliveries that have not come so long after the last one are counted as missing. The subscribers' patience too: what
is measured is how fast all of them get everything."""
OVERHEAD_BYTES = len(orjson.dumps({"n": 1_000_000, "t": time.monotonic_ns(), "x": ""}))


def bench(
    ticket: TicketArgument,
    calls: Annotated[int, typer.Option("--calls", metavar="N", min=0, help="0: no calls.")] = 10_000,
    inflight: Annotated[int, typer.Option("--inflight", metavar="N", min=1, max=1_024, help="Calls at a time.")] = 64,
    events: Annotated[int, typer.Option("--events", metavar="N", min=0, help="0: no events.")] = 20_000,
    subscribers: Annotated[int, typer.Option("--subscribers", metavar="N", min=1, max=5_000)] = 10,
    size: Annotated[
        int, typer.Option("--size", metavar="N", min=1, max=1_000_000, help="Bytes of an event's detail.")
    ] = 256,
    carrier: CarrierOption = "auto",
    native: Annotated[bool, typer.Option("--native", help="Subscribers count in Rust and decode nothing.")] = False,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=64, help="The subscribers are spread over so many.")
    ] = 1,
    json: Json = False,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Measures calls (to a spoke in a process of its own) and events through a hub: rates, percentiles, losses."""
    if carrier == "datagram":
        raise UsageError(
            "bench counts to the last event, and nobody acknowledges a datagram; auto, stream and gossip go"
        )
    common = Common.start(json, log_level, log_format, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca)
    load = _Load(read_ticket(ticket), calls, inflight, events, subscribers, size, carrier, native, processes)
    return run(load.run(common))


class _Load:
    """One run of a bench."""

    def __init__(
        self,
        ticket: str,
        calls: int,
        inflight: int,
        events: int,
        subscribers: int,
        size: int,
        carrier: Carrier,
        native: bool,
        processes: int,
    ) -> None:
        self._ticket, self._calls, self._inflight = ticket, calls, inflight
        self._events, self._subscribers, self._size, self._carrier = events, subscribers, size, carrier
        self._native, self._processes = native, min(processes, subscribers)
        self._token = secrets.token_hex(4)

    async def run(self, common: Common) -> int:
        writer = LineWriter()
        ca = str(common.relay_ca) if common.relay_ca else None
        self._hub = {"ticket": self._ticket, "relays": common.relays, "relay_ca": ca}
        result: dict[str, Any] = {"event": "bench"}
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.disable = common.json or not sys.stderr.isatty()
        async with common.connect(self._ticket, "broker bench") as spoke:
            with bar:
                if self._calls:
                    result["calls"] = await self._measure_calls(spoke, bar)
                if self._events:
                    result["events"] = await self._measure_events(spoke, bar)
        if common.plain(writer):
            await writer.json(result)
        else:
            await writer.text(_prose(result))
        return 0

    # Calls.

    async def _measure_calls(self, spoke: Spoke, bar: Progress) -> dict[str, Any]:
        operation = f"bench.echo.{self._token}"
        shown = bar.add_task("calls", total=self._calls)
        async with _workers([{"role": "answer", "operation": operation, **self._hub}]):
            seconds: list[float] = []
            failures: dict[str, int] = {}
            left = iter(range(self._calls))
            value = {"x": "x" * 150}  # with its envelope about the 200 B that figures.md compares at

            async def caller() -> None:
                for _ in left:
                    began = time.perf_counter()
                    try:
                        await spoke.call(operation, value)
                    except CallError as error:
                        failures[error.code] = failures.get(error.code, 0) + 1
                    else:
                        seconds.append(time.perf_counter() - began)
                    bar.advance(shown)

            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(self._inflight):
                    group.create_task(caller())
            total = time.perf_counter() - began
        return {
            "calls": self._calls,
            "inflight": self._inflight,
            "seconds": round(total, 4),
            "per_second": round(self._calls / total),
            "failed": failures,
            **percentiles(seconds, "us", 1e6),
        }

    # Events.

    async def _measure_events(self, spoke: Spoke, bar: Progress) -> dict[str, Any]:
        topic = f"bench.{self._token}"
        shares = [
            self._subscribers // self._processes + (n < self._subscribers % self._processes)
            for n in range(self._processes)
        ]
        jobs = [
            {
                "role": "subscribe",
                **self._hub,
                "topic": topic,
                "subscribers": share,
                "events": self._events,
                "native": self._native,
                "carrier": self._carrier,
                "quiet": QUIET_SECONDS,
            }
            for share in shares
        ]
        shown = bar.add_task("events", total=self._events)
        async with _workers(jobs) as workers:
            began = time.perf_counter()
            await self._publish(spoke, topic, bar, shown)
            published = time.perf_counter() - began
            await spoke.flush(WORKER_READY_SECONDS)
            carrier = spoke.carrier(topic)
            reports = [await worker.result() for worker in workers]
        return self._summary(reports, began, published, carrier)

    async def _publish(self, spoke: Spoke, topic: str, bar: Progress, shown: Any) -> None:
        filler = "x" * max(0, self._size - OVERHEAD_BYTES)
        for number in range(self._events):
            detail = {"n": number, "t": time.monotonic_ns(), "x": filler}
            await spoke.publish(topic, detail, carrier=self._carrier)
            if number % 256 == 255:
                bar.advance(shown, 256)
                await asyncio.sleep(0)

    def _summary(
        self, reports: Sequence[dict[str, Any]], began: float, published: float, carrier: str
    ) -> dict[str, Any]:
        # perf_counter is CLOCK_MONOTONIC on Linux, one clock for all processes of a machine.
        seconds = max(max(report["ended"] for report in reports) - began, published)
        deliveries = sum(report["received"] for report in reports)
        latencies = [one for report in reports for one in report["latencies"]]
        return {
            "events": self._events,
            "subscribers": self._subscribers,
            "size": self._size,
            "carrier": carrier,
            "native": self._native,
            "processes": self._processes,
            "seconds": round(seconds, 4),
            "published_per_second": round(self._events / published),
            "deliveries": deliveries,
            "deliveries_per_second": round(deliveries / seconds),
            "missing": self._events * self._subscribers - deliveries,
            "verdicts": sorted({word for report in reports for word in report["verdicts"]}),
            **percentiles(latencies, "ms", 1e3),
        }


def percentiles(seconds: Sequence[float], unit: str, factor: float) -> dict[str, float | None]:
    """p50, p90, p99 and the most of a sample, in a unit."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    picks = {f"p{p}_{unit}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
    picks[f"max_{unit}"] = ordered[-1]
    return {name: round(value * factor, 3) for name, value in picks.items()}


def _prose(result: dict[str, Any]) -> str:
    lines = []
    if (calls := result.get("calls")) is not None:
        lines.append(
            f"[bold]calls[/]   {calls['per_second']:,}/s with {calls['inflight']} in flight; "
            f"p50 {calls.get('p50_us', 0):,.0f} us, p99 {calls.get('p99_us', 0):,.0f} us; "
            f"failed: {calls['failed'] or 'none'}"
        )
    if (events := result.get("events")) is not None:
        lines.append(
            f"[bold]events[/]  {events['deliveries_per_second']:,} deliveries/s to {events['subscribers']} subscribers "
            f"({events['published_per_second']:,} published/s of {events['size']} B); "
            f"missing: {events['missing'] or 'none'}"
        )
        if "p50_ms" in events:
            lines.append(
                f"        from publish to reader p50 {events['p50_ms']} ms, p99 {events['p99_ms']} ms (under this load)"
            )
    return "\n".join(lines)


class _Worker:
    """A process of bench_worker: a job in, two lines out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise ConnectError(f"a bench process ended early, with status {await self._process.wait()}")
        value: dict[str, Any] = orjson.loads(line)
        if "error" in value:
            raise BrokerError(f"a bench process failed: {value['error']}")
        return value

    async def ready(self) -> None:
        async with asyncio.timeout(WORKER_READY_SECONDS):
            await self._line()

    async def result(self) -> dict[str, Any]:
        return await self._line()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()


@asynccontextmanager
async def _workers(jobs: Sequence[dict[str, Any]]) -> AsyncIterator[list[_Worker]]:
    """One process a job; inside, all are ready."""
    workers: list[_Worker] = []
    try:
        for job in jobs:
            worker = _Worker(await _start(job))
            workers.append(worker)  # one by one: what has started is ended, whatever becomes of the next
        for worker in workers:
            await worker.ready()
        yield workers
    finally:
        for worker in workers:
            await worker.end()


async def _start(job: dict[str, Any]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker.cli.bench_worker"), stdin=pipe, stdout=pipe, limit=64 << 20
    )
    assert process.stdin is not None
    # The ticket may hold a secret, so it is not an argument that `ps` shows.
    process.stdin.write(orjson.dumps(job) + b"\n")
    await process.stdin.drain()
    return process
