"""Datagrams through a hub: who gets them, what is refused and counted, and that no verdict and no event is touched."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from broker import Event, Spoke
from broker.errors import EventTooLarge, TopicError
from broker.hub import datagrams
from broker.spoke.subscription import DATAGRAMS
from broker.targets.event_target import Event as TargetEvent
from broker.targets.iroh import create_spoke_iroh_event_target
from broker.targets.iroh_endpoint import IrohEndpoint
from tests.rig import Numbers, Peer, a_hub, a_peer, conn_of, details, spokes, take, until

FLOOD = 10_000


async def fly(spoke: Spoke, topic: str, details: range) -> None:
    """Many, with turns for the network in between."""
    for n in details:
        await spoke.publish(topic, n, carrier="datagram")
        if n % 64 == 0:
            await asyncio.sleep(0)


def fling(peer: Peer, payload: bytes) -> None:
    assert peer.conn is not None
    assert peer.endpoint.send_datagram(peer.conn, payload)


async def test_subscribers_get_them_marked_and_no_verdict_speaks_of_them() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub", "other") as (pub, sub, other),
        sub.subscribe("a.*") as star,
        sub.subscribe("a.x", carrier="datagram") as alone,
        other.subscribe("b") as elsewhere,
    ):
        await sub.call("hub.topics")
        await other.call("hub.topics")
        assert await pub.publish("a.x", {"n": 1}, carrier="datagram") == ("", 0)
        (event,) = await take(star, 1)
        assert (event.type, event.detail, event.author, event.seq) == ("a.x", {"n": 1}, pub.node_id, 0)
        assert not event.reliable
        assert event.meta["carrier"] == "datagram"
        assert details(await take(alone, 1)) == [{"n": 1}]
        await pub.publish("a.x", {"n": 2})
        (event,) = await take(star, 1)
        assert (event.detail, event.reliable, event.seq) == ({"n": 2}, True, 1)
        await pub.flush()
        await sub.call("hub.topics")
        assert (alone.queued, alone.verdict, alone.verdicts) == (0, "unknown", [])
        assert [(one.topic, one.received, one.word) for one in star.verdicts] == [("a.x", 1, "complete")]
        assert (star.datagrams, alone.datagrams, elsewhere.datagrams, elsewhere.queued) == (1, 1, 0, 0)
        numbers = Numbers(hub)
        assert numbers("events_published_total", carrier="datagram") == 1
        assert numbers("events_delivered_total", carrier="datagram") == 1, "one copy a connection"
        assert numbers("events_published_total", carrier="stream") == 1
        assert "a.x" in hub.router.topics.channels, "of the event"
        assert pub.counts()["datagrams_sent"] == sub.counts()["datagrams_received"] == 1
        assert (pub.counts()["published"], sub.counts()["received"]) == (1, 1)


async def test_a_listener_and_a_subscriber_that_comes_later_get_them_and_one_that_left_does_not() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub", "sub") as (pub, sub):
        async with sub.subscribe("t") as first:
            await sub.call("hub.topics")
            await pub.publish("t", 1, carrier="datagram")
            assert details(await take(first, 1)) == [1]
        await sub.call("hub.topics")
        await pub.publish("t", 2, carrier="datagram")
        await pub.call("hub.topics")
        await until(lambda: Numbers(hub)("events_published_total", carrier="datagram") == 2)
        async with sub.subscribe("t") as second:
            await sub.call("hub.topics")
            await pub.publish("t", 3, carrier="datagram")
            assert details(await take(second, 1)) == [3]
        assert Numbers(hub)("events_delivered_total", carrier="datagram") == 2


async def test_one_over_the_limit_names_it_and_one_of_the_limit_goes() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe("t") as events,
    ):
        await sub.call("hub.topics")
        assert pub.endpoint is not None
        with pytest.raises(EventTooLarge, match="above the path's limit of") as refused:
            await pub.publish("t", "x" * 70_000, carrier="datagram")
        limit = refused.value.limit
        assert limit is not None
        assert 1_000 < limit < 70_000
        spare = limit - (refused.value.size - 70_000)
        await pub.publish("t", "x" * spare, carrier="datagram")
        assert details(await take(events, 1)) == ["x" * spare]
        assert pub.counts()["datagrams_sent"] == 1


async def test_what_is_refused_is_counted_by_reason_and_ends_nothing() -> None:
    config: dict[str, Any] = {"access": {"scopes": {"w": {"publish": ["mine"]}}, "default": ["w"]}}
    async with a_hub(**config) as hub, a_peer(hub.ticket, name="raw") as peer:
        event = {"type": "mine", "detail": 1}
        cases = {
            "bad": [b"not JSON", b"[]", b"\xff", b'{"detail": 1}', b"[" * 600],
            "reserved": [b'{"type":"hub.register","detail":{}}', b'{"type":"call.requested"}', b'{"type":"__x"}'],
            "bad_topic": [b'{"type":"a b"}', b'{"type":"a.*"}', b'{"type":""}'],
            "denied": [b'{"type":"theirs","detail":1}'],
        }
        for payloads in cases.values():
            for payload in payloads:
                fling(peer, payload)
        fling(peer, orjson.dumps(event))
        await until(lambda: Numbers(hub)("events_published_total", carrier="datagram") == 1)
        numbers = Numbers(hub)
        for reason, payloads in cases.items():
            assert numbers("datagrams_dropped_total", direction="in", reason=reason) == len(payloads), reason
        assert numbers("datagrams_total", direction="in") == sum(map(len, cases.values())) + 1
        assert peer.ended is None
        assert not [message for message in peer.received if message["type"] == "hub.error"], "nobody is told"


async def test_the_author_is_stamped_and_a_place_in_a_sequence_is_taken_off() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub") as (sub,),
        sub.subscribe("t") as events,
        a_peer(hub.ticket, name="raw") as peer,
    ):
        await sub.call("hub.topics")
        forged = {"author": "f" * 64, "epoch": "0" * 16, "seq": 7, "id": "kept"}
        fling(peer, orjson.dumps({"type": "t", "detail": 1, "meta": forged}))
        (event,) = await take(events, 1)
        assert event.meta == {"author": peer.endpoint.node_id, "id": "kept", "carrier": "datagram"}
        fling(peer, orjson.dumps({"type": "t", "detail": 2, "meta": 7}))
        assert (await take(events, 1))[0].author == peer.endpoint.node_id
        assert events.verdicts == []


async def test_over_the_rate_they_are_dropped_and_the_acknowledgements_of_events_do_not_wait() -> None:
    async with a_hub(limits={"publish_rate_per_node": 50}) as hub, spokes(hub.ticket, "pub") as (pub,):
        await fly(pub, "t", range(200))
        await until(
            lambda: (
                Numbers(hub)("events_published_total", carrier="datagram")
                + Numbers(hub)("datagrams_dropped_total", reason="over_rate")
                == 200
            )
        )
        assert 50 <= Numbers(hub)("events_published_total", carrier="datagram") < 100
        await pub.publish("t", 1)
        await pub.flush()


async def test_ten_thousand_to_a_reader_that_does_not_read() -> None:
    """Its queue is bounded and counted; its own events, and everybody else's, are whole."""
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "slow", "other") as (pub, slow, other),
        slow.subscribe("t") as unread,
        other.subscribe("t") as read,
    ):
        await slow.call("hub.topics")
        await other.call("hub.topics")
        reading = asyncio.create_task(_reads(read, "end"))
        for n in range(0, FLOOD, 1_000):
            await fly(pub, "t", range(n, n + 1_000))
            await pub.publish("t", f"event {n}")
        await pub.publish("t", "end")
        await pub.flush()
        got = await reading
        assert [one.detail for one in got if one.reliable] == [*(f"event {n}" for n in range(0, FLOOD, 1_000)), "end"]
        assert read.verdict == "complete"
        await until(lambda: unread.queued >= min(unread.datagrams, DATAGRAMS) + 11)
        assert unread.queued == min(unread.datagrams, DATAGRAMS) + 11
        assert unread.datagrams_dropped == max(unread.datagrams - DATAGRAMS, 0) > 0
        events = await take(unread, 11)
        assert all(one.reliable for one in events), "what has a number is read first"
        assert (unread.verdict, unread.dropped) == ("complete", 0)
        newest = [one.detail for one in await take(unread, DATAGRAMS)]
        assert newest == sorted(newest), "on one path of loopback nothing overtakes"
        assert newest[0] > 0, "the oldest went"
        numbers = Numbers(hub)
        sent = numbers("events_published_total", carrier="datagram")
        assert sent + numbers("datagrams_dropped_total", direction="in") + pub.counts()["datagrams_unsent"] <= FLOOD
        assert numbers("slow_consumers") == 0
        assert numbers("events_lost_total") == numbers("events_repaired_total") == 0


