"""Who is told of the peers that may gossip, and when: with its first swarm, and of every change from then on."""

from __future__ import annotations

from typing import Any

from tests.hub.gossips import GossipPeer, a_gossiper, gossipers
from tests.rig import a_hub, until

GOSSIP: dict[str, Any] = {"topics": {"carrier": "gossip"}}


async def answered(peer: GossipPeer) -> None:
    """The hub has done all that the peer has said so far, and it has heard what came of that."""
    before = len(peer.received)
    peer.say("call.requested", {"requestId": f"{before}", "operationId": "hub.topics", "input": None})
    await peer.hears("call.responded", requestId=f"{before}")


def lists(peer: GossipPeer) -> list[dict[str, Any]]:
    return [message["detail"] for message in peer.received if message["type"] == "hub.peers"]


async def test_who_is_in_no_swarm_is_told_of_no_peers() -> None:
    async with a_hub(**GOSSIP) as hub, a_gossiper(hub, "idle") as idle, gossipers(hub, "x", "y", want=True) as (x, y):
        await until(lambda: x.peers >= {y.node_id, idle.node_id})  # additions have been told
        await answered(idle)
        assert not lists(idle)


async def test_the_first_swarm_brings_all_peers_before_it_and_the_changes_after_it() -> None:
    async with a_hub(**GOSSIP) as hub, a_gossiper(hub, "x") as x, gossipers(hub, "y", want=True) as (y,):
        x.subscribe("a")
        await x.until_joined(hub)
        kinds = [message["type"] for message in x.received]
        assert kinds.index("hub.peers") < kinds.index("topic.swarm")
        (first, *_) = lists(x)
        assert first["full"]
        assert {*first["add"]} == {hub.node_id, x.node_id, y.node_id}
        async with a_gossiper(hub, "z") as z:
            await until(lambda: z.node_id in x.peers)
            hub.router.kick(z.node_id, "enough")
            await until(lambda: z.node_id not in x.peers)
        assert [one["full"] for one in lists(x)] == [True] + [False] * (len(lists(x)) - 1)


async def test_who_says_that_it_is_in_a_swarm_is_told_also_where_there_is_none() -> None:
    """What it knows is from another connection: somebody on it may be banned by now."""
    async with a_hub(topics={"carrier": "stream"}) as hub, a_gossiper(hub, "x") as x:
        x.say("topic.swarm", {"topic": "a", "generation": 1, "joined": True, "neighbours": 1})
        await x.hears("hub.error", code="NO_SWARM")
        (told,) = lists(x)
        assert told == {"add": [hub.node_id, x.node_id], "remove": [], "full": True}
        x.meet()
        await answered(x)
        assert len(lists(x)) == 1, "once a connection"
