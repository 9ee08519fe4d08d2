"""Who may be in a topic's swarm, what a ban does to it, and what outlasts the hub."""

from __future__ import annotations

import base64
import stat
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from broker import _gossip_ext as ext
from broker.errors import ConfigError
from broker.hub import peers, swarm_members
from broker.hub.realm import Realm
from broker.protocol.wire import CloseCode
from tests.hub.gossips import EPOCH, GossipPeer, a_gossiper, event, gossipers, heard, out_of_stream
from tests.rig import Numbers, a_hub, a_peer, until

GOSSIP: dict[str, Any] = {"topics": {"carrier": "gossip"}}


def scoped(**secrets: bytes) -> dict[str, Any]:
    """Scopes r (reads), w (writes) and rw."""
    scopes = {"r": {"subscribe": [">"]}, "w": {"publish": [">"]}, "rw": {"subscribe": [">"], "publish": [">"]}}
    nodes = {ext.node_id(secret): [scope] for scope, secret in secrets.items()}
    return {"access": {"scopes": scopes, "nodes": nodes}, **GOSSIP}


async def test_a_ban_cuts_the_neighbour_and_gives_the_others_a_new_swarm() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", "z", want=True) as (x, y, z):
        first = x.told["a"]["id"]
        await until(lambda: z.node_id in x.peers and z.node_id in y.peers)
        assert hub.router.admission.ban(z.node_id)
        assert (await z.end())[0] == CloseCode.BANNED
        await until(lambda: z.node_id not in x.peers and z.node_id not in y.peers)
        await until(lambda: not z.swarms["a"].neighbours())
        await until(lambda: x.told["a"]["generation"] == y.told["a"]["generation"] == 2)
        second = x.told["a"]["id"]
        assert second != first
        assert z.told["a"]["id"] == first
        await until(lambda: all(len(one.swarms["a"].neighbours()) >= 1 for one in (x, y)))
        await until(lambda: len(hub.router.swarms.by_topic["a"].handles) == 1)
        x.gossip("a", 1, 5)
        await until(lambda: len(y.events) >= 5)
        assert not z.events
        assert heard(y) == []
        assert out_of_stream(hub, x)
        assert out_of_stream(hub, y)


async def test_every_neighbour_of_the_banned_has_cut_it_in_under_a_second() -> None:
    took = []
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", "z1", "z2", "z3", want=True) as (x, y, *others):
        for bad in others:
            await until(lambda bad=bad: bad.node_id in x.peers and bad.node_id in y.peers)  # type: ignore[misc]
            await until(lambda bad=bad: bad.swarms["a"].neighbours())  # type: ignore[misc]
            began = time.monotonic()
            assert hub.router.admission.ban(bad.node_id)
            await until(lambda bad=bad: bad.node_id not in x.peers | y.peers)  # type: ignore[misc]
            await until(lambda bad=bad: not bad.swarms["a"].neighbours())  # type: ignore[misc]
            took.append(time.monotonic() - began)
        assert median(took) < 1, "the issue's own bound; a busy machine delays one"


async def test_topics_that_the_banned_never_knew_keep_their_swarm() -> None:
    async with (
        a_hub(**GOSSIP) as hub,
        gossipers(hub, "x", want=True) as (x,),
        gossipers(hub, "z", topic="b", want=True) as (z,),
    ):
        hub.router.admission.ban(z.node_id)
        await until(lambda: hub.router.swarms.realm.generation("b") == 2)
        assert hub.router.swarms.realm.generation("a") == 1
        assert hub.router.swarms.realm.generation("new") == 2
        x.gossip("a", 1, 1)
        await x.hears("topic.ack", seq=1)
        assert x.told["a"]["generation"] == 1


async def test_who_is_kicked_is_no_peer_until_it_is_back() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        await until(lambda: y.node_id in x.peers)
        hub.router.kick(y.node_id, "by a test")
        await until(lambda: y.node_id not in x.peers)
        await until(lambda: y.node_id not in x.swarms["a"].neighbours())
        y.ended = y.conn = None
        await y.hello(hub.ticket, name="y")
        await until(lambda: y.node_id in x.peers)


async def test_who_may_not_subscribe_is_not_told_of_a_swarm() -> None:
    secrets = {scope: ext.generate_secret() for scope in ("r", "w")}
    async with (
        a_hub(**scoped(**secrets)) as hub,
        a_gossiper(hub, "w", secret=secrets["w"]) as writer,
        gossipers(hub, "r", want=True, secret=secrets["r"]) as (reader,),
    ):
        writer.publish("a", 1)
        await writer.hears("topic.ack", seq=1)
        writer.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        assert (await writer.hears("hub.error"))["code"] == "ACCESS_DENIED"
        assert "a" not in writer.told
        await until(lambda: reader.told["a"]["authors"] == [writer.node_id])
        writer.publish("a", 2, 3)
        await until(lambda: (writer.node_id, EPOCH, 3) in reader.events)