async def _reads(events: Any, last: str) -> list[Event]:
    got: list[Event] = []
    async for event in events:
        got.append(event)
        if event.detail == last:
            break
    return got


async def test_one_whose_path_takes_less_is_left_out_and_counted() -> None:
    """The hub's own limit is larger than the subscriber's path when it stamps what was sent without an author."""
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub") as (sub,),
        sub.subscribe("t") as events,
        a_peer(hub.ticket, name="raw") as peer,
    ):
        await sub.call("hub.topics")
        assert peer.conn is not None
        ways = ((peer.endpoint, peer.conn), (hub.router.endpoint, conn_of(hub, "sub")))
        # Each path finds its own MTU; the stamp is more than what is between two above this.
        await until(lambda: all((endpoint.max_datagram_size(conn) or 0) > 1_400 for endpoint, conn in ways))
        limit = peer.endpoint.max_datagram_size(peer.conn)
        assert limit is not None
        empty = orjson.dumps({"type": "t", "detail": ""})
        fling(peer, orjson.dumps({"type": "t", "detail": "x" * (limit - len(empty))}))
        await until(lambda: Numbers(hub)("datagrams_dropped_total", direction="out", reason="too_large") == 1)
        assert Numbers(hub)("events_dropped_total", carrier="datagram") == 1
        fling(peer, orjson.dumps({"type": "t", "detail": "fits"}))
        assert (await take(events, 1))[0].detail == "fits"


