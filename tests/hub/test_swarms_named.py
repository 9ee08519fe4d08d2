"""Events that a batch only names, by size and hash: what comes for them by stream is compared, at the hub and at a
spoke. Also batches that come to the hub in parts. Not here: the rules by themselves (tests/protocol/test_named.py)."""

from __future__ import annotations

import base64

from broker import _gossip_ext as ext
from broker.protocol.wire import CloseCode
from tests.hub.gossips import EPOCH, GossipPeer, event, gossipers, heard
from tests.hub.test_swarms_access import GOSSIP
from tests.rig import Numbers, a_hub, until
from tests.spoke.swarming import TOPIC, reading, swarm_of

LARGE = "x" * 40_000


async def named(x: GossipPeer, first: int = 1) -> None:
    """It gossips an event that no batch holds."""
    assert x.swarms["a"].publish(EPOCH, first, [event(x.node_id, first, LARGE)])


async def test_a_hub_takes_the_event_that_was_named_and_no_other() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        await named(x)
        await until(lambda: hub.router.swarms.by_topic["a"].named.known)
        x.raw(event(x.node_id, 1, "y" * 40_000), lane=ext.TOPICS)
        complaint = await x.hears("hub.error", code="VALIDATION_ERROR")
        assert complaint["message"] == "event 1 is not the one that its author's batch names by its hash"
        assert (await x.hears("topic.repair"))["from"] == 1, "it is asked for again"
        assert not hub.router.topics.channels["a"].ring.heads()
        assert Numbers(hub)("swarm_mismatched_total") == 1
        x.raw(event(x.node_id, 1, LARGE), lane=ext.TOPICS)
        await x.hears("topic.ack", seq=1)
        y.say("topic.repair", {"topic": "a", "author": x.node_id, "epoch": EPOCH, "from": 1, "to": 1})
        await until(lambda: heard(y))
        assert heard(y) == [LARGE], "of the two the one that was named"


async def test_a_spoke_takes_the_event_that_was_named_and_no_other() -> None:
    async with swarm_of(1) as (hub, (b,)), gossipers(hub, "x", topic=TOPIC, want=True) as (x,), reading(b) as rb:
        await until(lambda: b._swarms.members(TOPIC))
        right, wrong = (event(x.node_id, 1, one * 40_000, topic=TOPIC) for one in "xy")
        assert x.swarms[TOPIC].publish(EPOCH, 1, [right])
        await until(lambda: b._link.named.known)
        assert b._link._conn is not None
        b._link.frames(b._link._conn, [wrong])  # as if the hub had sent it
        b._link.batch_done(1)
        assert b.gossip_counts()["mismatched"] == 1
        assert (rb.got, rb.events.verdict) == ([], "pending"), "it is a hole still"
        x.raw(right, lane=ext.TOPICS)
        await until(lambda: rb.got)
        assert rb.got == [LARGE]
        assert rb.events.verdict in ("complete", "repaired(1)"), "by whether it had been asked for"


async def test_a_batch_may_come_in_parts_and_not_without_end() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 3)
        await x.hears("topic.ack", seq=3)
        await until(lambda: y.swarms["a"].batches(x.node_id, EPOCH, 1, 3))
        (data, *_) = y.swarms["a"].batches(x.node_id, EPOCH, 1, 3)
        text = base64.b64encode(data).decode()
        swarm = hub.router.swarms.by_topic["a"]
        swarm.holes._asked[x.node_id, EPOCH] = None
        before = Numbers(hub)("published_total", topic="a", carrier="gossip")
        duplicates = swarm.channel.counters.duplicates
        y.say("topic.batch", {"topic": "a", "data": text[:99], "more": True})
        y.say("topic.batch", {"topic": "a", "data": text[99:200], "more": True})
        y.say("topic.batch", {"topic": "a", "data": text[200:]})
        y.say("topic.batch", {"topic": "a", "data": text[200:]})
        assert (await y.hears("hub.error"))["message"].startswith("topic.batch: "), "the second is half of one"
        assert swarm.channel.counters.duplicates >= duplicates
        assert Numbers(hub)("published_total", topic="a", carrier="gossip") == before
        for _ in range(4):
            y.say("topic.batch", {"topic": "a", "data": "A" * 30_000, "more": True})
        await until(lambda: y.ended is not None)
        assert y.ended is not None
        assert y.ended[0] == CloseCode.BAD_MESSAGE
