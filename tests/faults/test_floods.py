"""Every queue of a hub that others fill is flooded: each keeps its bound, counts that it was met, and whoever it
concerns is told. docs/guarantees.md lists them, with those that are flooded where they are at home; those of spokes are
in test_floods_at_spokes.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from broker import Hub
from broker import _gossip_ext as ext
from broker.errors import CallTimeout, ExecutionFailed
from broker.hub import places, readers, router
from broker.protocol.publication import UNACKED_EVENTS
from broker.protocol.wire import CloseCode
from tests.ext.pair import connect, node
from tests.ext.pair import hub as ext_hub
from tests.rig import PATIENCE, Numbers, Peer, a_hub, a_peer, conn_of, cut, serving, spokes, until

KIB = 1024


def spans(peer: Peer, topic: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The numbers that a peer got of the one author of a topic, and the ranges that were named lost to it."""
    got = [message["meta"]["seq"] for message in peer.received if message["type"] == topic]
    lost = [message["detail"] for message in peer.received if message["type"] == "topic.lost"]
    return got, [(one["from"], one["to"]) for one in lost if one["topic"] == topic]


def accounted(peer: Peer, topic: str) -> list[int]:
    """Everything that came or is named, in order: each number once, if all is right."""
    got, lost = spans(peer, topic)
    return sorted([*got, *(number for a, b in lost for number in range(a, b + 1))])


async def refusal(publishing: Awaitable[object]) -> str | None:
    """Why there was no room for an event in time."""
    try:
        await publishing
    except CallTimeout as error:
        return str(error)
    return None


async def stuck_subscriber(hub: Hub, peer: Peer, topic: str, **options: Any) -> None:
    """It subscribes, and takes nothing any more."""
    before = len(hub.router.topics.subscriptions)
    peer.say("__subscribe", {"topics": [topic], **options})
    await until(lambda: len(hub.router.topics.subscriptions) > before)
    peer.stop_reading()


# The hub: events


