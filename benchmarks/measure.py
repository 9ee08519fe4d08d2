"""The measurements. Systems are started side by side and take turns (A B C A B C ...), so that whatever else the
machine does falls on all alike; a figure is the median of its turns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.load import STEP
from benchmarks.processes import Cpu, Worker
from benchmarks.scrape import scrapes
from benchmarks.servers import OURS, Server, start_server

__all__ = ["Bench"]

SETTLE_SECONDS = 1.0
EVENT_BYTES = 256


class Bench:
    """One run: the certificates, the log, and who hears of each figure."""

    def __init__(
        self, files: dict[str, str], directory: Path, rounds: int, scale: float, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self._files, self._directory, self._rounds, self._scale = files, directory, rounds, scale
        self._tell = tell
        self._log = directory / "log"

    async def _server(self, system: str, stack: AsyncExitStack) -> Server:
        return await start_server(system, self._files, self._directory, stack)

    async def _worker(self, system: str, role: str, server: Server, stack: AsyncExitStack, **job: Any) -> Worker:
        worker = await Worker.of({"system": system, "role": role, **server.reach, **job}, self._log)
        stack.push_async_callback(worker.end)
        return worker

    # Calls.

    async def calls(self, systems: Sequence[str], inflight: int, calls: int) -> None:
        """spoke -> broker -> spoke -> broker -> spoke, JSON decoded and encoded at both ends."""
        async with AsyncExitStack() as stack:
            callers: dict[str, tuple[Worker, Server]] = {}
            for system in systems:
                server = await self._server(system, stack)
                await self._worker(system, "answer", server, stack)
                callers[system] = (await self._worker(system, "call", server, stack), server)
            await asyncio.sleep(SETTLE_SECONDS)
            order = {"calls": max(200, int(calls * self._scale)), "inflight": inflight}
            turns: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
            for _ in range(self._rounds):
                for system, (caller, server) in callers.items():
                    cpu = Cpu(server.process.pid)
                    result = await caller.ask(order)
                    turns[system].append({**result, "server_cpu_us": cpu.since()["all"] / order["calls"] * 1e6})
        for system, results in turns.items():
            self._figure("calls", system, results, ("p50_us", "p99_us", "per_second", "server_cpu_us"), **order)

    async def direct(self, system: str, calls: int) -> None:
        """The same call, one at a time, directly from spoke to spoke and by way of the hub."""
        async with AsyncExitStack() as stack:
            server = await self._server(system, stack)
            await self._worker(system, "answer", server, stack)
            caller = await self._worker(system, "call", server, stack)
            await asyncio.sleep(SETTLE_SECONDS)
            order = {"calls": max(200, int(calls * self._scale)), "inflight": 1}
            turns: dict[str, list[dict[str, Any]]] = {"direct": [], "hub": []}
            for _ in range(self._rounds):
                for path, results in turns.items():
                    result = await caller.ask({**order, "direct": path == "direct"})
                    if (result["directly"] > 0) != (path == "direct"):
                        raise RuntimeError(f"{result['directly']} calls of a turn by {path} went directly")
                    results.append(result)
        for path, results in turns.items():
            self._figure("direct", system, results, ("p50_us", "p99_us", "per_second"), path=path, **order)

    # Fan-out.

    async def fanout(
        self, systems: Sequence[str], subscribers: int, events: int, *, native: bool = False, processes: int = 1
    ) -> None:
        """One publisher flat out; deliveries a second from its first event to the last delivery."""
        events = max(1, round(events * self._scale / STEP)) * STEP
        async with AsyncExitStack() as stack:
            parts = {}
            for system in systems:
                server = await self._server(system, stack)
                shares = [subscribers // processes + (n < subscribers % processes) for n in range(processes)]
                role = "native" if native else "subscribe"
                readers = [
                    await self._worker(system, role, server, stack, subscribers=share, events=events)
                    for share in shares
                ]
                publisher = server.worker if system == "bare" else await self._worker(system, "publish", server, stack)
                parts[system] = (server, publisher, readers)
            await asyncio.sleep(SETTLE_SECONDS)
            turns: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
            for _ in range(self._rounds):
                for system, (server, publisher, readers) in parts.items():
                    turns[system].append(await _fan_out(server, publisher, readers, events))
        for system, results in turns.items():
            self._figure(
                "fanout-native" if native else "fanout",
                system,
                results,
                ("per_second", "server_cpu_us_per_delivery"),
                subscribers=subscribers,
                processes=processes,
                events=events,
            )

    # The hub's cost.

    async def event_cost(self, system: str, subscribers: Sequence[int], events: int, burst: int, pause: float) -> None:
        """What one published event costs the hub. Subscribers are native, the publisher is paced.

        The thread that runs Python is looked at apart (mode ``threaded``: the network has a thread of its own), and in
        passes of their own Python's functions are counted. Some run once an event, others once a batch; a busy hub
        sees a burst of the publisher in several batches, so a count means nothing without ``events_per_batch``."""
        for count in subscribers:
            async with AsyncExitStack() as stack:
                server = await self._server(system, stack)
                shares = [count // 4 + (n < count % 4) for n in range(4)] if count > 100 else [count]
                readers = [
                    await self._worker(system, "native", server, stack, subscribers=n, events=events) for n in shares
                ]
                publisher = await self._worker(system, "publish", server, stack)
                await asyncio.sleep(SETTLE_SECONDS)
                order = {"events": events, "size": EVENT_BYTES, "burst": burst, "pause": pause}
                hub, plain, cpu = server.worker, [], Cpu(server.process.pid)
                counted = []
                for _ in range(self._rounds):
                    for reader in readers:
                        await reader.ask({"do": "begin"})
                    await hub.ask({"do": "profile"})
                    await publisher.ask(order)
                    counted.append(await hub.ask({"do": "profiled"}))
                for _ in range(self._rounds):
                    for reader in readers:
                        await reader.ask({"do": "begin"})
                    cpu.since()
                    await publisher.ask(order)
                    spent = cpu.since()
                    got = [await reader.ask({"do": "end"}) for reader in readers]
                    plain.append(
                        {
                            "hub_cpu_us": spent["all"] / events * 1e6,
                            "python_thread_cpu_us": spent["main"] / events * 1e6,
                            "missing": sum(one["missing"] for one in got),
                            "doubled": sum(one["doubled"] for one in got),
                            "disconnected": [why for one in got for why in one["disconnected"]],
                        }
                    )
                slow = (await hub.ask({"do": "look"}))["slow"]
                self._figure(
                    "event-cost",
                    system,
                    plain,
                    ("hub_cpu_us", "python_thread_cpu_us"),
                    subscribers=count,
                    events=events,
                    slow=slow,
                    functions_per_event=round(median(one["functions"] for one in counted) / events, 2),
                    functions_per_event_turns=[round(one["functions"] / events, 2) for one in counted],
                    events_per_batch=[round(events / one["batches"], 1) for one in counted],
                    group_send_us_per_batch=[
                        round(one["group_send_seconds"] / one["batches"] * 1e6) for one in counted
                    ],
                )

    async def memory(self, systems: Sequence[str], spokes: int, processes: int) -> None:
        """What a connected and registered spoke that does nothing costs the hub."""
        for system in systems:
            async with AsyncExitStack() as stack:
                server = await self._server(system, stack)
                await self._worker(system, "idle", server, stack, subscribers=20)  # what is made once is no spoke's
                await asyncio.sleep(SETTLE_SECONDS)
                before = server.process.rss
                shares = [spokes // processes + (n < spokes % processes) for n in range(processes)]
                for share in shares:
                    await self._worker(system, "idle", server, stack, subscribers=share)
                await asyncio.sleep(3 * SETTLE_SECONDS)
                kib = (server.process.rss - before) / spokes / 1024
                seen = await server.worker.ask({"do": "look"}) if system in OURS else {}
                self._figure("memory", system, [{"kib_per_spoke": kib}], ("kib_per_spoke",), spokes=spokes, **seen)

    async def scrape(self, systems: Sequence[str], spokes: int, processes: int) -> None:
        """What a scrape costs a hub with so many idle spokes."""

        def tell(
            figure: str, system: str, turns: list[dict[str, Any]], names: tuple[str, ...], seen: dict[str, Any]
        ) -> None:
            self._figure(figure, system, turns, names, **seen)

        await scrapes(systems, spokes, processes, self._log, tell)

    def _figure(
        self, figure: str, system: str, results: list[dict[str, Any]], names: tuple[str, ...], **context: Any
    ) -> None:
        medians = {name: median(result[name] for result in results) for name in names}
        spread = {f"{name}_turns": [round(result[name], 2) for result in results] for name in names}
        sums = {
            name: sum(result[name] for result in results)
            for name in ("missing", "doubled", "faults")
            if any(name in result for result in results)
        }
        ends = [why for result in results for why in result.get("disconnected", ())]
        words = sorted({word for result in results for word in result.get("verdicts", ())})
        self._tell(
            {
                "figure": figure,
                "system": system,
                **context,
                **{name: round(value, 3) for name, value in medians.items()},
                **sums,
                **({"verdicts": words} if words else {}),
                **({"disconnected": ends} if ends else {}),
                **spread,
                "load": [round(one, 2) for one in os.getloadavg()],
            }
        )


async def _fan_out(server: Server, publisher: Worker, readers: Sequence[Worker], events: int) -> dict[str, Any]:
    for reader in readers:
        await reader.ask({"do": "begin"})
    cpu = Cpu(server.process.pid)
    for reader in readers:
        reader.tell({"do": "end"})
    published = await publisher.ask({"events": events, "size": EVENT_BYTES})
    got = [await reader.answer() for reader in readers]
    spent = cpu.since()["all"]
    received = sum(one["received"] for one in got)
    seconds = max(one["ended"] for one in got) - published["began"]
    return {
        "per_second": received / seconds,
        "server_cpu_us_per_delivery": spent / max(received, 1) * 1e6,
        "missing": sum(one["missing"] for one in got),
        "doubled": sum(one.get("doubled", 0) for one in got),
        "faults": sum(one["faults"] for one in got),
        "disconnected": [why for one in got for why in one.get("disconnected", ())],
        "verdicts": sorted({word for one in got for word in one.get("verdicts", ())}),
    }
