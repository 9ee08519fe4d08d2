"""The participants of the gossip figures that are ours: hub, author and spokes, on a carrier that the job names. Not
here: bare iroh-gossip (bare_gossip/), and what is asked of them when (gossip.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.load import event_value
from benchmarks.processes import WorkerIO
from broker import Hub, HubConfig, Spoke, SpokeOptions, connect
from broker.config import TopicsConfig

__all__ = ["TOPIC", "WARM_PAUSE", "author", "hub", "spokes"]

TOPIC = "bench.events"
CONNECT_SECONDS = 60.0
FLUSH_SECONDS = 60.0
AT_A_TIME = 16
QUIET_SECONDS = 5.0
"""What has not come so long after the last delivery is missing."""
WARM, WARM_PAUSE = 200, 0.02
"""Before the first that counts, as in bare_gossip: a young swarm looks for its tree for some seconds."""
YIELD_EVENTS = 64


async def hub(job: dict[str, Any], io: WorkerIO) -> None:
    """Tells its bytes and repairs. ``http`` is off: a scrape would be in the figure."""
    topics = TopicsConfig(**job["topics"])
    async with Hub(HubConfig(open=True, http="", topics=topics)) as hub:

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            router = hub.router
            channel = router.topics.channels.get(TOPIC)
            return {
                "bytes": router.endpoint.counters()["direct_bytes_out"],
                "repairs": router.swarms.totals.repairs_served,
                "merged": router.swarms.totals.repairs_merged,
                "repaired": channel.counters.repaired if channel is not None else 0,
                "carrier": "stream" if channel is None or channel.swarm is None else "gossip",
            }

        await io.serve(do, ticket=hub.ticket)


async def author(job: dict[str, Any], io: WorkerIO) -> None:
    async with connect(job["ticket"], name="bench publishes", timeout=CONNECT_SECONDS) as spoke:

        async def publish(number: int) -> None:
            detail = {**event_value(number, job["size"] - 24), "t": time.monotonic_ns()}
            await spoke.publish(TOPIC, detail, carrier=job["carrier"])

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            """``events`` numbered from ``first``, at ``rate`` a second or flat out (0)."""
            began = time.monotonic()
            for number in range(order["events"]):
                if order["rate"]:
                    await asyncio.sleep(began + number / order["rate"] - time.monotonic())
                elif number % YIELD_EVENTS == YIELD_EVENTS - 1:
                    await asyncio.sleep(0)
                await publish(order["first"] + number)
            await spoke.flush(FLUSH_SECONDS)
            return {"began": began, "ended": time.monotonic(), "carrier": spoke.carrier(TOPIC)}

        for number in range(-WARM, 0):
            await publish(number)
            await asyncio.sleep(job["pause"])
        await spoke.flush(FLUSH_SECONDS)
        await io.serve(do)


async def spokes(job: dict[str, Any], io: WorkerIO) -> None:
    """``subscribers`` spokes with an endpoint each. They count, and throw away what is to be a hole. ``native``: what
    comes is counted in Rust, and its numbers are all that is looked at."""
    options = SpokeOptions(counts_gossip=job["native"])
    gate = asyncio.Semaphore(AT_A_TIME)
    async with AsyncExitStack() as stack:

        async def opened(number: int) -> Reader:
            async with gate:
                spoke = await stack.enter_async_context(
                    connect(job["ticket"], name=f"bench {number}", options=options, timeout=CONNECT_SECONDS)
                )
                subscription = spoke.subscribe(TOPIC, patience=QUIET_SECONDS, carrier=job["carrier"])
                reader = Reader(spoke, await stack.enter_async_context(subscription), job["native"])
                await spoke.call("hub.topics", timeout=CONNECT_SECONDS)  # answered after the hub has the subscription
                return reader

        readers = await asyncio.gather(*(opened(number) for number in range(job["subscribers"])))
        tasks = [asyncio.create_task(reader.read()) for reader in readers]

        async def do(order: dict[str, Any]) -> dict[str, Any]:
            match order["do"]:
                case "begin":
                    for reader in readers:
                        reader.begin(order["first"], order["events"])
                    return {}
                case "hole":
                    for reader in readers[: order["readers"]]:
                        reader.forget(order["first"], order["last"])
                    return {}
                case "forgotten":
                    return {"least": min(len(reader.forgotten) for reader in readers[: order["readers"]])}
                case _:
                    return await _result(readers, order["seconds"])

        await io.serve(do)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _result(readers: list[Reader], seconds: float) -> dict[str, Any]:
    """When all have everything, or nothing has come for a while, or after ``seconds``."""
    deadline, before, moved = time.monotonic() + seconds, -1, time.monotonic()
    while any(reader.left > 0 for reader in readers):
        now, received = time.monotonic(), sum(reader.received for reader in readers)
        if received != before:
            before, moved = received, now
        if now > deadline or now - moved > QUIET_SECONDS:
            break
        await asyncio.sleep(0.005)
    return {
        "received": sum(reader.received for reader in readers),
        "faults": sum(reader.faults for reader in readers),
        "ended": max(reader.ended for reader in readers),
        "ends": [reader.ended for reader in readers],
        "latencies": [one for reader in readers for one in reader.latencies],
        "verdicts": sorted({reader.subscription.verdict for reader in readers}),
        "carriers": sorted({reader.spoke.carrier(TOPIC) for reader in readers}),
        "asked": sum(reader.spoke.gossip_counts()["repairs_wanted"] for reader in readers),
    }


class Reader:
    """One subscription, and what came of it."""

    def __init__(self, spoke: Spoke, subscription: Any, native: bool) -> None:
        self.spoke, self.subscription, self.native = spoke, subscription, native
        self.received = self.faults = self.left = 0
        self.ended = 0.0
        self.latencies: list[float] = []
        self.forgotten: set[int] = set()
        self._newest = -WARM - 1
        self._first = 0
        self._hole = range(0)
        self._receive = subscription.receive
        subscription.receive = self._with_a_hole

    def begin(self, first: int, events: int) -> None:
        """What was published before ``first`` may still come; it does not count."""
        self._first = first
        self.received, self.faults, self.left = 0, 0, events
        self.ended, self.latencies = time.monotonic(), []

    def forget(self, first: int, last: int) -> None:
        """These events are lost the first time that they come, as if the network had lost them."""
        self._hole, self.forgotten = range(first, last + 1), set()

    def _with_a_hole(
        self, topic: str, author: str, epoch: str, seq: int, events: list[Any], *rest: Any, **more: Any
    ) -> None:
        if not self._hole:
            self._receive(topic, author, epoch, seq, events, *rest, **more)
            return
        for offset, event in enumerate(events):
            number = event.detail["n"]
            if number in self._hole and number not in self.forgotten:
                self.forgotten.add(number)
            else:
                self._receive(topic, author, epoch, seq + offset, [event], *rest, **more)

    async def read(self) -> None:
        if self.native:
            async for run in self.subscription.runs():
                self._count(run)
            return
        async for batch in self.subscription.batches():
            now = time.monotonic_ns()
            for event in batch:
                number = event.detail["n"]
                if number != self._newest + 1 and self._newest > -WARM - 1:
                    self.faults += 1
                self._newest = number
                if number >= self._first:
                    self.latencies.append((now - event.detail["t"]) / 1e6)
                    self.received += 1
                    self.left -= 1
            self.ended = time.monotonic()

    def _count(self, batch: Sequence[Any]) -> None:
        """By the numbers of the first and the last: the others are the subscription's word, and its verdict's."""
        last = batch[-1].seq - WARM - 1
        first = last - len(batch) + 1
        self.faults += batch[0].seq - WARM - 1 != first or (first != self._newest + 1 and self._newest > -WARM - 1)
        self._newest = last
        counted = max(0, last - max(first, self._first) + 1)
        self.received += counted
        self.left -= counted
        self.ended = time.monotonic()
