"""The hub holds an author back for members that say they are behind, and lets it go on when they are not."""

from __future__ import annotations

import pytest

from broker.hub.swarm import TopicSwarm
from broker.protocol.pacing import LEAST_AHEAD, MOST
from tests.hub.gossips import EPOCH, GossipPeer, a_gossiper, gossipers
from tests.rig import Numbers, a_hub, until

FAR = LEAST_AHEAD + 2
"""Beyond what an author may be ahead of a member that has heard one event."""


def says(member: GossipPeer, author: GossipPeer, seq: int) -> None:
    member.say("topic.head", {"topic": "a", "author": author.node_id, "epoch": EPOCH, "seq": seq})


def may_send(author: GossipPeer) -> int | None:
    """Up to which number, by the last acknowledgement."""
    acks = [one["detail"] for one in author.received if one["type"] == "topic.ack"]
    return acks[-1]["seq"] + acks[-1]["window"] if acks else None


async def publishes(author: GossipPeer, swarm: TopicSwarm, last: int) -> None:
    """Up to ``last``, in the swarm."""
    first = swarm.channel.ring.newest(author.node_id, EPOCH) + 1
    for begin in range(first, last + 1, 64):
        await until(lambda begin=begin: author.gossip("a", begin, min(begin + 63, last)))  # type: ignore[misc]
    await until(lambda: swarm.channel.ring.newest(author.node_id, EPOCH) == last)


async def test_an_author_waits_for_the_slowest_member_and_goes_on_with_it() -> None:
    async with (
        a_hub(topics={"carrier": "gossip"}) as hub,
        gossipers(hub, "x", "y", "z", want=True) as (x, y, z),
    ):
        swarm = hub.router.swarms.by_topic["a"]
        await publishes(x, swarm, 100)
        await until(lambda: may_send(x) == 100 + swarm.pacing.size)
        says(y, x, 60)
        says(z, x, 20)
        await until(lambda: len(swarm.pacing.followed((x.node_id, EPOCH))) == 2)
        await publishes(x, swarm, 1_000)
        await until(lambda: may_send(x) == 20 + LEAST_AHEAD)
        says(z, x, 1_000)
        await until(lambda: may_send(x) == 60 + swarm.pacing.ahead((x.node_id, EPOCH)))
        says(y, x, 1_000)
        await until(lambda: may_send(x) == 1_000 + swarm.pacing.size)


@pytest.mark.parametrize("how", ["its patience is spent", "it is gone", "it goes back to the stream"])
async def test_an_author_does_not_wait_for_ever(how: str) -> None:
    async with (
        a_hub(topics={"carrier": "gossip"}) as hub,
        gossipers(hub, "x", "y", want=True) as (x, y),
        a_gossiper(hub, "z") as z,
    ):
        swarm = hub.router.swarms.by_topic["a"]
        z.say("__subscribe", {"topics": ["a"], "patience": 0.5 if how == "its patience is spent" else 60.0})
        await z.until_joined(hub)
        await publishes(x, swarm, 100)
        says(y, x, 10_000)
        says(z, x, 1)
        await until(lambda: len(swarm.pacing.followed((x.node_id, EPOCH))) == 2)
        await publishes(x, swarm, FAR)
        await until(lambda: may_send(x) == FAR)
        if how == "it is gone":
            z.close()
        elif how == "it goes back to the stream":
            z.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "neighbours": 0})
        await until(lambda: may_send(x) == FAR + swarm.pacing.size)
        left_behind = float(how == "its patience is spent")
        assert Numbers(hub)("swarm_left_behind_total") == left_behind
        swarm.close()
        assert Numbers(hub)("swarm_left_behind_total") == left_behind, "it outlives the swarm"


async def test_a_member_that_says_too_much_keeps_nobody_out_of_sight() -> None:
    """Who was left behind is waited for again when it is near the newest that anybody can have heard."""
    async with (
        a_hub(topics={"carrier": "gossip"}) as hub,
        gossipers(hub, "x", "y", want=True) as (x, y),
        a_gossiper(hub, "z") as z,
    ):
        swarm = hub.router.swarms.by_topic["a"]
        z.say("__subscribe", {"topics": ["a"], "patience": 0.5})
        await z.until_joined(hub)
        await publishes(x, swarm, 100)
        says(y, x, 2**40)
        says(z, x, 1)
        await until(lambda: len(swarm.pacing.followed((x.node_id, EPOCH))) == 2)
        await publishes(x, swarm, FAR)
        await until(lambda: len(swarm.pacing.followed((x.node_id, EPOCH))) == 1)
        await publishes(x, swarm, 100 + MOST)
        says(z, x, 100 + MOST)
        await until(lambda: len(swarm.pacing.followed((x.node_id, EPOCH))) == 2)


async def test_who_does_not_block_and_who_does_not_subscribe_hold_nobody_up() -> None:
    async with (
        a_hub(topics={"carrier": "gossip"}) as hub,
        gossipers(hub, "x", want=True) as (x,),
        a_gossiper(hub, "y") as y,
        a_gossiper(hub, "z") as z,
    ):
        swarm = hub.router.swarms.by_topic["a"]
        y.say("__subscribe", {"topics": ["a"], "policy": "drop_oldest"})
        z.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        await y.until_joined(hub)
        await until(lambda: len(swarm.overlay.joined()) == 3)
        await publishes(x, swarm, 100)
        for member in (y, z):
            says(member, x, 1)
            member.say("topic.head", {"topic": "b", "author": x.node_id, "epoch": EPOCH, "seq": 1})
        await publishes(x, swarm, FAR)
        await until(lambda: may_send(x) == FAR + swarm.pacing.size)
        assert swarm.pacing.followed((x.node_id, EPOCH)) == {}
