"""The limits of a NodeId: each is met over several connections, has its own error and count, and harms nobody else."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import connect
from broker.events import Event
from broker.hub import limits
from broker.hub.limits import Bucket
from broker.protocol.wire import CloseCode
from broker.spoke.subscription import Subscription
from tests.rig import FAST, PATIENCE, Numbers, a_hub, a_peer, serving, spokes, until
from tests.security.rig import identity


async def test_connections() -> None:
    secret, _ = identity()
    async with (
        a_hub(limits={"connections_per_node": 2}) as hub,
        a_peer(hub.ticket, secret=secret),
        a_peer(hub.ticket, secret=secret) as second,
        a_peer(hub.ticket, hello=False, secret=secret) as third,
    ):
        third.say("hub.register", {"operations": []})
        code, reason = await third.end()
        assert (code, "limits.connections_per_node" in reason) == (CloseCode.LIMIT, True)
        assert Numbers(hub)("limited_total", limit="connections") == 1
        async with spokes(hub.ticket, "another"):
            pass
        second.close()
        await until(lambda: len(hub.router.sessions) == 1)
        async with a_peer(hub.ticket, secret=secret):
            pass


async def test_calls_in_flight() -> None:
    secret, _ = identity()
    go = asyncio.Event()

    async def slow() -> str:
        await go.wait()
        return "done"

    async with (
        a_hub(limits={"calls_in_flight_per_node": 3}) as hub,
        serving(hub.ticket, "server", t__slow=slow),
        a_peer(hub.ticket, secret=secret) as one,
        a_peer(hub.ticket, secret=secret) as two,
        spokes(hub.ticket, "another") as (another,),
    ):
        request = {"operationId": "t.slow", "input": None}
        for number in range(2):
            one.say("call.requested", {"requestId": str(number), **request})
        await until(lambda: len(hub.router.calls) == 2)
        for number in range(2):
            two.say("call.requested", {"requestId": str(number), **request})
        error = await two.hears("call.error", requestId="1")
        assert (error["code"], error["details"]) == (
            "EXECUTION_ERROR",
            {"retryable": True, "limit": "calls_in_flight"},
        )
        assert "limits.calls_in_flight_per_node" in error["message"]
        assert Numbers(hub)("limited_total", limit="calls_in_flight") == 1
        assert await another.call("hub.spokes")
        go.set()
        for peer, id in ((one, "0"), (one, "1"), (two, "0")):
            assert (await peer.hears("call.responded", requestId=id))["output"] == "done"
        two.say("call.requested", {"requestId": "1", **request})
        assert await two.hears("call.responded", requestId="1")


async def test_operations() -> None:
    async with (
        a_hub(limits={"operations_per_peer": 2}) as hub,
        a_peer(hub.ticket, operations=("t.a", "t.b", "t.c", "t.d")) as one,
        a_peer(hub.ticket, operations=("t.a", "t.e")),
        spokes(hub.ticket, "another") as (another,),
    ):
        complaint = await one.hears("hub.error", code="LIMIT", about="t.c")
        assert (complaint["action"], "limits.operations_per_peer" in complaint["message"]) == ("offer", True)
        assert Numbers(hub)("limited_total", limit="operations") == 1
        offered = [row["operation"] for row in await another.call("hub.operations")]
        assert [id for id in offered if id.startswith("t.")] == ["t.a", "t.b", "t.e"]
        one.say("hub.register", {"operations": [{"id": "t.c", "kind": "query"}]})
        await until(lambda: "t.c" in [row.id for row, _ in hub.router.calls.operations()])
        assert Numbers(hub)("limited_total", limit="operations") == 1


async def test_subscriptions() -> None:
    secret, _ = identity()
    async with (
        a_hub(limits={"subscriptions_per_node": 3}) as hub,
        a_peer(hub.ticket, secret=secret) as one,
        a_peer(hub.ticket, secret=secret) as two,
    ):
        one.say("__subscribe", {"topics": ["a", "b"]})
        await until(lambda: len(hub.router.topics.subscriptions) == 2)
        two.say("__subscribe", {"topics": ["c", "d"]})
        complaint = await two.hears("hub.error", code="LIMIT", about="d")
        assert (complaint["action"], "limits.subscriptions_per_node" in complaint["message"]) == ("subscribe", True)
        one.say("__subscribe", {"topics": ["a", "b"]})  # what it has already takes no room
        one.say("__unsubscribe", {"topics": ["a"]})
        two.say("__subscribe", {"topics": ["d"]})
        await until(lambda: hub.router.topics.subscriptions.rows() == [("b", 1), ("c", 1), ("d", 1)])
        assert Numbers(hub)("limited_total", limit="subscriptions") == 1
        async with spokes(hub.ticket, "another") as (another,), another.subscribe("x", "y", "z"):
            await until(lambda: len(hub.router.topics.subscriptions) == 6)


async def test_over_the_publish_rate_an_author_is_slowed_and_nothing_is_lost() -> None:
    count, rate = 6_000, 2_000.0  # more than may wait unacknowledged, and reached by a busy machine too
    async with (
        a_hub(limits={"publish_rate_per_node": rate}) as hub,
        spokes(hub.ticket, "author", "reader") as (author, reader),
        reader.subscribe("t") as events,
    ):
        await until(lambda: len(hub.router.topics.subscriptions))
        reading = asyncio.create_task(read(events, count))
        began = time.monotonic()
        for number in range(count):
            await author.publish("t", number)
        await author.flush(PATIENCE)
        # The first second's worth is free. Slower is possible, faster is not.
        assert time.monotonic() - began >= (count - rate) / rate
        assert [event.detail for event in await reading] == list(range(count))
        assert events.verdict == "complete"
        assert Numbers(hub)("limited_total", limit="publish_rate") >= 1
        assert author.counts()["connects"] == 1


async def read(events: Subscription, count: int) -> list[Event]:
    return [await anext(events) for _ in range(count)]


async def test_an_author_that_does_not_heed_is_disconnected_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A spoke on many topics is far ahead of its rate before the first acknowledgement is due."""
    monkeypatch.setattr(limits, "MOST_AHEAD", 1_000)
    count, topics = 500, [f"t.{number}" for number in range(8)]
    async with (
        a_hub(limits={"publish_rate_per_node": 1_500.0}) as hub,
        spokes(hub.ticket, "author", "reader") as (author, reader),
        reader.subscribe("t.*") as events,
    ):
        await until(lambda: len(hub.router.topics.subscriptions))
        reading = asyncio.create_task(read(events, count * len(topics)))
        for number in range(count):
            for topic in topics:
                await author.publish(topic, number)
        await author.flush(PATIENCE)
        seen: dict[str, list[int]] = {topic: [] for topic in topics}
        for event in await reading:
            seen[event.type].append(event.detail)
        assert all(numbers == list(range(count)) for numbers in seen.values())
        assert not events.verdict.startswith("lost")
        assert author.counts()["connects"] > 1, "it was cut off, and came back"
        assert Numbers(hub)("disconnects_total", reason="limit") >= 1