async def test_who_may_not_publish_is_not_heard() -> None:
    secrets = {scope: ext.generate_secret() for scope in ("r", "rw")}
    async with (
        a_hub(**scoped(**secrets)) as hub,
        a_gossiper(hub, "rw", secret=secrets["rw"]) as author,
        gossipers(hub, "r", want=True, secret=secrets["r"]) as (reader,),
    ):
        author.subscribe("a")
        author.publish("a", 1)
        await author.until_joined(hub)
        await until(lambda: reader.told["a"]["authors"] == [author.node_id] == author.told["a"]["authors"])
        reader.gossip("a", 1, 1)
        await until(lambda: Numbers(hub)("swarm_bad_batches_total", reason="not_allowed") >= 1)
        author.gossip("a", 2, 3)
        await until(lambda: len(reader.events) >= 2)
        assert not [one for one in author.events if one[0] == reader.node_id]
        assert hub.router.topics.channels["a"].published == 3


async def test_the_swarm_outlives_the_hub_and_fills_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_members, "RETURN_TIME", 0.5)
    config = {"data": tmp_path, **GOSSIP}
    gone = GossipPeer()
    async with a_hub(**config) as hub:
        x, y = GossipPeer(), GossipPeer()
        for one, name in ((x, "x"), (y, "y"), (gone, "gone")):
            await one.hello(hub.ticket, name=name)
            one.subscribe("a")
            one.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        for one in (x, y, gone):
            await one.until_joined(hub)
        gone.gossip("a", 1, 30)
        await until(lambda: len(x.events) >= 30 and len(y.events) >= 30)
        before = x.told["a"]["id"]
    try:
        await until(lambda: len(x.swarms["a"].neighbours()) >= 1 and x.ended is not None)
        x.gossip("a", 1, 10)  # while there is no hub
        await until(lambda: (x.node_id, EPOCH, 10) in y.events)
        gone.close()
        async with a_hub(**config) as hub:
            for one, name in ((x, "x"), (y, "y")):
                one.ended = one.conn = None
                await one.hello(hub.ticket, name=name)
                one.say("topic.swarm", {"topic": "a", "generation": 1, "joined": True, "want": False})
            assert x.told["a"]["id"] == before
            head = {"topic": "a", "author": gone.node_id, "epoch": EPOCH, "seq": 30}
            y.say("topic.head", head)
            question = await y.hears("topic.repair", author=gone.node_id)
            assert (question["from"], question["to"]) == (1, 30)
            y.answer("a", gone.node_id, EPOCH, 1, 30)
            x.say("topic.head", {"topic": "a", "epoch": EPOCH, "seq": 10, "first": 1, "acked": 0, "gossip": 10})
            assert (await x.hears("topic.ack"))["seq"] == 0
            x.publish("a", *range(1, 11))
            await x.hears("topic.ack", seq=10)
            async with a_peer(hub.ticket) as late:
                await until(lambda: hub.router.topics.channels["a"].published == 40)
                late.say("__subscribe", {"topics": ["a"], "since": "start"})
                await until(lambda: len(heard(late)) >= 40)
                assert sorted(heard(late)) == sorted([*range(1, 31), *range(1, 11)])
            assert Numbers(hub)("swarm_events_total", direction="out") == 0, "nobody needs it again"
    finally:
        x.close()
        y.close()


async def test_what_members_have_is_not_asked_for_while_the_author_may_come_back() -> None:
    """Its first events may have gone by stream: no member has a signed batch of them, and the author has them all."""
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "y", want=True) as (y,):
        author = GossipPeer()
        try:
            swarm = hub.router.swarms.by_topic["a"]
            y.say("topic.head", {"topic": "a", "author": author.node_id, "epoch": EPOCH, "seq": 30})
            await until(lambda: swarm.holes.refilling() == [(author.node_id, EPOCH)])
            await author.hello(hub.ticket, name="author")
            author.say("topic.head", {"topic": "a", "epoch": EPOCH, "seq": 30, "first": 1, "acked": 0, "gossip": 30})
            author.publish("a", *range(1, 31))
            await author.hears("topic.ack", seq=30)
            await until(lambda: not swarm.holes.refilling())
            assert not [message for message in y.received if message["type"] == "topic.repair"]
            assert Numbers(hub)("swarm_sequences", verdict="complete") == 1
        finally:
            author.close()


