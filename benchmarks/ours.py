"""The participants that are ours. One code for both loop modes: which one it is, the worker's loop decides."""

from __future__ import annotations

import asyncio
import cProfile
import time
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.load import QUIET_SECONDS, STEP, Counter, measure_calls, publish_all
from benchmarks.processes import WorkerIO
from broker import Hub, HubConfig, Spoke, connect
from broker import _gossip_ext as ext
from broker.border import attach
from broker.config import TopicsConfig
from broker.hub.exposition import encode as encode_metrics
from broker.hub.metrics import HubMetrics
from broker.protocol.codec import decode, encode
from broker.protocol.ticket import Ticket

CONNECTING = asyncio.Semaphore(16)
"""Handshakes at a time: what is measured comes after them."""
CONNECT_SECONDS = 60.0


async def hub(job: dict[str, Any], io: WorkerIO) -> None:
    """``http`` is off unless asked for: a scrape in the middle of a figure would be in it. Topics stay on streams,
    which is what is measured: left to itself (``auto``) the hub moves a topic of this rate to gossip."""
    async with Hub(HubConfig(open=True, http=job.get("http", ""), topics=TopicsConfig(carrier="stream"))) as hub:
        profile: cProfile.Profile | None = None

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            nonlocal profile
            match order["do"]:
                case "profile":
                    profile = cProfile.Profile()
                    profile.enable()
                    return {}
                case "profiled":
                    assert profile is not None
                    profile.disable()
                    if path := order.get("dump"):
                        profile.dump_stats(path)
                    return _calls_of(profile)
                case "fill":
                    _use_all_labels(hub.router.metrics)
                    return {}
                case "encode":
                    return {"seconds": [_encoded(hub.router.metrics) for _ in range(order["times"])]}
                case _:
                    sessions = hub.router.sessions.values()
                    return {"connected": len(sessions), "slow": sum(session.slow for session in sessions)}

        await io.serve(do, ticket=hub.ticket, http=hub.http_address)


def _use_all_labels(metrics: HubMetrics) -> None:
    for number in range(1_000):
        for carrier in ("stream", "gossip"):
            metrics.topic(f"invented.topic.{number}", carrier).published += number
        for code in ("OK", "TIMEOUT", "EXECUTION_ERROR"):
            metrics.call_ended(f"invented.operation.{number}", code, number / 1e4, f"{number:032x}-1")


def _encoded(metrics: HubMetrics) -> float:
    began = time.perf_counter()
    encode_metrics(metrics.registry, openmetrics=True)
    return time.perf_counter() - began


def _calls_of(profile: cProfile.Profile) -> dict[str, Any]:
    """How many functions of Python ran, and the seconds in Group.send (the only call that knows the subscribers)."""
    functions, sending, batches = 0, 0.0, 0
    for entry in profile.getstats():
        if isinstance(entry.code, str):
            if "Group" in entry.code and "send" in entry.code:
                sending += entry.inlinetime
                batches += entry.callcount
        else:
            functions += entry.callcount
    return {"functions": functions, "group_send_seconds": sending, "batches": batches}


async def answer(job: dict[str, Any], io: WorkerIO) -> None:
    async with AsyncExitStack() as stack:
        spoke = Spoke("bench answers")

        async def echo(value: Any, call: Any) -> Any:
            return value

        spoke.offer("bench.echo", echo, kind="query")
        spoke.start(job["ticket"])
        stack.push_async_callback(spoke.close)
        await spoke.wait_connected(CONNECT_SECONDS)
        await io.serve(_nothing)


async def call(job: dict[str, Any], io: WorkerIO) -> None:
    """``direct`` in an order: over a connection with the spoke that answers, or not."""
    async with connect(job["ticket"], name="bench calls", timeout=CONNECT_SECONDS) as spoke:

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            if order.get("direct") and not spoke.neighbours():
                await spoke.direct("bench answers", timeout=CONNECT_SECONDS)
            elif not order.get("direct"):
                spoke.part("bench answers")
            before = spoke.direct_counts()["asked"]
            result = await measure_calls(lambda value: spoke.call("bench.echo", value), order)
            return {**result, "directly": spoke.direct_counts()["asked"] - before}

        await io.serve(do)


async def publish(job: dict[str, Any], io: WorkerIO) -> None:
    async with connect(job["ticket"], name="bench publishes", timeout=CONNECT_SECONDS) as spoke:

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            return await publish_all(lambda value: spoke.publish("bench.events", value), lambda: spoke.flush(60), order)

        await io.serve(do)


async def _spoke(job: dict[str, Any], stack: AsyncExitStack, name: str) -> Spoke:
    async with CONNECTING:
        return await stack.enter_async_context(connect(job["ticket"], name=name, timeout=CONNECT_SECONDS))


