"""Topics over gossip: flat out and at a steady rate beside bare iroh-gossip, what the hub spends on either carrier, and
the repair of a hole. Not here: the participants (gossip_peer.py, bare_gossip/)."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from benchmarks.gossip_goals import NATIVE, READERS
from benchmarks.gossip_peer import WARM_PAUSE
from benchmarks.processes import Cpu, Worker

__all__ = ["PARTS", "GossipBench", "build_bare"]

PARTS = ("flat", "latency", "cost", "auto", "repair")
HERE = Path(__file__).parent
SIZE = 256
SPOKE_PROCESSES = 2
SETTLE_SECONDS = 2.0
RESULT_SECONDS = 60.0
BARE_SECONDS = 150.0
BUILD_SECONDS = 1_800.0
FLAT_DELIVERIES = 800_000
"""Some seconds flat out: in a shorter run most of the time goes by while queues fill and empty."""
RATE = 100.0
COST_RATE = 20.0
"""Events a second. A delivery takes 0.15 to 0.3 ms of one of the cores here, so 200 spokes on two can do twice that at
most; what a full core brings late is repaired, which would be in the figure."""
STEADY_RATE = 200.0
SMALL_UPLINK = 256 << 10
"""Bytes a second: streams of 200 events/s to 10 spokes (some 0.8 MB/s) pass it; the default is far above them."""
AUTO_LIMIT = 15.0
HOLE = 1_000
FORGET_SECONDS = 30.0


def build_bare() -> Path:
    """The program of bare iroh-gossip; minutes the first time, seconds after."""
    target = os.environ.get("CARGO_TARGET_DIR") or str(HERE / "bare_gossip" / "target")
    manifest = str(HERE / "bare_gossip" / "Cargo.toml")
    subprocess.run(
        ["cargo", "build", "--quiet", "--locked", "--release", "--manifest-path", manifest],
        env={**os.environ, "CARGO_TARGET_DIR": target},
        check=True,
        timeout=BUILD_SECONDS,
    )
    return Path(target) / "release" / "bare_gossip"


class Swarm:
    """A hub, an author and spokes, each a process or a share of one."""

    def __init__(self, hub: Worker, author: Worker, spokes: list[Worker], count: int) -> None:
        self.hub, self.author, self.spokes, self.count = hub, author, spokes, count
        self.next = 0

    async def all(self, **order: Any) -> list[dict[str, Any]]:
        for worker in self.spokes:
            worker.tell(order)
        return [await worker.answer() for worker in self.spokes]

    async def publish(self, events: int, rate: float) -> dict[str, Any]:
        first, self.next = self.next, self.next + events
        return await self.author.ask({"events": events, "first": first, "rate": rate})

    async def carry(self, events: int, rate: float) -> dict[str, Any]:
        """Publishes, and what became of it everywhere; ``cpu_s``: what each participant's process spent on it."""
        await self.all(do="begin", first=self.next, events=events)
        spent = [(name, Cpu(worker.pid)) for name, worker in self._workers()]
        sent = await self.publish(events, rate)
        reports = await self.all(do="result", seconds=RESULT_SECONDS)
        cpu = {name: round(one.since()["all"], 3) for name, one in spent}
        return {**self.summary(sent["began"], events, reports), "cpu_s": cpu}

    def _workers(self) -> list[tuple[str, Worker]]:
        spokes = [(f"spokes {number}", worker) for number, worker in enumerate(self.spokes)]
        return [("hub", self.hub), ("author", self.author), *spokes]

    def summary(self, began: float, events: int, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
        received = sum(report["received"] for report in reports)
        seconds = max(report["ended"] for report in reports) - began
        latencies = sorted(one for report in reports for one in report["latencies"])
        return {
            "delivered_percent": round(100 * received / (events * self.count), 3),
            "missing": events * self.count - received,
            "per_second": round(received / seconds),
            "seconds": round(seconds, 4),
            "p50_ms": _pick(latencies, 50),
            "p99_ms": _pick(latencies, 99),
            "faults": sum(report["faults"] for report in reports),
            "verdicts": sorted({word for report in reports for word in report["verdicts"]}),
            "carriers": sorted({word for report in reports for word in report["carriers"]}),
        }


class GossipBench:
    """One run."""

    def __init__(self, log: Path, rounds: int, scale: float, tell: Callable[[dict[str, Any]], None]) -> None:
        self._log, self._rounds, self._scale = log, rounds, scale
        self._tell_line = tell
        self._bytes: dict[tuple[str, int], float] = {}
        """Of the hub an event, by carrier and spokes, as measured."""

    def _tell(self, figure: str, system: str, subscribers: int, **values: Any) -> None:
        load = [round(one, 2) for one in os.getloadavg()]
        self._tell_line({"figure": figure, "system": system, "subscribers": subscribers, **values, "load": load})

    def _events(self, count: int) -> int:
        return max(50, int(count * self._scale))

    async def run(self, parts: Sequence[str], flat: Sequence[int], cost: Sequence[int], bare: Path) -> None:
        """The parts by name; ``flat`` and ``cost`` are numbers of spokes."""
        for count in flat:
            if "flat" in parts:
                await self._beside_bare("gossip-flat", bare, count, self._events(FLAT_DELIVERIES // count), 0)
        if "latency" in parts:
            await self._beside_bare("gossip-latency", bare, max(flat), self._events(500), RATE)
        for count in cost:
            # What the hub passes on by gossip is a matter of its place in the tree, which is another one each time.
            turns = ["gossip"] * self._rounds + ["stream"]
            for carrier in turns if "cost" in parts else ():
                await self._cost(carrier, count)
            if "auto" in parts and "cost" in parts:
                await self._auto_between(count)
        if "auto" in parts:
            for uplink in (SMALL_UPLINK, None):
                await self._auto(min(cost), uplink)
        if "repair" in parts:
            await self._repair(max(flat) * 2)

    @asynccontextmanager
    async def _swarm(
        self, carrier: str, count: int, *, pause: float = WARM_PAUSE, native: bool = False, **topics: Any
    ) -> AsyncIterator[Swarm]:
        """``pause``: seconds between the events before the first that counts. ``native``: spokes count in Rust."""
        async with AsyncExitStack() as stack:

            async def worker(role: str, **job: Any) -> Worker:
                one = await Worker.of({"system": "gossip", "role": role, **job}, self._log)
                stack.push_async_callback(one.end)
                return one

            hub = await worker("hub", topics={"carrier": carrier, **topics})
            job = {"ticket": hub.ready["ticket"], "carrier": carrier, "size": SIZE, "pause": pause}
            shares = [count // SPOKE_PROCESSES + (n < count % SPOKE_PROCESSES) for n in range(SPOKE_PROCESSES)]
            spokes = [await worker("spokes", subscribers=share, native=native, **job) for share in shares if share]
            author = await worker("author", **job)
            await asyncio.sleep(SETTLE_SECONDS)
            yield Swarm(hub, author, spokes, count)

    async def _beside_bare(self, figure: str, bare: Path, count: int, events: int, rate: float) -> None:
        for turn in range(self._rounds):
            for system in READERS if not rate else ("gossip",):
                async with self._swarm("gossip", count, native=system == NATIVE) as swarm:
                    self._tell(figure, system, count, turn=turn, events=events, **await swarm.carry(events, rate))
            self._tell(figure, "bare", count, turn=turn, events=events, **await self._bare(bare, count, events, rate))

    async def _bare(self, bare: Path, count: int, events: int, rate: float) -> dict[str, Any]:
        command = (str(bare), str(count), str(events), str(SIZE), str(rate))
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=log)
        try:
            async with asyncio.timeout(BARE_SECONDS):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise RuntimeError(f"bare_gossip ended with status {process.returncode}; see the log of the run")
        value: dict[str, Any] = orjson.loads(out)
        return {
            "delivered_percent": round(100 * value["received"] / value["expected"], 3),
            "per_second": round(value["received"] / value["seconds"]),
            **{name: value[name] for name in ("seconds", "stuck", "p50_ms", "p99_ms", "lagged")},
        }

    async def _cost(self, carrier: str, count: int) -> None:
        """CPU and bytes of the hub an event, less what the same time costs when nothing is published."""
        events = self._events(1_000)
        async with self._swarm(carrier, count, pause=1 / COST_RATE) as swarm:
            seconds = events / COST_RATE
            before = await _spent(swarm, asyncio.sleep(seconds / 2))
            cpu, sent, result = await _spent(swarm, swarm.carry(events, COST_RATE))
            after = await _spent(swarm, asyncio.sleep(seconds / 2))
            idle_cpu, idle_bytes = before[0] + after[0], before[1] + after[1]
            share = result["seconds"] / seconds
            repairs = (await swarm.hub.ask({"do": "look"}))["repairs"]
        self._bytes[carrier, count] = (sent - idle_bytes * share) / events
        self._tell(
            "gossip-cost",
            carrier,
            count,
            events=events,
            hub_cpu_us=round((cpu - idle_cpu * share) / events * 1e6, 1),
            hub_bytes=round((sent - idle_bytes * share) / events),
            idle_cpu_ms_per_s=round(idle_cpu / seconds * 1e3, 1),
            idle_bytes_per_s=round(idle_bytes / seconds),
            repairs_served=repairs,
            **{name: result[name] for name in ("delivered_percent", "missing", "verdicts", "carriers", "faults")},
        )

    async def _auto_between(self, count: int) -> None:
        """With a budget between what the two carriers cost here: whichever is cheaper is within it."""
        gossip, stream = (max(1.0, self._bytes[carrier, count]) for carrier in ("gossip", "stream"))
        budget = int(math.sqrt(gossip * stream) * COST_RATE)
        await self._auto(count, budget, COST_RATE, cheaper="gossip" if gossip < stream else "stream")

    async def _auto(
        self, count: int, uplink: int | None, rate: float = STEADY_RATE, *, cheaper: str | None = None
    ) -> None:
        """The carrier that ``auto`` has come to, by what the uplink may carry."""
        topics: dict[str, Any] = {} if uplink is None else {"uplink_bytes": uplink}
        async with self._swarm("auto", count, **topics) as swarm:
            events, seconds = 0, time.monotonic()
            carrier = "stream"
            while time.monotonic() - seconds < (AUTO_LIMIT if uplink is not None else AUTO_LIMIT / 3):
                await swarm.publish(int(rate), rate)
                events += int(rate)
                carrier = (await swarm.hub.ask({"do": "look"}))["carrier"]
                if carrier == "gossip":
                    break
            result = await swarm.carry(int(rate), rate)
        self._tell(
            "gossip-auto", "auto", count, uplink_bytes=uplink, cheaper=cheaper, carrier=carrier, before=events,
            **{name: result[name] for name in ("delivered_percent", "missing", "verdicts", "faults", "carriers")},
        )  # fmt: skip

    async def _repair(self, count: int) -> None:
        """``HOLE`` events are lost at one spoke, then at all; timed from the event that shows the hole."""
        async with self._swarm("gossip", count) as swarm:
            for holes in (1, count):
                self._tell("gossip-repair", "gossip", count, **await self._hole(swarm, holes))

    async def _hole(self, swarm: Swarm, holes: int) -> dict[str, Any]:
        first = swarm.next
        readers = 1 if holes == 1 else swarm.count
        first_worker = swarm.spokes[:1] if holes == 1 else swarm.spokes
        for worker in first_worker:
            await worker.ask({"do": "hole", "readers": readers, "first": first, "last": first + HOLE - 1})
        await swarm.all(do="begin", first=first, events=HOLE + 1)
        start = await swarm.hub.ask({"do": "look"})
        cpu = Cpu(swarm.hub.pid)
        await swarm.publish(HOLE, STEADY_RATE * 5)
        deadline = time.monotonic() + FORGET_SECONDS
        for worker in first_worker:
            while (await worker.ask({"do": "forgotten", "readers": readers}))["least"] < HOLE:
                if time.monotonic() > deadline:
                    raise RuntimeError("the events that were to be lost did not come")
                await asyncio.sleep(0.05)
        before = await swarm.hub.ask({"do": "look"})
        publishing = cpu.since()["all"]
        sent = await swarm.publish(1, 0)
        reports = await swarm.all(do="result", seconds=RESULT_SECONDS)
        after = await swarm.hub.ask({"do": "look"})
        ends = sorted(end for report in reports for end in report["ends"])
        return {
            "holes": holes,
            "hole_events": HOLE,
            "seconds": round(ends[-1] - sent["began"], 4),
            "median_seconds": round(ends[len(ends) // 2] - sent["began"], 4),
            "hub_cpu_ms": round(cpu.since()["all"] * 1e3, 2),
            "hub_cpu_ms_publishing": round(publishing * 1e3, 2),
            "hub_bytes": after["bytes"] - before["bytes"],
            "repairs_too_early": before["repairs"] - start["repairs"],
            "repairs_served": after["repairs"] - before["repairs"],
            "repairs_merged": after["merged"] - before["merged"],
            "repaired_events": after["repaired"] - before["repaired"],
            **{
                name: value
                for name, value in swarm.summary(sent["began"], HOLE + 1, reports).items()
                if name in ("delivered_percent", "missing", "verdicts", "faults")
            },
        }


async def _spent(swarm: Swarm, work: Any) -> tuple[float, int, Any]:
    """CPU seconds and bytes of the hub while ``work`` lasts."""
    before = (await swarm.hub.ask({"do": "look"}))["bytes"]
    cpu = Cpu(swarm.hub.pid)
    result = await work
    spent = cpu.since()["all"]
    return spent, (await swarm.hub.ask({"do": "look"}))["bytes"] - before, result


def _pick(ordered: Sequence[float], percent: int) -> float | None:
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3) if ordered else None
