"""Our spoke against a hub of upstream's kind, written on PyPI's ``iroh`` alone: it knows type and detail, no
acknowledgement, no sequence, no credit and no roll-call. What of ours depends on these must do without them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from broker import Spoke, connect
from broker.errors import ExecutionFailed, OperationNotFound
from broker.protocol.ticket import Ticket
from tests.interop.foreign import PATIENCE, ForeignHub, foreign_hub

BURST = 6_000
"""More than a publication keeps unacknowledged."""


@pytest.fixture
async def hub() -> AsyncIterator[ForeignHub]:
    async def greet(input: Any) -> Any:
        return f"hello {input['name']}"

    async def refuse(input: Any) -> Any:
        raise ValueError("not today")

    async with foreign_hub({"hub.greet": greet, "hub.refuse": refuse}) as hub:
        yield hub


def ticket(hub: ForeignHub) -> str:
    return Ticket(hub.node_id, tuple(hub.addrs)).encode()


@pytest.fixture
async def spoke(hub: ForeignHub) -> AsyncIterator[Spoke]:
    async with connect(ticket(hub), name="ours") as spoke:
        yield spoke


async def subscribed(hub: ForeignHub, topic: str, count: int = 1) -> None:
    """The hub has heard of so many subscribers."""
    peer = await hub.spoke()
    await peer.hears(lambda message: message["type"] == "__subscribe" and topic in message["detail"]["topics"], count)


async def test_registers_and_keeps_the_connection(hub: ForeignHub, spoke: Spoke) -> None:
    peer = await hub.spoke()
    registration = await peer.hears_type("hub.register")
    assert registration["detail"]["name"] == "ours"
    assert spoke.connected
    assert spoke.hub_node_id == hub.node_id


async def test_calls(hub: ForeignHub, spoke: Spoke) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await spoke.call("hub.greet", {"name": "world"}) == "hello world"
        with pytest.raises(ExecutionFailed, match="not today"):
            await spoke.call("hub.refuse", {})
        with pytest.raises(OperationNotFound):
            await spoke.call("nobody.offers.this")


async def test_serves(hub: ForeignHub) -> None:
    app = Spoke("app")

    @app.operation("app.add")
    async def add(a: int, b: int) -> int:
        return a + b

    app.start(ticket(hub))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(app.close)
        await app.wait_connected(PATIENCE)
        peer = await hub.spoke()
        registration = await peer.hears_type("hub.register")
        assert [operation["id"] for operation in registration["detail"]["operations"]] == ["app.add"]
        answer = await peer.call("app.add", {"a": 1, "b": 2})
        assert (answer["type"], answer["detail"]["output"]) == ("call.responded", 3)
        wrong = await peer.call("app.add", {"a": "x"})
        assert (wrong["type"], wrong["detail"]["code"]) == ("call.error", "VALIDATION_ERROR")
        async with connect(ticket(hub)) as other:
            assert await other.call("app.add", {"a": 20, "b": 22}) == 42


async def test_publishes_more_than_it_may_keep_and_flushes(hub: ForeignHub, spoke: Spoke) -> None:
    peer = await hub.spoke()
    async with asyncio.timeout(PATIENCE):
        for i in range(BURST):
            await spoke.publish("our.events", {"i": i})
        await spoke.flush()
        heard = await peer.hears_type("our.events", BURST)
    assert [message["detail"]["i"] for message in heard] == list(range(BURST))
    assert heard[0]["meta"]["author"] == spoke.node_id
    assert [message["meta"]["seq"] for message in heard] == list(range(1, BURST + 1))


async def test_subscribes_to_two_topics_without_meta(hub: ForeignHub, spoke: Spoke) -> None:
    async with spoke.subscribe("one") as one, spoke.subscribe("two") as two:
        await subscribed(hub, "one")
        await subscribed(hub, "two")
        peer = await hub.spoke()
        async with asyncio.timeout(PATIENCE):
            for i in range(500):
                await peer.send("one", {"i": i})
                await peer.send("two", {"i": -i})
            assert [(await anext(one)).detail["i"] for _ in range(500)] == list(range(500))
            assert [(await anext(two)).detail["i"] for _ in range(500)] == [-i for i in range(500)]
    unsubscribed = await peer.hears_type("__unsubscribe", 2)
    assert sorted(message["detail"]["topics"][0] for message in unsubscribed) == ["one", "two"]


async def test_a_subscription_that_begins_later_or_from_the_start_is_not_held_up(hub: ForeignHub, spoke: Spoke) -> None:
    peer = await hub.spoke()
    async with asyncio.timeout(PATIENCE), spoke.subscribe("t") as first:
        for i in range(3):
            await peer.send("t", i)
        assert [(await anext(first)).detail for _ in range(3)] == [0, 1, 2]
        async with spoke.subscribe("t", since="start") as from_start, spoke.subscribe("t") as later:
            await peer.send("t", 3)
            assert (await anext(first)).detail == 3
            assert (await asyncio.wait_for(anext(later), 2)).detail == 3
            assert (await asyncio.wait_for(anext(from_start), 2)).detail == 3


async def test_two_of_our_spokes_speak_over_it(hub: ForeignHub, spoke: Spoke) -> None:
    async with connect(ticket(hub)) as other, other.subscribe("shared") as events, asyncio.timeout(PATIENCE):
        second = await hub.spoke(1)
        await second.hears_type("__subscribe")
        for i in range(200):
            await spoke.publish("shared", i)
        assert [(await anext(events)).detail for _ in range(200)] == list(range(200))
        assert events.verdict == "unknown", "such a hub does not say what there was to hear"


async def test_a_stream_longer_than_a_window_and_a_roll_call(hub: ForeignHub, spoke: Spoke) -> None:
    """It never gives credit, and asks one spoke where we would have all asked."""
    app = Spoke("app")

    @app.operation("app.count")
    async def count(to: int) -> AsyncIterator[int]:
        for i in range(to):
            yield i

    app.start(ticket(hub))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(app.close)
        await app.wait_connected(PATIENCE)
        peer = await hub.spoke(1)
        asked = {"requestId": "r", "operationId": "app.count", "input": {"to": 1_000}}
        async with asyncio.timeout(PATIENCE):
            await peer.send("call.requested", asked)
            heard = await peer.hears_type("call.responded", 1_000)
            await peer.hears_type("call.completed")
        assert [message["detail"]["output"] for message in heard] == list(range(1_000))
        roll = await spoke.roll_call("hub.greet", {"name": "all"}, timeout=PATIENCE)
        assert [(answer.node_id, answer.output) for answer in roll.answers] == [(spoke.hub_node_id, "hello all")]


async def test_comes_back_after_the_connection_went(hub: ForeignHub, spoke: Spoke) -> None:
    async with asyncio.timeout(PATIENCE), spoke.subscribe("t") as events:
        first = await hub.spoke()
        await first.hears_type("__subscribe")
        await first.send("t", 1)
        assert (await anext(events)).detail == 1
        first.connection.close(1, b"going away")
        second = await hub.spoke(1)
        await second.hears_type("__subscribe")
        await second.send("t", 2)
        assert (await anext(events)).detail == 2
        assert await spoke.call("hub.greet", {"name": "again"}) == "hello again"
        await spoke.publish("u", "after")
        assert (await second.hears_type("u"))["detail"] == "after"
