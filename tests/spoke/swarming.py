"""What the tests of spokes in swarms share: a hub whose topics go by gossip, readers, and what to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from broker import Hub, Spoke, SpokeOptions, connect
from broker.spoke import Subscription
from tests.rig import FAST, PATIENCE, a_hub, until

TOPIC = "flood"
NO_GOSSIP = SpokeOptions(backoff_first=0.01, backoff_most=0.05, gossip=False)


class Reader:
    """Reads a subscription for as long as the test lasts."""

    def __init__(self, events: Subscription) -> None:
        self.events, self.got = events, list[Any]()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.events:
            self.got.append(event.detail)

    async def has(self, expected: Iterable[Any], patience: float = 2 * PATIENCE) -> None:
        """All of it has come, in order, and nothing else."""
        wanted = list(expected)
        try:
            await until(lambda: len(self.got) >= len(wanted), patience)
        except TimeoutError:
            missing = [verdict.missing for verdict in self.events.verdicts]
            raise AssertionError(f"{len(self.got)} of {len(wanted)} came; missing: {missing}") from None
        assert self.got == wanted


@asynccontextmanager
async def reading(
    spoke: Spoke, topic: str = TOPIC, *, carrier: str = "gossip", since: Any = None, patience: float = PATIENCE
) -> AsyncIterator[Reader]:
    async with spoke.subscribe(topic, carrier=carrier, since=since, patience=patience) as events:
        reader = Reader(events)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


@asynccontextmanager
async def swarm_of(count: int, *, topic: str = TOPIC, **config: Any) -> AsyncIterator[tuple[Hub, list[Spoke]]]:
    """A hub and connected spokes; nobody is in a swarm yet."""
    topics = {"carrier": "gossip"} | config.pop("topics", {})
    async with a_hub(topics=topics, **config) as hub, AsyncExitStack() as stack:
        spokes = [
            await stack.enter_async_context(connect(hub.ticket, name=f"s{n}", options=FAST, timeout=PATIENCE))
            for n in range(count)
        ]
        yield hub, spokes


async def publish(spoke: Spoke, details: Iterable[Any], topic: str = TOPIC, *, carrier: str = "gossip") -> None:
    for number, detail in enumerate(details):
        await spoke.publish(topic, detail, carrier=carrier, timeout=PATIENCE)
        if number % 64 == 63:
            await asyncio.sleep(0)


def sent(spoke: Spoke) -> int:
    """Events that it gave to swarms."""
    return spoke.gossip_counts().get("events_out", 0)


def stop_hearing(spoke: Spoke) -> None:
    """What comes for it stays where it is, as for a program that hangs."""
    spoke._link._detach()


def hear_again(spoke: Spoke) -> None:
    from broker.border import attach

    assert spoke._link.endpoint is not None
    spoke._link._detach = attach(spoke._link.endpoint, spoke._link, spoke._swarms)
