"""Topics over gossip, a real hub and real spokes on loopback: all arrives once, in order, and the verdicts are true."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson
import pytest

from broker import SpokeOptions, connect
from broker import _gossip_ext as ext
from broker.config import GossipConfig
from broker.errors import TopicError
from broker.protocol.ticket import Ticket
from tests.hub.gossips import GossipPeer
from tests.rig import FAST, PATIENCE, Numbers, a_hub, cut, spokes, until
from tests.spoke.swarming import NO_GOSSIP, TOPIC, hear_again, publish, reading, sent, stop_hearing, swarm_of

pytestmark = pytest.mark.timeout(120)


async def test_all_of_a_flood_arrives_everywhere_and_not_by_the_hub() -> None:
    count = 3_000
    async with (
        swarm_of(5) as (hub, five),
        reading(five[1]) as r1,
        reading(five[2]) as r2,
        reading(five[3]) as r3,
        reading(five[4]) as r4,
    ):
        readers = (r1, r2, r3, r4)
        await publish(five[0], range(count))
        await five[0].flush(PATIENCE)
        for reader in readers:
            await reader.has(range(count))
            (verdict,) = reader.events.verdicts
            assert (verdict.received, verdict.missing, verdict.lost) == (count, (), ())
            assert reader.events.verdict.startswith(("complete", "repaired("))
        assert sent(five[0]) == count
        assert Numbers(hub)("events_published_total", carrier="gossip") == count
        assert all(spoke.carrier(TOPIC) == "gossip" for spoke in five)


async def test_a_timer_that_a_hub_set_in_the_last_moment_finds_a_closed_spoke() -> None:
    async with swarm_of(2) as (_, (one, two)), reading(one), reading(two):
        await until(lambda: one._swarms.counts().get("neighbours"))
        topics = dict(one._swarms._topics)
        await one.close()
        one._swarms._topics.update(topics)
        for entry in topics.values():
            entry.machine.next_due = lambda: 0.0  # type: ignore[method-assign]
        one._swarms._tick()
        assert one._swarms._timer is None


async def test_its_own_events_reach_a_publisher_that_subscribes() -> None:
    async with swarm_of(2) as (_, (one, two)), reading(one) as mine, reading(two) as theirs:
        await publish(one, range(100))
        await mine.has(range(100))
        await theirs.has(range(100))
        assert mine.events.verdicts[0].received == 100


async def test_who_is_back_and_in_no_swarm_lets_nobody_in_of_whom_it_was_told_before() -> None:
    """The hub tells of peers with the first swarm of a connection; who was one on the last one may be banned by now."""
    async with swarm_of(1) as (hub, (spoke,)):
        assert spoke.endpoint is not None
        stranger = GossipPeer()
        try:
            stranger.endpoint.admit_peers([spoke.node_id])
            stranger.endpoint.learn(spoke.node_id, spoke.endpoint.addrs())
            spoke._swarms.peers({"add": [stranger.node_id], "remove": [], "full": True})
            connects = spoke._link.connects
            cut(hub, "s0")
            await until(lambda: spoke.connected and spoke._link.connects > connects)
            stranger.swarms["t"] = stranger.endpoint.join("t", bytes(32), [spoke.node_id])
            endpoint = spoke.endpoint
            await until(lambda: endpoint.counters()["refused_not_admitted"])
        finally:
            stranger.close()


async def test_two_authors_on_one_topic_each_in_order() -> None:
    async with swarm_of(4) as (_, (a, b, c, d)), reading(c) as rc, reading(d) as rd:
        await asyncio.gather(publish(a, range(0, 800)), publish(b, range(1_000, 1_800)))
        for reader in (rc, rd):
            await until(lambda reader=reader: len(reader.got) == 1_600, 2 * PATIENCE)  # type: ignore[misc]
            assert [n for n in reader.got if n < 1_000] == list(range(800))
            assert [n for n in reader.got if n >= 1_000] == list(range(1_000, 1_800))
            assert len(reader.events.verdicts) == 2


async def test_a_batch_with_an_event_that_is_no_json_is_counted_and_nothing_of_it_taken() -> None:
    async with swarm_of(2) as (hub, (a, b)), reading(b) as rb:
        await publish(a, ["first"])
        await rb.has(["first"])
        meta = {"author": a.node_id, "epoch": "f" * 16}
        right, wrong = (orjson.dumps({"type": TOPIC, "detail": 1, "meta": {**meta, "seq": seq}}) for seq in (1, 2))
        wrong = wrong.replace(b":1,", b":tru,", 1)
        a._swarms.publish(TOPIC, "f" * 16, 1, [right, wrong])
        await until(lambda: b.gossip_counts().get("unreadable") == 1)
        await until(lambda: hub.router.swarms.totals.contradicted == 1)
        assert rb.got == ["first"]


async def test_who_counts_is_told_the_places_of_events_and_knows_of_holes() -> None:
    async with (
        swarm_of(1) as (hub, (a,)),
        connect(hub.ticket, options=replace(FAST, counts_gossip=True), timeout=PATIENCE) as b,
        reading(b) as rb,
    ):
        await publish(a, range(500))
        await a.flush(PATIENCE)
        await until(lambda: len(rb.got) == 500)
        assert rb.got.count(None) > 400, "some come by stream before the swarm is heard"
        assert all(said in (None, number) for number, said in enumerate(rb.got))
        (verdict,) = rb.events.verdicts
        assert (verdict.known, verdict.received, verdict.missing, verdict.lost) == (500, 500, (), ())
        counted = rb.got.count(None)
        large = ["x" * 40_000, "end"]
        await publish(a, large)
        await until(lambda: len(rb.got) == 502)
        assert rb.got[500] == large[0], "it is only named, and comes by stream"
        assert rb.got.count(None) >= counted
        assert rb.events.verdicts[0].known == 502


@pytest.mark.parametrize("counts", [False, True])
async def test_a_reader_of_runs_gets_everything_in_runs_of_one_author(counts: bool) -> None:
    async with (
        swarm_of(2) as (hub, (a, b)),
        connect(hub.ticket, options=replace(FAST, counts_gossip=counts), timeout=PATIENCE) as c,
        c.subscribe(TOPIC, carrier="gossip", patience=PATIENCE) as events,
    ):
        await asyncio.gather(publish(a, range(300)), publish(b, range(300)))
        newest = {a.node_id: 0, b.node_id: 0}
        lengths = []
        async with asyncio.timeout(PATIENCE):
            async for run in events.runs():
                first = newest[run[0].author] + 1
                newest[run[0].author] += len(run)
                assert {event.author for event in run} == {run[0].author}
                assert [event.seq for event in run] == list(range(first, first + len(run)))
                assert {event.detail for event in run} <= {None, *range(first - 1, first - 1 + len(run))}
                lengths.append(len(run))
                if sum(newest.values()) == 600:
                    break
        assert set(newest.values()) == {300}
        assert max(lengths) > 1


async def test_who_stops_reading_runs_loses_none_of_those_that_wait() -> None:
    async with (
        swarm_of(1) as (hub, (a,)),
        connect(hub.ticket, options=FAST, timeout=PATIENCE) as b,
        b.subscribe(TOPIC, carrier="gossip", patience=PATIENCE) as events,
    ):
        for number in range(3):
            await publish(a, [number])
            await a.flush(PATIENCE)
        await until(lambda: events.queued == 3)
        got = list(await anext(events.runs()))
        assert events.queued == 3 - len(got)
        while len(got) < 3:
            got.append(await anext(aiter(events)))
        assert [event.detail for event in got] == [0, 1, 2]


async def test_a_thousand_identical_events_all_arrive() -> None:
    """iroh-gossip knows messages by their content."""
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        await publish(a, ["same"] * 1_000)
        await rb.has(["same"] * 1_000)
        await rc.has(["same"] * 1_000)


async def test_events_of_exactly_the_limit_one_byte_over_it_and_900_kib() -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        await publish(a, ["first"])
        await rb.has(["first"])
        limit = a._swarms.message_bytes(TOPIC)
        held = a._publisher.held(TOPIC, (await a.publish(TOPIC, "")).epoch)
        assert held is not None
        ((_, (frame,)),) = held.runs(2, 2)
        sizes = [limit, limit + 1, limit + len(frame), 900 * 1024]
        details = ["x" * (size - len(frame)) for size in sizes]
        await publish(a, [*details, "last"])
        assert [len(held.runs(seq, seq)[0][1][0]) for seq in range(3, 7)] == sizes
        for reader in (rb, rc):
            await reader.has(["first", "", *details, "last"])
            assert reader.events.verdicts[0].lost == ()
        # The limit is what fits in any case: one byte more still does when its meta is written short.
        assert a.gossip_counts()["references_out"] == 2
        await a.flush(PATIENCE)


async def test_a_subscriber_that_hangs_is_repaired_when_it_is_back() -> None:
    """More than its inbox holds goes by meanwhile."""
    details = [f"{number:06}" + "x" * 1_200 for number in range(5_000)]
    async with swarm_of(4) as (_, (a, b, c, d)), reading(b) as rb, reading(c) as rc, reading(d) as rd:
        await publish(a, details[:100])
        await rb.has(details[:100])
        stop_hearing(b)
        await publish(a, details[100:])
        for reader in (rc, rd):
            await reader.has(details)
        hear_again(b)
        await rb.has(details)
        (verdict,) = rb.events.verdicts
        assert (verdict.received, verdict.lost, verdict.missing) == (len(details), (), ())


async def test_a_joiner_in_mid_flood_has_all_from_where_it_began() -> None:
    async with swarm_of(4) as (_, (a, b, c, d)), reading(b) as rb, reading(c):
        flood = asyncio.create_task(publish(a, range(6_000)))
        await until(lambda: len(rb.got) > 500)
        async with reading(d, carrier="auto") as rd:
            await flood
            await rb.has(range(6_000))
            await until(lambda: rd.got and rd.got[-1] == 5_999, 2 * PATIENCE)
            assert rd.got == list(range(rd.got[0], 6_000)), "no hole, nothing twice"
            (verdict,) = rd.events.verdicts
            assert (verdict.lost, verdict.missing) == ((), ())


async def test_an_author_that_comes_back_with_its_key_begins_a_new_epoch_without_a_gap() -> None:
    secret = ext.generate_secret()
    async with swarm_of(3) as (hub, (b, c, _)), reading(b) as rb, reading(c) as rc:
        for first in (0, 1_000):
            async with connect(hub.ticket, name="author", secret=secret, options=FAST, timeout=PATIENCE) as author:
                await publish(author, range(first, first + 500))
                await author.flush(PATIENCE)
        for reader in (rb, rc):
            await reader.has([*range(500), *range(1_000, 1_500)])
            assert [verdict.received for verdict in reader.events.verdicts] == [500, 500]
            assert reader.events.verdict.startswith(("complete", "repaired("))


async def test_who_cannot_gossip_hears_all_and_is_heard_once_by_all() -> None:
    async with (
        swarm_of(2) as (hub, (a, b)),
        connect(hub.ticket, name="plain", options=NO_GOSSIP, timeout=PATIENCE) as plain,
        reading(a) as ra,
        reading(b) as rb,
        reading(plain, carrier="auto") as rp,
    ):
        await publish(plain, range(300), carrier="auto")
        await plain.flush(PATIENCE)
        for reader in (ra, rb, rp):
            await reader.has(range(300))
        await publish(a, range(300, 600))
        for reader in (ra, rb, rp):
            await reader.has(range(600))
        assert all(reader.events.verdict.startswith(("complete", "repaired(")) for reader in (ra, rb, rp))


async def test_an_author_that_changes_its_way_loses_and_doubles_nothing() -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        for part, carrier in enumerate(("gossip", "stream", "auto", "stream", "auto")):
            await publish(a, range(part * 400, part * 400 + 400), carrier=carrier)
        await a.flush(PATIENCE)
        for reader in (rb, rc):
            await reader.has(range(2_000))
            assert reader.events.verdicts[0].lost == ()
        assert 0 < sent(a) < 2_000


async def test_who_wants_streams_alone_is_left_out_of_the_swarm() -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c, carrier="stream") as rc:
        await publish(a, range(200))
        await rb.has(range(200))
        await rc.has(range(200))
        assert c.gossip_counts()["swarms"] == 0
        assert (b.carrier(TOPIC), c.carrier(TOPIC)) == ("gossip", "stream")


async def test_a_topic_that_the_config_keeps_on_streams_is_refused_to_who_wants_gossip() -> None:
    async with a_hub(topics={"carrier": "stream"}) as hub, spokes(hub.ticket, "a") as (a,):
        with pytest.raises(TopicError, match=r"topics\.carrier"):
            await a.publish(TOPIC, 1, carrier="gossip")
        with pytest.raises(TopicError, match=r"topics\.carrier"):
            async with a.subscribe(TOPIC, carrier="gossip"):
                pass
        assert a.gossip_counts()["swarms"] == 0
        with pytest.raises(ValueError, match="not the pattern"):
            a.subscribe("a.*", carrier="gossip")


async def test_a_neighbour_that_is_gone_is_no_loss() -> None:
    async with swarm_of(4) as (hub, (a, b, c, d)), reading(b) as rb, reading(d) as rd:
        async with reading(c):
            await publish(a, range(100))
            await rb.has(range(100))
        await c.close()
        async with connect(hub.ticket, name="late", options=FAST, timeout=PATIENCE) as late, reading(late) as rl:
            await publish(a, range(100, 600))
            await rb.has(range(600))
            await rd.has(range(600))
            await rl.has(range(100, 600))


async def test_cut_off_from_the_hub_and_back_it_misses_nothing() -> None:
    async with swarm_of(4) as (hub, (a, b, c, d)), reading(b) as rb, reading(c) as rc, reading(d) as rd:
        flood = asyncio.create_task(publish(a, range(4_000)))
        await until(lambda: len(rb.got) > 300)
        cut(hub, "s1")
        await until(lambda: len(rc.got) > 1_000)
        cut(hub, "s0")
        await flood
        await a.flush(PATIENCE)
        for reader in (rb, rc, rd):
            await reader.has(range(4_000))
            assert reader.events.verdicts[0].lost == ()


async def test_what_the_hub_does_not_take_from_the_swarm_goes_to_it_by_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an author's clock was set back between two of its lives: its batches are old news to everybody."""
    monkeypatch.setattr("broker.spoke.publisher.UNHEARD", 1.0)
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c) as rc:
        await publish(a, range(50))
        await rb.has(range(50))
        await a.flush(PATIENCE)
        monkeypatch.setattr(a._swarms, "publish", lambda *_batch: True)  # nobody takes it
        await publish(a, range(50, 900))
        await a.flush(PATIENCE)
        for reader in (rb, rc):
            await reader.has(range(900))
            assert reader.events.verdicts[0].lost == ()