async def test_what_a_member_reports_without_a_signature_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_members, "RETURN_TIME", 0.0)
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 3)
        await x.hears("topic.ack", seq=3)
        y.say("topic.head", {"topic": "a", "author": "f" * 64, "epoch": EPOCH, "seq": 2**50})
        assert (await y.hears("topic.repair"))["to"] == 4_096
        y.say("topic.lost", {"topic": "a", "author": "f" * 64, "epoch": EPOCH, "from": 1, "to": 2**50})
        y.say("topic.lost", {"topic": "a", "author": x.node_id, "epoch": EPOCH, "from": 4, "to": 9})
        y.say("topic.batch", {"topic": "a", "data": "bm9uc2Vuc2U="})
        assert (await y.hears("hub.error"))["message"].startswith("topic.batch: malformed")
        x.gossip("a", 4, 5)
        await x.hears("topic.ack", seq=5)
        assert Numbers(hub)("swarm_sequences", verdict="lost") == 0
        assert {author for author, _, _ in hub.router.topics.channels["a"].ring.heads()} == {x.node_id}


async def test_of_anothers_events_a_word_is_worth_nothing_while_the_author_is_there() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 5)
        await x.hears("topic.ack", seq=5)
        x.gossip("a", 8, 10)
        hole = await x.hears("topic.repair")
        y.say("topic.lost", hole)
        y.say("topic.pause", {"topics": ["b"]})
        y.say("call.requested", {"requestId": "1", "operationId": "hub.topics", "input": None})
        await y.hears("call.responded")
        x.publish("a", 6, 7)
        await x.hears("topic.ack", seq=10)
        assert Numbers(hub)("swarm_sequences", verdict="repaired") == 1


async def test_of_anothers_events_a_word_counts_when_the_author_is_not_expected_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "y", want=True) as (y,):
        async with gossipers(hub, "x") as (x,):
            x.gossip("a", 1, 5)
            await x.hears("topic.ack", seq=5)
            x.gossip("a", 8, 10)
            await x.hears("topic.repair")
        hole = await y.hears("topic.repair")
        y.say("topic.lost", hole)
        y.say("call.requested", {"requestId": "1", "operationId": "hub.topics", "input": None})
        await y.hears("call.responded")
        assert Numbers(hub)("swarm_sequences", verdict="lost") == 0, "it may come back, and has it"
        monkeypatch.setattr(swarm_members, "AWAY", 0.0)
        hub.router.swarms.members.peers.tick(time.monotonic() + peers.AWAY)
        y.say("topic.lost", hole)
        await until(lambda: Numbers(hub)("swarm_sequences", verdict="lost") == 1)


async def test_batches_that_nobody_asked_for_are_not_taken() -> None:
    lone = ext.Endpoint.bind(ext.generate_secret(), gossip_message_bytes=4_096)
    try:
        swarm = lone.join("a", b"1" * 32, [])
        swarm.publish(EPOCH, 1, [event(lone.node_id, 1)])
        await until(lambda: swarm.batches(lone.node_id, EPOCH, 1, 1))
        (data,) = swarm.batches(lone.node_id, EPOCH, 1, 1)
        async with a_hub(**GOSSIP) as hub, gossipers(hub, "y", want=True) as (y,):
            y.say("topic.batch", {"topic": "a", "data": base64.b64encode(data).decode()})
            y.gossip("a", 1, 1)
            await y.hears("topic.ack", seq=1)
            assert {author for author, _, _ in hub.router.topics.channels["a"].ring.heads()} == {y.node_id}
    finally:
        lone.close()


async def test_what_is_under_way_of_a_banned_author_is_not_taken() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "y", want=True) as (y,):
        banned = ext.node_id(ext.generate_secret())
        hub.router.admission.ban(banned)
        (handle,) = hub.router.swarms.by_topic["a"].handles.values()
        hub.router.swarms.gossiped(handle.id, banned, EPOCH, 1, [event(banned, 1)])
        hub.router.swarms.headed(handle.id, banned, EPOCH, 5)
        y.gossip("a", 1, 1)
        await y.hears("topic.ack", seq=1)
        assert Numbers(hub)("swarm_sequences") == 1


def test_a_realm_keeps_its_secret_and_its_generations(tmp_path: Path) -> None:
    one = Realm.of(tmp_path, "hub")
    assert one.generation("a") == 1
    assert not one.is_old(1)
    assert one.rekey({"b": 1}) == 2
    again = Realm.of(tmp_path, "hub")
    assert again.id("a", 2) == one.id("a", 2)
    assert (again.generation("a"), again.generation("b")) == (2, 1)
    assert again.is_old(2)
    assert not again.is_old(again.rekey({}))
    assert again.generation("b") == 3
    for name in ("realm.key", "realm.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert Realm.of(None, "hub").id("a", 1) != one.id("a", 1)


@pytest.mark.parametrize("content", ["", "[]", '{"base": 0, "kept": {}}', '{"base": 1, "kept": {"a": "x"}}'])
def test_generations_that_cannot_be_read_are_not_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "realm.json").write_text(content)
    with pytest.raises(ConfigError, match="banned NodeIds"):
        Realm.of(tmp_path, "hub")