async def test_an_author_without_meta_is_told() -> None:
    async with a_hub(limits={"publish_rate_per_node": 10.0}) as hub, a_peer(hub.ticket) as peer:
        for number in range(30):
            peer.say("a.b", number)
        complaint = await peer.hears("hub.error", code="LIMIT", about="a.b")
        assert "limits.publish_rate_per_node" in complaint["message"]
        await until(lambda: "a.b" in hub.router.topics.channels)
        await until(lambda: hub.router.topics.channels["a.b"].published == 30)
        assert Numbers(hub)("limited_total", limit="publish_rate") == 1


async def test_bytes_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOK_INTERVAL", 0.05)
    secret, _ = identity()
    async with (
        a_hub(limits={"queued_bytes_per_node": 500_000, "topics_queue_bytes": 400_000}) as hub,
        a_peer(hub.ticket, secret=secret, inbox_bytes=65_536) as one,
        a_peer(hub.ticket, secret=secret, inbox_bytes=65_536) as two,
        connect(hub.ticket, options=FAST, timeout=PATIENCE) as author,
    ):
        for peer in (one, two):
            peer.say("__subscribe", {"topics": ["t"], "policy": "drop_oldest"})
        await until(lambda: len(hub.router.topics.subscriptions) == 2)
        for peer in (one, two):
            peer.stop_reading()
        while not Numbers(hub)("limited_total", limit="queued_bytes"):
            await author.publish("t", "x" * 50_000)
            await author.flush()
        await until(lambda: len(hub.router.sessions) == 2)
        assert Numbers(hub)("disconnects_total", reason="limit") == 1
        for peer in (one, two):
            peer.resume()
        await until(lambda: one.ended or two.ended)
        code, reason = one.ended or two.ended or (None, "")
        assert (code, "limits.queued_bytes_per_node" in reason) == (CloseCode.LIMIT, True)


async def test_buckets_of_those_who_have_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOK_INTERVAL", 0.02)
    async with a_hub(limits={"publish_rate_per_node": 20.0}) as hub:
        async with a_peer(hub.ticket) as peer:
            for number in range(25):
                peer.say("a.b", number)
            await until(lambda: hub.router.of_node._buckets)
        await until(lambda: not hub.router.of_node._buckets)
        assert not hub.router.of_node._held
        assert not hub.router.of_node._timers


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50)), max_size=40), st.floats(1, 100))
def test_a_bucket_never_lets_more_than_its_rate_through(steps: list[tuple[float, int]], rate: float) -> None:
    bucket, now, taken = Bucket(rate, 0.0), 0.0, 0
    for wait, count in steps:
        now += wait
        owed = bucket.take(count, now)
        taken += count
        assert taken - owed <= rate + now * rate + 1e-6