def test_who_has_no_ticket_takes_the_size_of_a_hub_that_was_not_told_otherwise() -> None:
    options, place = SpokeOptions(), Ticket("a" * 64)
    assert options.message_bytes(None) == GossipConfig().message_bytes == 32_768
    assert options.message_bytes(place) == 4_096, "a ticket that says nothing is from before there was another size"
    assert options.message_bytes(replace(place, message_bytes=8_192)) == 8_192
    assert SpokeOptions(gossip_message_bytes=1_024).message_bytes(place) == 1_024


async def test_the_size_of_messages_is_the_tickets() -> None:
    """Nobody tells the spokes of it but the ticket; a message that is too large without its word arrives by gossip."""
    async with swarm_of(2, gossip={"message_bytes": 8_192}) as (hub, (one, two)), reading(two) as theirs:
        await publish(one, ["x" * 6_000])
        await theirs.has(["x" * 6_000])
        assert Numbers(hub)("protocol_errors_total", code="no_swarm") == 0
        assert two.carrier(TOPIC) == "gossip"
        assert one._swarms.message_bytes(TOPIC) > 6_000


async def test_who_is_overrun_tells_the_hub() -> None:
    async with swarm_of(2) as (hub, (one, two)), reading(two) as theirs:
        await publish(one, [1])
        await theirs.has([1])
        swarm = hub.router.swarms.by_topic[TOPIC]
        before = swarm.pacing.size
        await until(lambda: two.carrier(TOPIC) == "gossip")
        two._swarms.lagged(next(iter(two._swarms._handles)))
        await until(lambda: swarm.pacing.size < before)


async def test_swarms_of_a_spoke_beyond_the_bound_are_counted_and_come_by_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.spoke.swarms.MAX_SWARMS", 1)
    async with swarm_of(2) as (_, (one, two)), reading(two, "a") as a, reading(two, "b", carrier="auto") as b:
        await one.publish("a", 1)
        await a.has([1])
        await one.publish("b", 2)
        await b.has([2])
        await until(lambda: two._swarms.counts().get("declined"))
        assert two.carrier("b") != "gossip"
