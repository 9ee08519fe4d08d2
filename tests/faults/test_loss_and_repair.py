"""Connections that break and readers that do not read: what is lost is named, nothing comes twice, others go on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from broker import Spoke
from broker.spoke import Subscription
from tests.rig import FAST, PATIENCE, Numbers, a_hub, a_peer, cut, spokes, until


async def read_to(events: Subscription, last: int, got: list[int]) -> None:
    """Collects details until ``last`` has come, or is known to be lost."""
    while not got or got[-1] != last:
        got.append((await anext(events)).detail)


async def flood(pub: Spoke, count: int, topic: str = "a", pad: str = "") -> None:
    for number in range(1, count + 1):
        await pub.publish(topic, number if not pad else {"n": number, "pad": pad})


def accounted(events: Subscription, published: int) -> int:
    """How many are lost; received and lost together are all, and nothing was delivered twice."""
    (verdict,) = events.verdicts
    assert verdict.missing == ()
    lost = sum(b - a + 1 for a, b in verdict.lost) - verdict.merged
    assert verdict.received + lost == published, verdict
    return lost


async def test_a_subscriber_that_is_cut_off_again_and_again_gets_everything_once() -> None:
    count, got = 20_000, list[int]()
    async with (
        a_hub(topics={"ring_events": 40_000}) as hub,
        spokes(hub.ticket, "pub", "sub", options=FAST) as (pub, sub),
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        publishing = asyncio.create_task(flood(pub, count))
        reading = asyncio.create_task(read_to(events, count, got))
        for nth, at in enumerate((1_000, 5_000, 9_000, 13_000), 2):
            await until(lambda at=at: len(got) >= at)  # type: ignore[misc]
            cut(hub, "sub")
            await until(lambda nth=nth: sub.counts()["connects"] == nth)  # type: ignore[misc]
        await publishing
        await pub.flush()
        async with asyncio.timeout(PATIENCE):
            await reading
        assert got == list(range(1, count + 1))
        assert accounted(events, count) == 0
        assert events.verdict == "complete" or events.verdict.startswith("repaired(")
        numbers = Numbers(hub)
        assert numbers("events_published_total", topic="a") == count
        assert numbers("events_lost_total") == 0
        assert numbers("connects_total") == 6
        assert numbers("disconnects_total", reason="internal") == 4


async def test_a_publisher_that_is_cut_off_in_a_flood_loses_nothing_and_doubles_nothing() -> None:
    count, got = 20_000, list[int]()
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub", options=FAST) as (pub, sub),
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        publishing = asyncio.create_task(flood(pub, count))
        reading = asyncio.create_task(read_to(events, count, got))
        for nth, at in enumerate((1_000, 5_000, 9_000, 13_000), 2):
            await until(lambda at=at: len(got) >= at)  # type: ignore[misc]
            cut(hub, "pub")
            await until(lambda nth=nth: pub.counts()["connects"] == nth)  # type: ignore[misc]
        await publishing
        await pub.flush(PATIENCE)
        async with asyncio.timeout(PATIENCE):
            await reading
        assert got == list(range(1, count + 1))
        assert "lost" not in events.verdict
        assert Numbers(hub)("events_published_total", topic="a") == count


async def test_an_outage_longer_than_the_ring_is_named_to_the_number() -> None:
    async with (
        a_hub(topics={"ring_events": 100}) as hub,
        spokes(hub.ticket, "pub", "sub", options=FAST) as (pub, sub),
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        for number in range(1, 11):
            await pub.publish("a", number)
        assert [(await anext(events)).detail for _ in range(10)] == list(range(1, 11))
        hub.router.endpoint.admit(open=False, allow=[pub.node_id], deny=[])
        await until(lambda: not sub.connected)
        for number in range(11, 511):
            await pub.publish("a", number)
        await pub.flush()
        assert events.verdict == "pending", "while the hub is away nobody knows"
        hub.router.endpoint.admit(open=True, allow=[], deny=[])
        async with asyncio.timeout(PATIENCE):
            got = [(await anext(events)).detail for _ in range(100)]
        assert got == list(range(411, 511))
        assert events.verdict == "lost([11, 410])"
        assert accounted(events, 510) == 400
        assert Numbers(hub)("events_lost_total", topic="a") == 400
        (row,) = [row for row in await sub.call("hub.spokes") if row["name"] == "sub"]
        assert row["dropped"] == 400


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "disconnect"])
async def test_a_spoke_that_stops_reading_its_connection(policy: str) -> None:
    """The hub's memory stays bounded, the spoke is shown by name, and another subscriber gets everything."""
    count, pad, got = 30_000, "x" * 700, list[int]()
    async with (
        a_hub(topics={"ring_events": 10_000}) as hub,
        spokes(hub.ticket, "pub", "sub", options=FAST) as (pub, sub),
        a_peer(hub.ticket, name="stuck", inbox_bytes=65_536) as stuck,
        sub.subscribe("a") as events,
    ):
        stuck.say("__subscribe", {"topics": ["a"], "policy": policy, "patience": 0.2})
        await until(lambda: len(hub.router.topics.subscriptions) == 2)
        stuck.stop_reading()
        queued = 0

        async def read() -> None:
            nonlocal queued
            async for event in events:
                got.append(event.detail["n"])
                if len(got) % 100 == 0:
                    queued = max([queued, *(size for _, size in hub.router.endpoint.queued())])
                if len(got) == count:
                    return

        reading = asyncio.create_task(read())
        await flood(pub, count, pad=pad)
        await pub.flush()
        async with asyncio.timeout(PATIENCE):
            await reading
        assert got == list(range(1, count + 1))
        assert events.verdict == "complete"
        assert accounted(events, count) == 0
        assert queued <= 1_048_576 + 100_000
        assert len(hub.router.topics.channels["a"].ring) <= 20_000
        if policy == "disconnect":
            await until(lambda: Numbers(hub)("disconnects_total", reason="slow_consumer") == 1)
            stuck.resume()
            assert (await stuck.end())[0] == 38
            return
        (row,) = [row for row in await sub.call("hub.spokes") if row["name"] == "stuck"]
        assert row["lagging"] == 1
        assert row["slow"] >= 1
        assert row["queued_bytes"] > 0
        assert Numbers(hub)("slow_consumers") == 1
        stuck.resume()
        await until(lambda: any(m["type"] == "a" and m["detail"]["n"] == count for m in stuck.received))
        seen = [m["detail"]["n"] for m in stuck.received if m["type"] == "a"]
        lost = [m["detail"] for m in stuck.received if m["type"] == "topic.lost"]
        named = [number for one in lost for number in range(one["from"], one["to"] + 1)]
        assert sorted(seen + named) == list(range(1, count + 1)), "each came once or is named once"
        assert seen == sorted(seen)
        assert named
        numbers = Numbers(hub)
        assert numbers("events_lost_total", topic="a") == len(named)
        assert numbers("events_delivered_total", topic="a") == count + len(seen)
        await until(lambda: Numbers(hub)("slow_consumers") == 0)


