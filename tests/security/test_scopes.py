"""What scopes allow, and nothing else, at a real hub: calls, offers, publishing, subscribing."""

from __future__ import annotations

from typing import Any

import pytest

from broker import Hub, connect
from broker.errors import AccessDenied
from broker.spoke.answers import current_call
from tests.rig import FAST, PATIENCE, Numbers, a_peer, serving, spokes, until
from tests.security.rig import config_with, identity

SCOPES = {
    "user": {"call": ["stock.*", "hub.spokes"], "subscribe": ["orders.>"], "publish": ["carts.*"]},
    "shop": {"offer": ["stock.get"], "publish": ["orders.*"]},
}


async def who() -> Any:
    call = current_call.get()
    assert call is not None
    return call.identity


async def get() -> str:
    return "got"


async def test_calls_beyond_the_scopes_are_denied_and_identity_carries_the_scopes() -> None:
    (server, server_id), (user, user_id) = identity(), identity()
    scopes = {**SCOPES, "shop": {"offer": ["stock.*", "till.*"]}}
    async with (
        Hub(config_with(scopes, {server_id: ["shop"], user_id: ["user"]})) as hub,
        serving(hub.ticket, "server", secret=server, stock__who=who, till__open=get),
        connect(hub.ticket, secret=user, options=FAST, timeout=PATIENCE) as spoke,
    ):
        seen = await spoke.call("stock.who")
        assert (seen["id"], seen["scopes"]) == (user_id, ["user"])
        assert await spoke.call("hub.spokes")
        for operation in ("till.open", "hub.topics", "no.such", "x" * 10_000):
            with pytest.raises(AccessDenied, match=r"scopes \(user\) do not let it call"):
                await spoke.call(operation)
        assert Numbers(hub)("calls_total", operation="till.open") == 0
        assert Numbers(hub)("calls_total", operation="other", code="ACCESS_DENIED") == 4


async def test_a_denied_call_under_the_id_of_a_live_one_does_not_end_that() -> None:
    secret, node_id = identity()
    scopes = {"user": {"call": ["slow.*"], "offer": ["slow.*"]}}
    async with (
        Hub(config_with(scopes, {node_id: ["user"]})) as hub,
        a_peer(hub.ticket, secret=secret, operations=("slow.one",)) as peer,
    ):
        peer.say("call.requested", {"requestId": "1", "operationId": "slow.one", "input": None})
        asked = await peer.hears("call.requested")
        peer.say("call.requested", {"requestId": "1", "operationId": "other", "input": None})
        assert await peer.hears("hub.error", code="VALIDATION_ERROR")
        peer.say("call.responded", {"requestId": asked["requestId"], "output": 7})
        assert (await peer.hears("call.responded", requestId="1"))["output"] == 7


async def test_operations_beyond_the_scopes_are_left_out_and_complained_about() -> None:
    secret, node_id = identity()
    async with (
        Hub(config_with(SCOPES, {node_id: ["shop"]}, ["user"])) as hub,
        a_peer(hub.ticket, secret=secret, operations=("stock.get", "stock.set", "till.open")) as peer,
    ):
        for id in ("stock.set", "till.open"):
            assert (await peer.hears("hub.error", about=id))["action"] == "offer"
        offered = {row.id for row, _ in hub.router.calls.operations() if not row.id.startswith("hub.")}
        assert offered == {"stock.get"}


async def test_publishing_beyond_the_scopes_raises_and_reaches_nobody() -> None:
    secret, node_id = identity()
    scopes = {**SCOPES, "all": {"subscribe": [">"]}}
    async with (
        Hub(config_with(scopes, {node_id: ["shop"]}, ["all"])) as hub,
        spokes(hub.ticket, "watch") as (watch,),
        connect(hub.ticket, secret=secret, options=FAST, timeout=PATIENCE) as author,
        watch.subscribe(">") as events,
    ):
        await until(lambda: len(hub.router.topics.subscriptions))
        await author.publish("carts.new", 1)
        with pytest.raises(AccessDenied, match="do not let it publish"):
            await author.flush()
        with pytest.raises(AccessDenied, match="do not let it publish"):
            await author.publish("carts.new", 2)
        await author.publish("orders.new", 3)
        event = await anext(events)
        assert (event.type, event.detail) == ("orders.new", 3)
        assert "carts.new" not in hub.router.topics.channels


