"""A hub killed with -9 in the middle of a flood and started again on the same data directory: the ticket still works,
everybody comes back, and the verdicts are true."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from broker.spoke import Subscription
from tests.faults.hub_process import hub_process
from tests.rig import FAST, PATIENCE, serving, spokes, until

NOTICE = 15.0
"""Seconds that a spoke may take to notice at the very most; idle_timeout is 6 s."""


class Reader:
    """Reads a subscription for as long as the test lasts."""

    def __init__(self, events: Subscription) -> None:
        self.events, self.got = events, list[int]()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.events:
            self.got.append(event.detail)

    def settled(self, published: int) -> bool:
        """Every number has come, or is named lost."""
        verdicts = self.events.verdicts
        lost = sum(b - a + 1 for verdict in verdicts for a, b in verdict.lost)
        return sum(verdict.received for verdict in verdicts) + lost == published and not any(
            verdict.missing for verdict in verdicts
        )


@pytest.mark.timeout(120)
async def test_a_killed_hub_comes_back_and_the_verdicts_are_true(tmp_path: Path) -> None:
    count = 60_000
    async with hub_process(tmp_path) as (first, ready):
        ticket = ready["ticket"]
        async with (
            spokes(ticket, "pub", "s1", "s2", "s3", options=FAST) as (pub, *subs),
            subs[0].subscribe("flood") as e1,
            subs[1].subscribe("*", since="start") as e2,
            subs[2].subscribe(">", policy="drop_oldest") as e3,
        ):
            readers = [Reader(one) for one in (e1, e2, e3)]
            for one in subs:
                await one.call("hub.topics")

            async def publish() -> None:
                for number in range(1, count + 1):
                    await pub.publish("flood", number)

            publishing = asyncio.create_task(publish())
            await until(lambda: len(readers[0].got) > count // 4)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            killed = time.monotonic()
            assert not publishing.done()
            async with hub_process(tmp_path) as (_, again):
                assert again["node_id"] == ready["node_id"]
                assert again["ticket"] == ticket
                everybody = (pub, *subs)
                await until(lambda: all(one.counts()["connects"] == 2 for one in everybody), NOTICE + PATIENCE)
                assert time.monotonic() - killed < NOTICE
                async with asyncio.timeout(2 * PATIENCE):
                    await publishing
                    await pub.flush(PATIENCE)
                await until(lambda: all(reader.settled(count) for reader in readers), 2 * PATIENCE)
                for reader in readers:
                    (verdict,) = reader.events.verdicts
                    await until(lambda reader=reader: reader.events.queued == 0)  # type: ignore[misc]
                    got, lost = reader.got, [n for a, b in verdict.lost for n in range(a, b + 1)]
                    assert got == sorted(set(got)), "in order, nothing twice"
                    assert sorted(got + lost) == list(range(1, count + 1)), "all came or are named"
                    assert verdict.received == len(got)
                    word = reader.events.verdict
                    assert word.startswith("lost(") if lost else word.startswith("repaired(") or word == "complete"
                for reader in readers:
                    reader.task.cancel()


@pytest.mark.timeout(60)
async def test_calls_come_back_with_the_hub(tmp_path: Path) -> None:
    async def echo(n: int) -> int:
        return n

    async with hub_process(tmp_path) as (first, ready):
        ticket = ready["ticket"]
        async with serving(ticket, "server", t__echo=echo) as server, spokes(ticket, "caller") as (caller,):
            assert await caller.call("t.echo", {"n": 1}) == 1
            first.send_signal(signal.SIGKILL)
            await first.wait()
            async with hub_process(tmp_path):
                await until(lambda: caller.counts()["connects"] == 2 and server.counts()["connects"] == 2, PATIENCE)
                assert await caller.call("t.echo", {"n": 2}) == 2