async def test_a_connections_queue_of_events() -> None:
    bound, size, count, most = 256 * KIB, 2 * KIB, 3_000, 0
    async with (
        a_hub(limits={"topics_queue_bytes": bound}, topics={"ring_events": 100}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
    ):
        await stuck_subscriber(hub, stuck, "a", policy="drop_oldest")
        for _ in range(count // 10):
            for _ in range(10):
                await pub.publish("a", "x" * size)
            await pub.flush(PATIENCE)
            most = max([most, *(queued for _, queued in hub.router.endpoint.queued())])
        assert bound // 2 < most <= bound
        numbers = Numbers(hub)
        assert numbers("full_queues_total") >= 1
        assert numbers("slow_consumers") == 1
        assert 0 < numbers("queue_bytes") <= bound
        stuck.resume()
        await until(lambda: len(accounted(stuck, "a")) >= count)
        assert accounted(stuck, "a") == list(range(1, count + 1)), "each came, or is named lost, once"
        got, _ = spans(stuck, "a")
        assert Numbers(hub)("events_lost_total", topic="a") == count - len(got) > 0


async def test_the_ring_of_a_topic_and_the_publishers_that_wait_for_it() -> None:
    capacity = UNACKED_EVENTS + 1_000  # a smaller one could not wait for anybody
    async with (
        a_hub(topics={"ring_events": capacity}, limits={"topics_queue_bytes": 64 * KIB}) as hub,
        spokes(hub.ticket, "one", "two", "three") as publishers,
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
    ):
        await stuck_subscriber(hub, stuck, "a", policy="block", patience=60)
        published, full = 0, None
        while full is None:
            full = await refusal(publishers[0].publish("a", "x" * 500, timeout=0.2))
            published += full is None
        assert f"no room for another event on a within 0.2 s: {UNACKED_EVENTS} wait" in full
        assert "a slow subscriber holds publishers back" in full
        assert capacity < Numbers(hub)("ring_events") <= 2 * capacity, "it grows for who blocks and has patience"
        assert Numbers(hub)("events_lost_total") == 0

        for other in publishers[1:]:  # what they send before they are acknowledged is more than it grows by
            for _ in range(UNACKED_EVENTS):
                await other.publish("a", "x" * 500)
                published += 1
        ring, most = hub.router.topics.channels["a"].ring, 0

        def overtaken() -> bool:
            nonlocal most
            most = max(most, len(ring))
            return hub.router.topics.channels["a"].published == published

        await until(overtaken)
        assert most <= 2 * capacity, "and no further"
        await asyncio.gather(*(one.flush(PATIENCE) for one in publishers))
        assert Numbers(hub)("ring_events") <= capacity
        stuck.resume()
        await until(lambda: len(accounted(stuck, "a")) >= published)
        assert len(accounted(stuck, "a")) == published
        assert Numbers(hub)("events_lost_total", topic="a") == published - len(spans(stuck, "a")[0]) > 0


async def test_a_subscriber_that_has_used_its_patience_has_no_more_of_it_for_going_away() -> None:
    """A process that stops dead is slow first, and gone when its connection has died of silence."""
    async with (
        a_hub(topics={"ring_events": UNACKED_EVENTS + 1_000}, limits={"topics_queue_bytes": 64 * KIB}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
        a_peer(hub.ticket, name="quick") as quick,
    ):
        await stuck_subscriber(hub, stuck, "a", policy="block", patience=0.3)
        quick.say("__subscribe", {"topics": ["a"], "policy": "block", "patience": 5})
        await until(lambda: len(hub.router.topics.subscriptions) == 2)
        await pub.publish("a", 0)
        await pub.flush(PATIENCE)
        ring = hub.router.topics.channels["a"].ring
        while not ring.demotions:
            await pub.publish("a", "x" * 500)
        cut(hub, "stuck")
        await until(lambda: len(hub.router.sessions) == 2)
        assert not len(hub.router.topics.places), "no place is kept for it"
        cut(hub, "quick")
        await until(lambda: len(hub.router.sessions) == 1)
        assert len(hub.router.topics.places) == 1, "who keeps up has all of its patience"


async def test_the_rings_of_all_topics() -> None:
    bound = 1_024 * KIB
    async with (
        a_hub(topics={"log_bytes_total": bound}, limits={"topics_queue_bytes": 64 * KIB}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
    ):
        await stuck_subscriber(hub, stuck, "t.0", policy="block", patience=60)
        for number in range(1_600):
            await pub.publish(f"t.{number % 4}", "x" * 10_000)
            assert Numbers(hub)("ring_bytes") <= bound + 512 * 10_200, "one batch at most before it is looked at"
        await pub.flush(PATIENCE)
        assert Numbers(hub)("ring_bytes") <= bound
        assert Numbers(hub)("limited_total", limit="log_bytes") >= 1
        stuck.resume()
        await until(lambda: len(accounted(stuck, "t.0")) >= 400)
        assert accounted(stuck, "t.0") == list(range(1, 401))
        assert Numbers(hub)("events_lost_total", topic="t.0") > 0, "also of one that would have blocked"


async def test_topics() -> None:
    async with (
        a_hub(topics={"most_topics": 10}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        a_peer(hub.ticket) as peer,
    ):
        for number in range(30):
            await pub.publish(f"t.{number}", number)
        await pub.flush(PATIENCE)  # whoever is ended is acknowledged first
        assert Numbers(hub)("topics") == 10
        assert Numbers(hub)("limited_total", limit="topics") == 20
        peer.say("__subscribe", {"topics": ["t.*"], "since": "start"})
        await until(lambda: sum(message["type"].startswith("t.") for message in peer.received) == 10)


async def test_repairs_that_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_REPAIRS_WAITING", 4)
    count = 60
    async with (
        a_hub(limits={"topics_queue_bytes": 64 * KIB}) as hub,
        spokes(hub.ticket, "pub") as (pub,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
    ):
        for _ in range(count):
            await pub.publish("a", "x" * 50_000)
        await pub.flush(PATIENCE)
        ((author, epoch, _),) = hub.router.topics.channels["a"].ring.heads()
        place = {"topic": "a", "author": author, "epoch": epoch}
        stuck.stop_reading()
        for number in range(1, count + 1):
            stuck.say("topic.repair", {**place, "from": number, "to": number})
        conn, waiting = conn_of(hub, "stuck"), hub.router.topics.readers._repairs

        def handled() -> float:
            numbers = Numbers(hub)
            assert len(waiting.get(conn, ())) <= 4
            return numbers("events_repaired_total") + numbers("limited_total") + len(waiting.get(conn, ()))

        await until(lambda: handled() == count)
        assert Numbers(hub)("limited_total", limit="repairs") > 0
        left_out = int(Numbers(hub)("limited_total", limit="repairs"))
        stuck.resume()
        await until(lambda: len(spans(stuck, "a")[0]) == count - left_out)
        for number in set(range(1, count + 1)).difference(spans(stuck, "a")[0]):  # as subscribers do, after a pause
            stuck.say("topic.repair", {**place, "from": number, "to": number})
            await until(lambda number=number: number in spans(stuck, "a")[0])  # type: ignore[misc]
        assert accounted(stuck, "a") == list(range(1, count + 1))


async def test_places_of_those_whose_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_PLACES", 2)
    async with a_hub() as hub, spokes(hub.ticket, "pub") as (pub,), AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(a_peer(hub.ticket, name=f"p{number}")) for number in range(5)]
        for peer in peers:
            peer.say("__subscribe", {"topics": ["a"], "patience": 60})
        await pub.publish("a", 1)
        await pub.flush()
        await until(lambda: len(hub.router.topics.subscriptions) == 5)
        for number in range(5):
            cut(hub, f"p{number}")
        await until(lambda: len(hub.router.sessions) == 1)
        assert len(hub.router.topics.places) == 2
        assert Numbers(hub)("limited_total", limit="places") == 3
        assert hub.router.topics.channels["a"].ring.readers == 2, "the ring waits for no more of them"


# The hub: calls and connections


async def echo(text: str) -> str:
    return text


async def test_a_connections_queue_of_calls_and_what_waits_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, held, big = 64 * KIB, 512 * KIB, "x" * 30_000
    monkeypatch.setattr(router, "MAX_HELD", held)
    most = [0, 0]
    async with (
        a_hub(limits={"calls_queue_bytes": lane}) as hub,
        serving(hub.ticket, "s", t__echo=echo),
        a_peer(hub.ticket, name="stuck", inbox_bytes=64 * KIB) as stuck,
    ):
        conn = conn_of(hub, "stuck")
        stuck.stop_reading()

        def look() -> bool:
            most[0] = max([most[0], *(size for one, size in hub.router.endpoint.queued() if one == conn)])
            most[1] = max(most[1], sum(map(len, hub.router._held.get(conn, []))))
            return conn not in hub.router.sessions

        for number in range(1_000):
            if look():
                break
            asked = Numbers(hub)("calls_total", operation="t.echo")
            stuck.say("call.requested", {"requestId": str(number), "operationId": "t.echo", "input": {"text": big}})
            await until(lambda asked=asked: look() or Numbers(hub)("calls_total", operation="t.echo") > asked)  # type: ignore[misc]
        assert 0 < most[0] <= lane
        assert 0 < most[1] <= held + 31_000, "the answer that was one too many is not kept for long"
        assert Numbers(hub)("full_queues_total") >= 1
        assert Numbers(hub)("disconnects_total", reason="slow_consumer") == 1
        stuck.resume()
        code, reason = await stuck.end()
        assert (code, "queue of calls" in reason) == (CloseCode.SLOW_CONSUMER, True)


async def test_calls_to_a_spoke_whose_queue_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers many is not disconnected for what others ask of it: they are told to try again."""
    most = 1_024 * KIB
    monkeypatch.setattr(router, "MAX_HELD", most)
    async with (
        a_hub(limits={"calls_queue_bytes": 64 * KIB}) as hub,
        spokes(hub.ticket, "asks") as (asks,),
        a_peer(hub.ticket, name="stuck", operations=("t.slow",), inbox_bytes=64 * KIB) as stuck,
    ):
        stuck.stop_reading()
        conn, most_held = conn_of(hub, "stuck"), 0

        async def watch() -> None:
            """What is held goes when the connection takes some more, which may be at any time."""
            nonlocal most_held
            while True:
                most_held = max(most_held, sum(map(len, hub.router._held.get(conn, ()))))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        asking = [
            asyncio.create_task(asks.call("t.slow", {"text": "x" * 30_000}, timeout=PATIENCE)) for _ in range(150)
        ]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_EXCEPTION)
        error = next(task.exception() for task in done)
        assert isinstance(error, ExecutionFailed)
        assert (error.retryable, "full queue" in error.message) == (True, True)
        watching.cancel()
        assert 0 < most_held <= most // 2 + router.FLUSH_BYTES + 31_000
        assert Numbers(hub)("calls_total", operation="t.slow", code="EXECUTION_ERROR") >= 1
        assert Numbers(hub)("disconnects_total") == 0
        for task in waiting:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.parametrize("key", ["calls_in_flight_per_peer", "calls_in_flight"])
async def test_calls_in_flight(key: str) -> None:
    async def wait() -> None:
        await go.wait()

    go = asyncio.Event()
    async with (
        a_hub(limits={key: 3}) as hub,
        serving(hub.ticket, "s", t__wait=wait),
        spokes(hub.ticket, "asks") as (asks,),
    ):
        asking = [asyncio.create_task(asks.call("t.wait", timeout=PATIENCE)) for _ in range(3)]
        await until(lambda: len(hub.router.calls) == 3)
        with pytest.raises(ExecutionFailed, match="in flight") as error:
            await asks.call("t.wait")
        assert error.value.retryable
        assert Numbers(hub)("calls_in_flight") == 3
        assert Numbers(hub)("calls_total", operation="t.wait", code="EXECUTION_ERROR") == 1
        go.set()
        await asyncio.gather(*asking)


async def test_a_stream_whose_spoke_ignores_its_credit() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "asks") as (asks,),
        a_peer(hub.ticket, operations=("t.flood",), kind="subscription") as flood,
    ):
        stream = asks.stream("t.flood", window=8)
        first = asyncio.ensure_future(anext(stream))
        asked = await flood.hears("call.requested")
        for number in range(8 + 256 + 1):
            flood.say("call.responded", {"requestId": asked["requestId"], "output": number})
        got = [await first]
        with pytest.raises(ExecutionFailed, match="256 responses more than it had credit for"):
            got += [item async for item in stream]
        await flood.hears("call.aborted", requestId=asked["requestId"])
        assert Numbers(hub)("calls_total", operation="t.flood", code="EXECUTION_ERROR") == 1


async def test_connections_of_the_hub() -> None:
    async with (
        a_hub(limits={"connections": 2}) as hub,
        a_peer(hub.ticket),
        a_peer(hub.ticket),
        a_peer(hub.ticket, hello=False) as third,
    ):
        third.say("hub.register", {"operations": []})
        code, reason = await third.end()
        assert (code, "limits.connections" in reason) == (CloseCode.LIMIT, True)
        assert Numbers(hub)("limited_total", limit="hub_connections") == 1
        assert Numbers(hub)("refused_total", reason="limit") == 1
        assert len(hub.router.sessions) == 2


# The extension


@pytest.mark.system
@pytest.mark.timeout(300)
def test_connections_that_have_not_said_anything() -> None:
    """A thousand handshakes: half a minute on a busy machine."""
    limit, more = 1_024, 6
    with ext_hub(open_timeout=280.0) as h, node() as s:
        assert h.endpoint.addrs()
        for token in range(limit + more):
            s.endpoint.dial(token, h.endpoint.node_id, h.endpoint.addrs(), timeout=200.0)
            if token % 64 == 63:
                s.collect(0.05)
        deadline = time.monotonic() + 200.0
        while h.endpoint.counters()["stream_timeouts"] < more and time.monotonic() < deadline:
            s.collect(0.05)
        assert h.endpoint.counters()["stream_timeouts"] == more
        ends = [s.wait(ext.CLOSED, patience=60.0) for _ in range(more)]
        assert [item[2] for item in ends] == [37] * more
        assert all(f"{limit} connections" in str(item[3]) for item in ends)
        assert not h.endpoint.pending(), "none of them costs Python anything"


def test_datagrams() -> None:
    with ext_hub(inbox_bytes=64 * KIB) as h, node() as s:
        near, far = connect(s, h)
        size = min(1_000, s.endpoint.max_datagram_size(near) or 0)
        deadline = time.monotonic() + PATIENCE
        while not h.endpoint.counters()["datagrams_dropped"] and time.monotonic() < deadline:
            s.endpoint.send_datagram(near, b"x" * size)
        counters = h.endpoint.counters()
        assert counters["datagrams_dropped"] > 0
        stats = h.endpoint.stats(far)
        assert stats is not None
        assert stats.inbox_bytes <= 64 * KIB + size + 64
        h.collect(0)
        got = [item for item in h.items if item[0] == ext.DATAGRAM]
        assert len(got) <= counters["datagrams_in"] <= 64 * KIB // size + 1