async def test_publishers_wait_for_a_blocking_reader_no_longer_than_its_patience() -> None:
    """The reader comes back within its patience: nothing is lost. The ring alone would have been overwritten."""
    count, pad = 20_000, "x" * 1_000
    async with (
        a_hub(topics={"ring_events": 10_000}) as hub,
        spokes(hub.ticket, "pub", options=FAST) as (pub,),
        a_peer(hub.ticket, name="slow", inbox_bytes=65_536) as slow,
    ):
        slow.say("__subscribe", {"topics": ["a"], "policy": "block", "patience": 60})
        await until(lambda: len(hub.router.topics.subscriptions) == 1)
        slow.stop_reading()
        publishing = asyncio.create_task(flood(pub, count, pad=pad))
        await until(lambda: hub.router.topics.channels.get("a") and hub.router.topics.channels["a"].ring.held)
        slow.resume()
        await publishing
        await pub.flush(PATIENCE)
        await until(lambda: sum(m["type"] == "a" for m in slow.received) == count)
        assert [m["detail"]["n"] for m in slow.received if m["type"] == "a"] == list(range(1, count + 1))
        assert Numbers(hub)("events_lost_total") == 0


class RefusingOnce:
    """A group that finds the queue of every member full, once."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.refused = inner, list[int]()

    def send(self, frames: list[bytes]) -> list[int]:
        if self.refused:
            return list(self._inner.send(frames))
        self.refused = self._inner.members()
        for member in self.refused:
            self._inner.remove(member)
        return self.refused

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_an_announcement_that_finds_a_queue_full_does_not_cost_the_subscriber_its_place() -> None:
    epoch = "0123456789abcdef"
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub", options=FAST) as (sub,),
        a_peer(hub.ticket, name="author") as author,
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        meta = {"author": author.endpoint.node_id, "epoch": epoch}
        author.say("a", 1, meta={**meta, "seq": 1})
        assert (await anext(events)).detail == 1
        channel = hub.router.topics.channels["a"]
        group = RefusingOnce(channel.group)
        channel.group = group  # type: ignore[assignment]
        author.say("topic.head", {"topic": "a", "epoch": epoch, "seq": 3, "acked": 1})
        assert (await author.hears("topic.ack", seq=1))["epoch"] == epoch
        await until(lambda: group.refused)
        for seq in (2, 3, 4):
            author.say("a", seq, meta={**meta, "seq": seq})
        async with asyncio.timeout(PATIENCE):
            assert [(await anext(events)).detail for _ in range(3)] == [2, 3, 4]
        assert "lost" not in events.verdict


async def test_a_storm_of_cuts_with_several_authors_and_subscribers() -> None:
    """Whoever is cut, whenever: each subscriber ends with each author's numbers, each once and in order."""
    count, rng = 3_000, random.Random(7)
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "p1", "p2", "s1", "s2", "s3", options=FAST) as (p1, p2, *subs),
        subs[0].subscribe("a.*") as e1,
        subs[1].subscribe(">") as e2,
        subs[2].subscribe("a.x", "a.*") as e3,
    ):
        for one in subs:
            await one.call("hub.topics")
        got: list[dict[str, list[int]]] = [{}, {}, {}]

        async def read(events: Subscription, into: dict[str, list[int]]) -> None:
            while sum(map(len, into.values())) < 2 * count:
                event = await anext(events)
                into.setdefault(event.author, []).append(event.detail)

        reading = [asyncio.create_task(read(e, g)) for e, g in zip((e1, e2, e3), got, strict=True)]
        publishing = [asyncio.create_task(flood(one, count, "a.x")) for one in (p1, p2)]
        while not all(task.done() for task in publishing):
            names = [session.name for session in hub.router.sessions.values() if session.registered]
            if names:
                cut(hub, rng.choice(names))
            before = sum(sum(map(len, one.values())) for one in got)
            await until(
                lambda before=before: (
                    sum(sum(map(len, one.values())) for one in got) > before + 200  # type: ignore[misc]
                    or all(task.done() for task in publishing)
                )
            )
        await p1.flush(PATIENCE)
        await p2.flush(PATIENCE)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*reading)
        for events, into in zip((e1, e2, e3), got, strict=True):
            assert into == {one.node_id: list(range(1, count + 1)) for one in (p1, p2)}
            assert "lost" not in events.verdict
