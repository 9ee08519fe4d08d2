"""A hub whose frames are small: what does not fit in one is cut, and what cannot be cut takes nothing along."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker import Hub
from broker.config import HubConfig
from broker.hub.router import Router
from tests.hub.gossips import GossipPeer, a_gossiper, gossipers
from tests.hub.test_realm import realm_ticket
from tests.rig import Numbers, Peer, a_hub, a_peer, until

KIB = 1024
SMALL: dict[str, Any] = {"limits": {"max_frame_bytes": 4 * KIB}}  # no config has less
SCOPED: dict[str, Any] = {
    **SMALL,
    "access": {"scopes": {"all": {"subscribe": [">"], "publish": [">"], "call": [">"]}}, "default": ["all"]},
}
MANY = 100
A_FRAME_OF_THEM = 4 * KIB // 67


async def test_a_hundred_gossipers_are_told_of_each_other() -> None:
    """Each list is 6.7 KB. They are there before it is told, and get it and their next acknowledgements."""
    async with a_hub(**SMALL) as hub, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(a_gossiper(hub, str(number))) for number in range(MANY)]
        for peer in peers:
            peer.meet()
        everybody = {peer.node_id for peer in peers} | {hub.node_id}
        await until(lambda: all(peer.peers >= everybody - {peer.node_id} for peer in peers))
        assert all(len(orjson.dumps(one)) <= 4 * KIB for peer in peers for one in peer.received)
        last = peers[-1]
        last.publish("a", 1)
        await last.hears("topic.ack", seq=1)
        assert not any(one["type"] == "hub.error" for peer in peers for one in peer.received)


async def test_the_list_begins_anew_once() -> None:
    """Only the first part of a full list clears what was known."""
    async with a_hub(**SMALL) as hub:
        ids = [f"{number:064x}" for number in range(A_FRAME_OF_THEM + 20)]
        frames = hub.router.swarms.members.peers._frames(ids, ids[:3], full=True)
        details = [orjson.loads(frame)["detail"] for frame in frames]
        assert [one["full"] for one in details] == [True] + [False] * (len(details) - 1)
        assert [id for one in details for id in one["add"]] == ids
        assert [id for one in details for id in one["remove"]] == ids[:3]


async def test_a_frame_that_is_too_large_takes_no_other_along() -> None:
    async with a_hub(**SMALL) as hub, a_peer(hub.ticket) as peer:
        (conn,) = hub.router.sessions
        hub.router.send(conn, "hub.peers", {"add": ["x" * 5_000]})
        hub.router.send(conn, "topic.ack", {"topic": "a", "epoch": "e", "seq": 1})
        hub.router.settle()
        error = await peer.hears("hub.error", code="LIMIT")
        assert "hub.peers has 50" in error["message"]
        await peer.hears("topic.ack", seq=1)
        assert Numbers(hub)("limited_total", limit="frame_bytes") == 1


async def test_a_timer_whose_turn_failed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both timers of a hub: that of the calls, and that of the swarms."""
    async with a_hub(**SMALL, topics={"carrier": "gossip"}) as hub, gossipers(hub, "x", want=True):
        router, loop = hub.router, asyncio.get_running_loop()
        reported: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: reported.append(context))

        def failing(self: Router) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(Router, "settle", failing)
            router._loop.call_soon(router._tick)
            router._loop.call_soon(router.swarms._tick)
            await until(lambda: len(reported) >= 2)
        assert router._timer is not None
        assert router.swarms._timer is not None
        loop.set_exception_handler(None)


def authors_told(hub: Hub) -> int:
    swarm = hub.router.swarms.by_topic.get("a")
    return len((swarm and swarm.authors) or ())


async def test_a_topic_with_more_authors_than_half_a_frame_takes_goes_by_stream() -> None:
    most = 2 * KIB // 67
    async with a_hub(**SCOPED, topics={"carrier": "gossip"}) as hub, AsyncExitStack() as stack:
        authors = [await stack.enter_async_context(a_peer(hub.ticket)) for _ in range(most + 1)]
        for author in authors[:-1]:
            author.say("a", 1)
        await until(lambda: authors_told(hub) == most)
        authors[-1].say("a", 1)
        await until(lambda: "a" not in hub.router.swarms.by_topic)


async def test_who_published_before_there_was_a_swarm_counts_too() -> None:
    async with a_hub(**SCOPED) as hub, AsyncExitStack() as stack:
        authors: list[Peer] = [await stack.enter_async_context(a_peer(hub.ticket)) for _ in range(2 * KIB // 67 + 1)]
        for author in authors:
            author.say("a", 1)
        await until(lambda: "a" in hub.router.topics.channels)
        await until(lambda: hub.router.topics.channels["a"].published == len(authors))
        x: GossipPeer = await stack.enter_async_context(a_gossiper(hub, "x"))
        x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        await x.hears("hub.error", code="NO_SWARM")
        assert "a" not in hub.router.swarms.by_topic


async def test_hubs_with_small_frames_agree_on_all_that_was_decided(tmp_path: Path) -> None:
    """Their state is told in parts, and counts when it is whole: nothing is raised on the way."""
    fast: dict[str, Any] = {"open": True, "http": "off", **SMALL}
    config = HubConfig.model_validate({"data": tmp_path / "one", **fast})
    async with Hub(config) as one:
        realm = one.router.swarms.realm
        kept = {f"topic.of.some.length.{number}": number % 3 + 1 for number in range(200)}
        realm._base, realm._kept = 7, dict(kept)
        joining = HubConfig.model_validate({"data": tmp_path / "two", "join": realm_ticket(one), **fast})
        async with Hub(joining) as two:
            await until(lambda: one.router.links.sessions() and two.router.links.sessions())
            other = two.router.swarms.realm
            await until(lambda: {topic: other.generation(topic) for topic in kept} == kept)
            assert other.generation("another") == 7
            assert {topic: realm.generation(topic) for topic in kept} == kept