async def test_topics_are_remembered_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "MAX_WAYS", 4)
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe(">") as events,
    ):
        await sub.call("hub.topics")
        for n in (*range(8), 0):
            await pub.publish(f"t{n}", n, carrier="datagram")
        assert details(await take(events, 9)) == [*range(8), 0]
        assert list(hub.router.datagrams._ways) == ["t5", "t6", "t7", "t0"]


async def test_without_a_hub_they_are_counted_and_nobody_waits() -> None:
    spoke = Spoke("alone")
    assert await spoke.publish("t", 1, carrier="datagram") == ("", 0)
    assert spoke.counts()["datagrams_unsent"] == 1
    with pytest.raises(TopicError):
        await spoke.publish("hub.x", 1, carrier="datagram")


async def test_bad_ones_from_a_hub_are_counted_and_end_nothing() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "sub") as (sub,), sub.subscribe("t") as events:
        await sub.call("hub.topics")
        conn = conn_of(hub, "sub")
        for payload in (
            b"",
            b"{",
            b'{"type":"call.requested","detail":{}}',
            b'{"type":"t","detail":1,"meta":{"seq":9}}',
        ):
            hub.router.endpoint.send_datagram(conn, payload)
        (event,) = await take(events, 1)
        assert (event.detail, event.reliable, event.seq) == (1, False, 0)
        assert sub.counts()["datagrams_bad"] == 3
        assert sub.connected


async def test_an_event_target_sends_and_gets_them() -> None:
    """``dispatch_event(event, reliable=False)``, and the hub's router behind it."""
    async with a_hub() as hub, spokes(hub.ticket, "sub") as (sub,), sub.subscribe("t") as events:
        await sub.call("hub.topics")
        async with await IrohEndpoint.bind() as endpoint:
            connection = await endpoint.connect(hub.ticket)
            target = await create_spoke_iroh_event_target(connection)
            heard: asyncio.Queue[Any] = asyncio.Queue()
            target.add_event_listener("t", heard.put_nowait)
            target.dispatch_event(TargetEvent("hub.register", {"operations": []}))
            target.dispatch_event(TargetEvent("__subscribe", {"topics": ["t"]}))
            await until(lambda: len(hub.router.topics.subscriptions.match("t")) == 2)
            target.dispatch_event(TargetEvent("t", 1), reliable=False)
            assert (await take(events, 1))[0].detail == 1
            got = await asyncio.wait_for(heard.get(), 20)
            assert (got.detail, got.meta["author"]) == (1, endpoint.node_id)
