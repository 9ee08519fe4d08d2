"""Topics through a hub: who gets what, from when on, in which order, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import CallTimeout, Closed, TopicError
from broker.protocol.codec import encode
from tests.rig import FAST, PATIENCE, Numbers, a_hub, a_peer, details, spokes, take, until


async def test_wildcards_choose_and_two_subscriptions_each_get_one_copy() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "pub", "sub") as (pub, sub),
        sub.subscribe("orders.*") as star,
        sub.subscribe("orders.>") as rest,
        sub.subscribe("orders.new", "orders.new", "*.new") as both,
        sub.subscribe("other") as other,
    ):
        await sub.call("hub.topics")
        for topic in ("orders.new", "orders.old", "orders.new.eu", "other"):
            await pub.publish(topic, topic)
        assert details(await take(star, 2)) == ["orders.new", "orders.old"]
        assert sorted(details(await take(rest, 3))) == ["orders.new", "orders.new.eu", "orders.old"]
        assert details(await take(both, 1)) == ["orders.new"]
        assert details(await take(other, 1)) == ["other"]
        await pub.flush()
        await sub.call("hub.topics")
        assert [one.queued for one in (star, rest, both, other)] == [0, 0, 0, 0]
        assert {one.verdict for one in (star, rest, both, other)} == {"complete"}
        numbers = Numbers(hub)
        assert numbers("events_published_total") == 4
        assert numbers("events_delivered_total") == 4, "one copy a connection"


async def test_unsubscribing_is_counted_by_reference() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub", "sub") as (pub, sub):
        async with sub.subscribe("a") as staying:
            async with sub.subscribe("a") as leaving:
                await sub.call("hub.topics")
                assert hub.router.topics.subscriptions.rows() == [("a", 1)]
                await pub.publish("a", 1)
                assert details(await take(leaving, 1) + await take(staying, 1)) == [1, 1]
            await pub.publish("a", 2)
            assert details(await take(staying, 1)) == [2]
            assert hub.router.topics.subscriptions.rows() == [("a", 1)]
        await until(lambda: not hub.router.topics.subscriptions.rows())
        await pub.publish("a", 3)
        await pub.flush()
        assert Numbers(hub)("events_delivered_total") == 2
        assert leaving.verdict == "complete"


async def test_since_now_start_and_a_number() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub", "sub") as (pub, sub):
        for number in range(1, 11):
            await pub.publish("a", number)
        await pub.flush()
        async with (
            sub.subscribe("a") as now,
            sub.subscribe("a", since="start") as start,
            sub.subscribe("a", since=8) as eighth,
            sub.subscribe("a", since=100) as later,
        ):
            assert details(await take(start, 10)) == list(range(1, 11))
            assert details(await take(eighth, 3)) == [8, 9, 10]
            for number in range(11, 103):
                await pub.publish("a", number)
            assert details(await take(now, 92)) == list(range(11, 103))
            assert details(await take(start, 92)) == list(range(11, 103))
            assert details(await take(eighth, 92)) == list(range(11, 103))
            assert details(await take(later, 3)) == [100, 101, 102]
            for one in (now, start, eighth, later):
                assert one.verdict == "complete"
                assert one.queued == 0


async def test_a_late_joiner_is_told_what_has_left_the_ring() -> None:
    async with a_hub(topics={"ring_events": 100}) as hub, spokes(hub.ticket, "pub", "sub") as (pub, sub):
        for number in range(1, 301):
            await pub.publish("a", number)
        await pub.flush()
        async with sub.subscribe("a", since="start") as events:
            assert details(await take(events, 100)) == list(range(201, 301))
            assert events.verdict == "lost([1, 200])"
            (verdict,) = events.verdicts
            assert verdict.received + 200 == 300
            assert Numbers(hub)("events_lost_total", topic="a") == 200


async def test_order_is_kept_per_author_whoever_publishes_at_once() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub", "x", "y", "z") as (sub, *authors),
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")

        async def publish(author: Any) -> None:
            for number in range(500):
                place = await author.publish("a", number)
                assert place.seq == number + 1

        await asyncio.gather(*map(publish, authors))
        got: dict[str, list[int]] = {}
        for event in await take(events, 1_500):
            got.setdefault(event.author, []).append(event.detail)
        assert got == {author.node_id: list(range(500)) for author in authors}
        assert events.verdict == "complete"


async def test_names_against_the_rules_never_leave_the_spoke() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "s") as (spoke,):
        for topic in ("a.*", "a.>", "hub.spokes", "call.requested", "__x", "a..b", "", "x" * 256):
            with pytest.raises(TopicError):
                await spoke.publish(topic, 1)
        for pattern in ("a.>.b", "hub.>", "__*", "", "a b"):
            with pytest.raises(TopicError):
                async with spoke.subscribe(pattern):
                    pass
        assert Numbers(hub)("protocol_errors_total") == 0


async def test_a_false_author_is_overwritten_and_who_sends_no_meta_is_numbered() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub", "honest") as (sub, honest),
        a_peer(hub.ticket) as liar,
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        place = await honest.publish("a", "honest")
        (true,) = await take(events, 1)
        forged = {"author": honest.node_id, "epoch": place.epoch, "seq": 2, "id": "kept"}
        liar.say("a", "lie", meta=forged)
        liar.say("a", "plain")
        odd: list[Any] = [{"seq": -1}, {"author": liar.endpoint.node_id}, [], {"epoch": 5, "seq": 2**60}]
        for meta in odd:
            liar.say("a", "odd", meta=meta)
        lies = await take(events, 6)
        assert true.author == honest.node_id
        assert {event.author for event in lies} == {liar.endpoint.node_id}
        assert [event.meta["seq"] for event in lies] == [1, 2, 3, 4, 5, 6]
        assert len({event.meta["epoch"] for event in lies}) == 1
        assert lies[0].meta["id"] == "kept"
        await honest.publish("a", "again")
        assert details(await take(events, 1)) == ["again"]
        assert events.verdict == "complete"


async def test_duplicates_are_dropped_and_counted() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub") as (sub,),
        a_peer(hub.ticket) as peer,
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        for seq in (1, 2, 2, 1, 3, 3):
            meta = {"author": peer.endpoint.node_id, "epoch": "0123456789abcdef", "seq": seq}
            peer.say("a", seq, meta=meta)
        assert details(await take(events, 3)) == [1, 2, 3]
        numbers = Numbers(hub)
        assert numbers("events_duplicates_total", topic="a") == 3
        assert numbers("events_published_total", topic="a") == 3
        assert (await peer.hears("topic.ack", topic="a"))["seq"] == 3


async def test_of_a_run_only_what_the_log_has_not_is_passed_on_and_acknowledged() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "sub") as (sub,), sub.subscribe("a") as events:
        await sub.call("hub.topics")
        topics, author = hub.router.topics, "f" * 64
        meta = {"author": author, "epoch": "0123456789abcdef"}
        frames = {seq: encode("a", seq, {**meta, "seq": seq}) for seq in range(1, 1_001)}
        for first, last in ((1, 2), (2, 3), (2, 3), (4, 1_000)):
            run = [frames[seq] for seq in range(first, last + 1)]
            topics.accept(topics.channel("a"), author, meta["epoch"], first, run)
        topics.settle(topics.channel("a"))
        assert details(await take(events, 1_000)) == list(range(1, 1_001))
        assert events.verdict == "complete"
        numbers = Numbers(hub)
        assert numbers("events_duplicates_total", topic="a") == 3
        assert numbers("events_published_total", topic="a") == 1_000
        assert topics.channel("a").unacked == 1_000


async def test_an_author_that_skips_numbers_is_seen_through() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub") as (sub,),
        a_peer(hub.ticket) as peer,
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        for seq in (1, 2, 5):
            meta = {"author": peer.endpoint.node_id, "epoch": "0123456789abcdef", "seq": seq}
            peer.say("a", seq, meta=meta)
        assert details(await take(events, 3)) == [1, 2, 5]
        assert events.verdict == "lost([3, 4])"


async def test_nonsense_in_an_announcement_ends_nobody_elses_connection() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub") as (sub,),
        a_peer(hub.ticket) as peer,
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        for acked in (-5, 2**63, "1", None, 11):
            head = {"topic": "a", "epoch": "0123456789abcdef", "seq": 10, "acked": acked}
            peer.say("topic.head", head)
            assert (await peer.hears("topic.ack"))["seq"] == 0
        peer.say("a", 11, meta={"author": peer.endpoint.node_id, "epoch": "0123456789abcdef", "seq": 11})
        assert details(await take(events, 1)) == [11]
        assert sub.counts()["connects"] == 1


async def test_ten_thousand_subscriptions_in_one_spoke_and_no_more() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub", "sub") as (pub, sub):
        many = [sub.subscribe(f"t.{number}") for number in range(10_000)]
        for one in many:
            await one.__aenter__()
        await sub.call("hub.spokes")
        assert len(hub.router.topics.subscriptions) == 10_000
        async with sub.subscribe("one.more") as refused:
            with pytest.raises(TopicError, match="10000") as error:
                await asyncio.wait_for(anext(refused), PATIENCE)
            assert error.value.code == "LIMIT"
        for number in range(0, 10_000, 100):
            await pub.publish(f"t.{number}", number)
        for number in range(0, 10_000, 100):
            assert details(await take(many[number], 1)) == [number]
        for one in many:
            await one.__aexit__(None, None, None)
        await until(lambda: not len(hub.router.topics.subscriptions))
        assert Numbers(hub)("protocol_errors_total", code="limit") == 1


async def test_a_publisher_waits_while_its_buffer_is_full_and_goes_on_when_the_hub_is_back() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "sub", "pub", options=FAST) as (sub, pub),
        sub.subscribe("a") as events,
    ):
        await sub.call("hub.topics")
        await pub.publish("a", 0)
        await pub.flush()
        hub.router.endpoint.admit(open=False, allow=[sub.node_id], deny=[])  # it cannot come back
        await until(lambda: not pub.connected)
        for number in range(1, 4_097):
            await pub.publish("a", number)
        with pytest.raises(CallTimeout, match="4096 wait"):
            await pub.publish("a", "too much", timeout=0.05)
        with pytest.raises(CallTimeout, match="not acknowledged 4096"):
            await pub.flush(0.05)
        waiting = [asyncio.create_task(pub.publish("a", number)) for number in (4_097, 4_098)]
        flushing = asyncio.create_task(pub.flush(PATIENCE))
        hub.router.endpoint.admit(open=True, allow=[], deny=[])
        await flushing
        assert [(await one).seq for one in waiting] == [4_098, 4_099]
        assert details(await take(events, 4_099)) == list(range(4_099))
        assert events.verdict in ("complete", "repaired(4096)")


async def test_a_flush_does_not_wait_for_what_is_published_after_it() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub") as (pub,):
        going = True

        async def publish() -> None:
            while going:
                await pub.publish("busy", 1)
                await asyncio.sleep(0)

        busy = asyncio.create_task(publish())
        await until(lambda: Numbers(hub)("events_published_total"))
        await pub.flush(PATIENCE)
        going = False
        await busy


async def test_closing_a_spoke_tells_those_who_wait_in_it() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub") as (pub,):
        hub.router.endpoint.admit(open=False, allow=[], deny=[])
        await until(lambda: not pub.connected)
        async with pub.subscribe("a") as events:
            for number in range(4_096):
                await pub.publish("a", number)
            tasks = [
                asyncio.create_task(one) for one in (pub.publish("a", "x"), pub.flush(None), anext(events, "the end"))
            ]
            await asyncio.sleep(0)
            await pub.close()
            for task in tasks[:2]:
                with pytest.raises(Closed):
                    await asyncio.wait_for(task, PATIENCE)
            assert await asyncio.wait_for(tasks[2], PATIENCE) == "the end"