async def test_an_author_without_the_scope_cannot_announce_a_topic_either() -> None:
    async with Hub(config_with(SCOPES, {}, ["user"])) as hub, a_peer(hub.ticket) as peer:
        peer.say("topic.head", {"topic": "orders.new", "epoch": "0" * 16, "seq": 9, "first": 1, "acked": 0})
        assert (await peer.hears("hub.error", code="ACCESS_DENIED", about="orders.new"))["action"] == "publish"
        assert not hub.router.topics.channels


async def test_subscribing_beyond_the_scopes_ends_with_access_denied() -> None:
    async with Hub(config_with(SCOPES, {}, ["user"])) as hub, spokes(hub.ticket, "user") as (user,):
        for pattern in ("carts.new", ">", "*.new", "orders"):
            async with user.subscribe(pattern) as events:
                with pytest.raises(AccessDenied, match="do not let it subscribe"):
                    await anext(events)
        async with user.subscribe("orders.*"):
            await until(lambda: hub.router.topics.subscriptions.rows() == [("orders.*", 1)])


async def test_a_repair_is_no_way_around_a_subscription() -> None:
    secret, node_id = identity()
    scopes = {**SCOPES, "user": {"subscribe": ["orders.>"]}}
    async with Hub(config_with(scopes, {node_id: ["user"]}, ["shop"])) as hub, spokes(hub.ticket, "shop") as (shop,):
        epoch, seq = await shop.publish("orders.new", "secret")
        await shop.flush()
        ask = {"topic": "orders.new", "author": shop.node_id, "epoch": epoch, "from": seq, "to": seq}
        async with a_peer(hub.ticket) as peer, a_peer(hub.ticket, secret=secret) as allowed:
            peer.say("topic.repair", ask)
            assert (await peer.hears("hub.error", code="ACCESS_DENIED"))["action"] == "subscribe"
            allowed.say("topic.repair", ask)
            got: Any = await allowed.hears("orders.new")
            assert got == "secret"
            assert "orders.new" not in {message["type"] for message in peer.received}


async def test_a_topic_and_an_operation_of_one_name_are_denied_apart() -> None:
    secret, node_id = identity()
    scopes = {"reader": {"subscribe": ["a.b"]}, "writer": {"publish": ["a.b"]}}
    async with (
        Hub(config_with(scopes, {node_id: ["writer"]}, ["reader"])) as hub,
        spokes(hub.ticket, "reader") as (reader,),
        connect(hub.ticket, secret=secret, options=FAST, timeout=PATIENCE) as writer,
        reader.subscribe("a.b") as events,
    ):
        await until(lambda: len(hub.router.topics.subscriptions))
        reader.offer("a.b", lambda input, call: get())
        await reader.publish("a.b", 1)
        with pytest.raises(AccessDenied):
            await reader.flush()
        await writer.publish("a.b", 2)
        assert (await anext(events)).detail == 2


async def test_without_scopes_the_admitted_may_everything() -> None:
    async with Hub(config_with({}, {})) as hub, spokes(hub.ticket, "a", "b") as (a, b):
        a.offer("any.thing", lambda input, call: get())
        async with b.subscribe(">") as events:
            await until(lambda: len(hub.router.topics.subscriptions))
            await a.publish("any.topic", 1)
            assert (await anext(events)).detail == 1
        await until(lambda: any(row.id == "any.thing" for row, _ in hub.router.calls.operations()))
        assert await b.call("any.thing") == "got"
