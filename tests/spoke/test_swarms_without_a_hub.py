"""Topics outlive the hub: killed, its spokes go on hearing each other, and when it is back they fill its history."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from broker import Spoke, connect
from tests.rig import FAST, PATIENCE, until
from tests.spoke.swarming import TOPIC, Reader, publish, reading

pytestmark = pytest.mark.timeout(180)

NOTICE = 20.0
"""Seconds that a spoke may take to notice; idle_timeout is 6 s."""


class Killable:
    """A hub in a process of its own, on one data directory and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ticket = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        config = self._folder / "hub.toml"
        config.write_text('[topics]\ncarrier = "gossip"\n')
        command = [sys.executable, "-m", "broker", "hub", "--config", str(config), "--data", str(self._folder / "data")]
        self._process = await asyncio.create_subprocess_exec(
            *(*command, "--open", "--http", "off", "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(os.environ),
        )
        assert self._process.stdout is not None
        ready = orjson.loads(await asyncio.wait_for(self._process.stdout.readline(), PATIENCE))
        assert self.ticket in ("", ready["ticket"])
        self.ticket = ready["ticket"]

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def swarm(tmp_path: Path, count: int) -> AsyncIterator[tuple[Killable, list[Spoke]]]:
    hub = Killable(tmp_path)
    await hub.start()
    try:
        async with AsyncExitStack() as stack:
            yield (
                hub,
                [
                    await stack.enter_async_context(connect(hub.ticket, name=f"s{n}", options=FAST, timeout=PATIENCE))
                    for n in range(count)
                ],
            )
    finally:
        await hub.kill()


async def back(spokes: list[Spoke]) -> None:
    await until(lambda: all(spoke.connected and spoke.counts()["connects"] >= 2 for spoke in spokes), 3 * NOTICE)


async def settled(reader: Reader, count: int) -> None:
    """It has been told of all of them (by the author's heads at the latest), and each came or is named."""

    def look() -> bool:
        (verdict,) = reader.events.verdicts
        return verdict.known == count and reader.events.verdict.startswith(("complete", "repaired(", "lost("))

    await until(look, 2 * PATIENCE)


async def test_the_swarm_goes_on_without_the_hub_whose_history_is_filled_from_it(tmp_path: Path) -> None:
    """Also of an author that has left before the hub is back."""
    async with swarm(tmp_path, 4) as (hub, [author, *subscribers]), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(one)) for one in subscribers]
        await publish(author, range(300))
        await author.flush(PATIENCE)
        await hub.kill()
        await until(lambda: not any(one.connected for one in (author, *subscribers)), NOTICE)
        await publish(author, range(300, 1_200))
        for reader in readers:
            await reader.has(range(1_200))
            assert reader.events.verdict == "pending", "nobody can say whether that is all while the hub is away"
        await author.close()
        await hub.start()
        await back(subscribers)
        for reader in readers:
            await settled(reader, 1_200)
            (verdict,) = reader.events.verdicts
            assert (verdict.received, verdict.lost, verdict.missing) == (1_200, (), ())
        async with connect(hub.ticket, name="late", options=FAST, timeout=PATIENCE) as late:
            await until_history(late, 1_200)


async def until_history(late: Spoke, count: int) -> None:
    """A subscriber that comes late gets all that the hub was given again."""
    async with reading(late, carrier="auto", since="start") as reader:
        await reader.has(range(count))
        assert reader.events.verdicts[0].lost == ()


async def test_an_author_goes_on_beyond_its_buffer_and_the_truth_is_told(tmp_path: Path) -> None:
    """More than it keeps goes by while the hub is away: the swarm has had all of it."""
    async with swarm(tmp_path, 3) as (hub, [author, *subscribers]), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(one)) for one in subscribers]
        publisher = author._publisher
        publisher._limits = replace(publisher._limits, retained_events=10_000)
        await publish(author, range(100))
        await author.flush(PATIENCE)
        await hub.kill()
        await until(lambda: not author.connected, NOTICE)
        await publish(author, range(100, 14_000))
        held = author._publisher.held(TOPIC, readers[0].events.verdicts[0].epoch)
        assert held is not None
        assert held.first > 3_900, "what it keeps is bounded"
        for reader in readers:
            await until(lambda reader=reader: len(reader.got) > 13_000, 2 * PATIENCE)  # type: ignore[misc]
        await hub.start()
        await back([author, *subscribers])
        await author.flush(2 * PATIENCE)
        for reader in readers:
            await settled(reader, 14_000)
            (verdict,) = reader.events.verdicts
            lost = [n for a, b in verdict.lost for n in range(a - 1, b)]
            assert sorted([*reader.got, *lost]) == list(range(14_000)), "it came, or it is named"
            assert reader.got == sorted(set(reader.got))


async def test_killed_in_mid_flood_nothing_is_missing_unnamed(tmp_path: Path) -> None:
    count = 20_000
    async with swarm(tmp_path, 3) as (hub, [author, *subscribers]), AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(one)) for one in subscribers]
        await publish(author, range(200))
        flood = asyncio.create_task(publish(author, range(200, count)))
        await until(lambda: len(readers[0].got) > 2_000)
        await hub.kill()
        await hub.start()
        await flood
        await back([author, *subscribers])
        await author.flush(2 * PATIENCE)
        for reader in readers:
            await settled(reader, count)
            await until(lambda reader=reader: reader.events.queued == 0)  # type: ignore[misc]
            (verdict,) = reader.events.verdicts
            lost = [n for a, b in verdict.lost for n in range(a - 1, b)]
            assert sorted([*reader.got, *lost]) == list(range(count))
            assert reader.got == sorted(set(reader.got))