async def subscribe(job: dict[str, Any], io: WorkerIO) -> None:
    """``subscribers`` spokes with an endpoint each; every event is decoded and handed to an ``async for``."""
    counter = Counter()
    async with AsyncExitStack() as stack:
        spokes = await asyncio.gather(*(_spoke(job, stack, f"bench {n}") for n in range(job["subscribers"])))
        subscriptions = [await stack.enter_async_context(spoke.subscribe("bench.events")) for spoke in spokes]
        for spoke in spokes:  # answered after the hub has seen the subscription
            await spoke.call("hub.topics", timeout=CONNECT_SECONDS)

        async def read(subscription: Any, events: int) -> None:
            expected = 0
            async for event in subscription:
                if event.detail["n"] != expected:
                    counter.faults += 1
                expected += 1
                if expected % STEP == 0:
                    counter.got(STEP)
                    expected %= events

        events = job["events"]
        readers = [asyncio.create_task(read(one, events)) for one in subscriptions]

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            if order["do"] == "begin":
                counter.begin(events * len(spokes))
                return {}
            result = await counter.result()
            words = {one.verdict for one in subscriptions}
            doubled = sum(verdict.duplicates for one in subscriptions for verdict in one.verdicts)
            return {**result, "verdicts": sorted(words), "doubled": doubled}

        await io.serve(do)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def idle(job: dict[str, Any], io: WorkerIO) -> None:
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(_spoke(job, stack, f"idle {n}") for n in range(job["subscribers"])))
        await io.serve(_nothing)


async def native(job: dict[str, Any], io: WorkerIO) -> None:
    """Subscribers whose frames the extension counts: they measure the hub and no reader."""
    async with AsyncExitStack() as stack:
        readers = await asyncio.gather(*(_native(job["ticket"], stack) for _ in range(job["subscribers"])))
        expected = job["events"]
        before = [0] * len(readers)

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            if order["do"] == "begin":
                before[:] = [reader.frames_counted() for reader in readers]
                return {}
            counts, last, ended = [0] * len(readers), -1, time.perf_counter()
            while min(counts) < expected and time.perf_counter() - ended < QUIET_SECONDS:
                await asyncio.sleep(0.002)
                counts = [
                    expected if reader.ended else reader.frames_counted() - was
                    for reader, was in zip(readers, before, strict=True)
                ]
                if (total := sum(counts)) != last:
                    last, ended = total, time.perf_counter()
            # These readers do not come back as a Spoke does: one whose connection ended is told apart from a loss.
            alive = [max(0, count) for count, reader in zip(counts, readers, strict=True) if not reader.ended]
            return {
                "received": sum(alive),
                "missing": sum(max(0, expected - count) for count in alive),
                "doubled": sum(max(0, count - expected) for count in alive),
                "faults": 0,
                "ended": ended,
                "disconnected": [reader.ended for reader in readers if reader.ended],
            }

        await io.serve(do)


async def _native(ticket: str, stack: AsyncExitStack) -> _Native:
    parsed = Ticket.decode(ticket)
    async with CONNECTING:
        endpoint = ext.Endpoint.bind(ext.generate_secret())
        stack.callback(endpoint.close, 0.0)
        reader = _Native(endpoint)
        stack.callback(attach(endpoint, reader))
        endpoint.dial(1, parsed.node_id, list(parsed.addrs), timeout=CONNECT_SECONDS)
        async with asyncio.timeout(CONNECT_SECONDS):
            await reader.subscribed
    endpoint.count_only(reader.conn)
    return reader


class _Native:
    """The handler of an endpoint with one connection (broker.border.Handler)."""

    def __init__(self, endpoint: ext.Endpoint) -> None:
        self._endpoint = endpoint
        self.conn = 0
        self.ended = ""
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        self.conn = conn
        hello = [
            encode("hub.register", {"operations": [], "protocol": 1, "name": "bench counts", "capabilities": []}),
            encode("__subscribe", {"topics": ["bench.events"]}),
            encode("call.requested", {"requestId": "ready", "operationId": "hub.topics", "input": None}),
        ]
        self._endpoint.send(conn, hello)

    def frames(self, conn: int, frames: list[bytes]) -> None:
        for frame in frames:
            if decode(frame).type == "call.responded" and not self.subscribed.done():
                self.subscribed.set_result(None)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self.ended = f"{code}: {reason}"
        self._fail(f"closed: {reason}")

    def drained(self, conn: int) -> None:
        """Nothing waits to be sent."""

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self._fail(message)

    def datagram(self, conn: int, payload: bytes) -> None:
        """None are expected."""

    def batch_done(self, size: int) -> None:
        """Nothing is gathered."""

    def _fail(self, reason: str) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(RuntimeError(reason))

    def frames_counted(self) -> int:
        stats = self._endpoint.stats(self.conn)
        return stats.frames_received if stats is not None else 0


async def _nothing(order: dict[str, Any]) -> dict[str, Any]:
    return {}
