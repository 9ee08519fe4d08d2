"""Topics through a real hub when somebody is slow, or a bound is reached: the policies, pauses, and what makes room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker import SpokeOptions
from broker.errors import SlowConsumer
from tests.rig import PATIENCE, Numbers, a_hub, a_peer, cut, details, spokes, take, until

SMALL = SpokeOptions(subscription_events=64, backoff_first=0.01, backoff_most=0.05)


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "disconnect"])
async def test_a_program_that_does_not_read_meets_its_policy_and_another_subscription_gets_everything(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 5_000
    monkeypatch.setattr("broker.spoke.subscription.UNDER_WAY", 256)
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub") as (pub,),
        spokes(hub.ticket, "sub", options=SMALL) as (sub,),
        sub.subscribe("a", policy=policy) as slow,
        sub.subscribe("a") as quick,
    ):
        await sub.call("hub.topics")
        reading = asyncio.create_task(take(quick, count))
        for number in range(count):
            await pub.publish("a", number)
        assert details(await reading) == list(range(count))
        assert "lost" not in quick.verdict
        if policy == "block":
            assert slow.verdict == "pending"
            assert details(await take(slow, count)) == list(range(count))
            assert slow.verdict.startswith("repaired(")
        elif policy == "drop_oldest":
            left = slow.queued
            assert left <= 64
            assert details(await take(slow, left)) == list(range(count - left, count))
            assert slow.verdict == f"lost([1, {count - left}])"
            assert slow.dropped == count - left
        else:
            with pytest.raises(SlowConsumer):
                await take(slow, count)


async def test_a_paused_program_holds_publishers_back_and_then_goes_on_with_everything() -> None:
    count = 30_000
    async with (
        a_hub(topics={"ring_events": 10_000}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        spokes(hub.ticket, "sub", options=SMALL) as (sub,),
        sub.subscribe("a", patience=60) as events,
    ):
        await sub.call("hub.topics")
        publishing = asyncio.create_task(_publish(pub, count))
        await until(lambda: hub.router.topics.channels.get("a") and hub.router.topics.channels["a"].ring.held)
        assert not publishing.done()
        assert events.verdict == "pending"
        assert details(await take(events, count)) == list(range(count))
        await publishing
        assert "lost" not in events.verdict
        assert Numbers(hub)("events_lost_total") == 0


async def _publish(pub: Any, count: int) -> None:
    for number in range(count):
        await pub.publish("a", number)
    await pub.flush()


async def test_a_paused_subscription_starves_no_other_of_its_spoke_neither_while_it_lasts_nor_after() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub") as (pub,),
        spokes(hub.ticket, "sub", options=SMALL) as (sub,),
        sub.subscribe(">") as wide,
    ):
        async with sub.subscribe("a") as unread:
            await sub.call("hub.topics")
            for number in range(3_000):
                await pub.publish("a", number)
                if number == 500:
                    await until(lambda: unread.paused)
                    await sub.call("hub.topics")  # the hub has heard of it
                if number % 500 == 499:
                    assert details(await take(wide, 500)) == list(range(number - 499, number + 1))
        for number in range(1_000):
            await pub.publish("a", number)
        assert details(await take(wide, 1_000)) == list(range(1_000))
        assert "lost" not in wide.verdict


async def test_a_second_subscription_does_not_make_a_lagging_one_forget_what_it_has_not_got() -> None:
    """A new author appears while all of a spoke is paused; then a second subscription asks for "from now on"."""
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "x", "y") as (x, y),
        spokes(hub.ticket, "s", options=SMALL) as (sub,),
        sub.subscribe("a", patience=60) as first,
    ):
        await sub.call("hub.topics")
        for number in range(2_000):
            await x.publish("a", number)
        await until(lambda: (channel := hub.router.topics.channels.get("a")) and channel.paused)
        for number in range(50):
            await y.publish("a", number)
        await y.flush()
        async with sub.subscribe("a") as second:
            await sub.call("hub.topics")
            await y.publish("a", 50)
            got = await take(first, 2_051)
            of_y = [event.detail for event in got if event.author == y.node_id]
            assert of_y == list(range(51))
            assert [event.detail for event in got if event.author == x.node_id] == list(range(2_000))
            assert "lost" not in first.verdict
            assert [event.detail for event in await take(second, 1)] == [50]


async def test_a_topic_too_many_makes_room_and_nobody_waits_for_ever() -> None:
    async with (
        a_hub(topics={"most_topics": 10}) as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe(">") as events,
    ):
        await sub.call("hub.topics")
        for number in range(100):
            await pub.publish(f"t.{number}", number)
        assert sorted(details(await take(events, 100))) == list(range(100))
        await pub.flush(PATIENCE)
        assert len(hub.router.topics.channels) <= 10
        assert events.verdict == "complete"


async def test_the_hub_keeps_its_bound_of_bytes() -> None:
    pad = "x" * 10_000
    config = {"log_bytes_total": 1_048_576}
    async with (
        a_hub(topics=config) as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe(">") as events,
    ):
        await sub.call("hub.topics")
        for _ in range(
            25
        ):  # few at a time: who lags is overtaken when the bound is reached, and that is not the matter here
            for number in range(20):
                await pub.publish(f"t.{number % 5}", pad)
            await take(events, 20)
        await pub.flush(PATIENCE)
        assert 0 < Numbers(hub)("ring_bytes") <= 1_048_576
        assert Numbers(hub)("ring_bytes") == sum(one.ring.bytes for one in hub.router.topics.channels.values())
        assert events.verdict == "complete"


async def test_a_long_hole_of_large_events_is_repaired_in_one_go() -> None:
    """More than a connection's queue takes: a repair goes on as the queue drains."""
    pad = "x" * 20_000
    async with a_hub() as hub, spokes(hub.ticket, "pub") as (pub,), a_peer(hub.ticket, drains=True) as peer:
        for _ in range(300):
            await pub.publish("a", pad)
        await pub.flush()
        (author, epoch, newest) = hub.router.topics.channels["a"].ring.heads()[0]
        place = {"topic": "a", "author": author, "epoch": epoch}
        peer.say("topic.repair", {**place, "from": 1, "to": 400})
        await until(lambda: sum(message["type"] == "a" for message in peer.received) == 300)
        assert newest == 300
        assert [message["meta"]["seq"] for message in peer.received if message["type"] == "a"] == list(range(1, 301))
        assert Numbers(hub)("events_repaired_total", topic="a") == 300


async def test_reconnecting_with_two_subscriptions_of_one_topic() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe("a") as first,
        sub.subscribe("a", since="start") as second,
    ):
        await sub.call("hub.topics")
        for number in range(100):
            await pub.publish("a", number)
        await take(first, 100)
        cut(hub, "sub")
        for number in range(100, 200):
            await pub.publish("a", number)
        assert details(await take(first, 100)) == list(range(100, 200))
        assert details(await take(second, 200)) == list(range(200))
        assert "lost" not in first.verdict + second.verdict
