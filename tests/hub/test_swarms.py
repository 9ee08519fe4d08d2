"""Topics over gossip at a real hub: who is taken out of the stream, who is put back, and nobody misses anything."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from broker.hub import peers, readers
from broker.protocol import carrier
from broker.protocol.codec import encode
from broker.protocol.named import Frame
from broker.spoke.swarms import GAP_PATIENCE
from tests.hub.gossips import EPOCH, a_gossiper, event, gossipers, heard, out_of_stream
from tests.rig import Numbers, Peer, a_hub, a_peer, until

GOSSIP: dict[str, Any] = {"topics": {"carrier": "gossip"}}


async def begin(peer: Peer, topic: str = "a") -> None:
    """The topic's first event, so that it is there."""
    peer.say(topic, 0)
    await peer.hears("topic.ack", topic=topic)


async def test_a_joined_spoke_gets_no_stream_copy_and_hears_who_cannot_gossip() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket, name="old") as old:
        await begin(old)
        async with gossipers(hub, "x", "y") as (x, y):
            for number in range(1, 4):
                old.say("a", number)
            await until(lambda: len(x.events) >= 3 and len(y.events) >= 3)
            assert [author for author, _, _ in x.events] == [old.endpoint.node_id] * 3
            assert [seq for _, _, seq in x.events] == [2, 3, 4]
            assert heard(x) == heard(y) == [], "the stream leaves them out"
            numbers = Numbers(hub)
            assert numbers("events_published_total", carrier="gossip") == 4
            assert numbers("swarms") == 1
            assert numbers("swarm_members") == 2
            assert numbers("swarm_events_total", direction="out") == 3, "nobody heard the swarm when the first one came"
            assert numbers("carrier_switches_total", to="gossip") == 1


async def test_who_cannot_gossip_hears_who_does_and_the_author_is_acknowledged() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket, name="old") as old:
        old.say("__subscribe", {"topics": [">"]})
        await begin(old)
        async with gossipers(hub, "x", "y") as (x, y):
            assert x.gossip("a", 1, 600)
            ack = await x.hears("topic.ack", seq=600)
            assert (ack["epoch"], ack["topic"]) == (EPOCH, "a")
            assert ack["window"] >= 512
            await until(lambda: len(heard(old)) >= 601 and len(y.events) >= 600)
            assert heard(old) == [0, *range(1, 601)]
            assert sorted(y.events) == [(x.node_id, EPOCH, seq) for seq in range(1, 601)]
            assert heard(y) == []


async def test_a_late_joiner_is_fed_from_the_ring_until_it_hears_the_swarm() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", want=True) as (x,):
        x.gossip("a", 1, 50)
        await x.hears("topic.ack", seq=50)
        async with a_gossiper(hub, "late") as late:
            late.subscribe("a", since="start")
            for seq in range(51, 400):
                x.gossip("a", seq, seq)
            await late.until_joined(hub)
            x.gossip("a", 400, 420)
            head = await late.hears("topic.head", author=x.node_id, baseline=False)
            assert head["seq"] >= 50
            await until(lambda: (x.node_id, EPOCH, 420) in late.events)
            await x.hears("topic.ack", seq=420)
            stream = heard(late)
            assert stream == list(range(1, len(stream) + 1)), "each once and in order"
            missing = set(range(1, 421)) - set(stream) - {seq for _, _, seq in late.events}
            assert not missing


async def test_who_leaves_goes_on_by_stream_from_where_it_was() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 10)
        await until(lambda: len(y.events) >= 10)
        y.say("topic.swarm", {"topic": "a", "generation": 1, "joined": False, "want": False})
        y.subscribe("a", since={"a": {x.node_id: [EPOCH, 7]}})
        x.gossip("a", 11, 20)
        await until(lambda: len(heard(y)) >= 13)
        assert heard(y) == list(range(8, 21))
        assert not out_of_stream(hub, y)
        assert out_of_stream(hub, x)


async def test_a_spoke_that_falls_silent_is_put_back_and_told_how_far_all_are() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 10)
        await x.hears("topic.ack", seq=10)
        y.received.clear()
        y.say("topic.swarm", {"topic": "a", "generation": 1, "joined": False, "want": True})
        head = await y.hears("topic.head", author=x.node_id)
        assert (head["seq"], head["baseline"]) == (10, False)
        told = await y.hears("topic.swarm", generation=1)
        assert [place["id"] for place in told["bootstrap"]] == [hub.node_id, x.node_id]
        assert told["bootstrap"][1]["addrs"][0] == x.endpoint.addrs()[0]


async def test_a_hole_is_asked_of_the_author_and_filled_in_order() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket) as old, gossipers(hub, "x", want=True) as (x,):
        old.say("__subscribe", {"topics": ["a"]})
        x.gossip("a", 1, 5)
        await x.hears("topic.ack", seq=5)
        x.gossip("a", 8, 10)
        hole = await x.hears("topic.repair", author=x.node_id)
        assert (hole["epoch"], hole["from"], hole["to"]) == (EPOCH, 6, 7)
        assert max(heard(old)) == 5, "what is behind a hole waits"
        x.publish("a", 6, 7)
        await x.hears("topic.ack", seq=10)
        await until(lambda: len(heard(old)) >= 10)
        assert heard(old) == list(range(1, 11))
        numbers = Numbers(hub)
        assert numbers("swarm_repairs_total", direction="asked") == 1
        assert numbers("swarm_sequences", verdict="repaired") == 1


async def test_what_the_author_does_not_have_any_more_is_lost_by_name() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket) as old, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 5)
        await x.hears("topic.ack", seq=5)
        x.gossip("a", 8, 10)
        hole = await x.hears("topic.repair")
        y.say("topic.lost", hole)  # nobody asked it
        x.say("topic.lost", hole)
        await x.hears("topic.ack", seq=10)
        old.say("topic.repair", {**hole, "from": 1, "to": 10})
        await until(lambda: len(heard(old)) >= 8)
        assert heard(old) == [1, 2, 3, 4, 5, 8, 9, 10]
        assert (await old.hears("topic.lost"))["to"] == 7
        assert Numbers(hub)("swarm_sequences", verdict="lost") == 1


async def test_the_hub_beats_in_each_swarm() -> None:
    """Equal messages are one message to gossip: these must not be equal."""
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", want=True) as (x,):
        await until(lambda: len([author for author, _, _ in x.heads if author == hub.node_id]) >= 3)


async def test_what_comes_before_anybody_hears_the_swarm_is_not_put_into_it() -> None:
    """A flood would take the tree apart that the first heartbeats find, and nobody needs it: all are fed by stream."""
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket, name="old") as old, a_gossiper(hub, "x", says=False) as x:
        await begin(old)
        x.subscribe("a")
        await until(lambda: "a" in x.swarms and x.swarms["a"].neighbours())
        for number in range(1, 21):
            old.say("a", number)
        await until(lambda: len(heard(x)) >= 20)
        assert Numbers(hub)("swarm_events_total", direction="out") == 0
        x.say_joined("a")
        await x.until_joined(hub)
        old.say("a", 21)
        await until(lambda: bool(x.events))
        assert [seq for _, _, seq in x.events] == [22]
        assert len(heard(x)) == 20, "the stream leaves it out"


async def test_an_authors_end_is_told_on_its_behalf() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket) as old:
        await begin(old)
        async with gossipers(hub, "x") as (x,):
            old.say("a", 1)
            await until(lambda: any(author == old.endpoint.node_id and seq == 2 for author, _, seq in x.heads))


async def test_a_topic_by_stream_refuses_a_swarm() -> None:
    async with a_hub(topics={"carriers": {"a": "stream", "b.*": "gossip"}}) as hub, a_gossiper(hub, "x") as x:
        x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        error = await x.hears("hub.error", code="NO_SWARM")
        assert error["about"] == "a"
        x.subscribe("a", "b.>")
        x.publish("a", 1)
        x.publish("b.c", 1)
        await x.until_joined(hub, "b.c")
        rows = {row["topic"]: row["carrier"] for row in await topics(hub)}
        assert (rows["a"], rows["b.c"]) == ("stream", "gossip")


async def topics(hub: Any) -> list[dict[str, Any]]:
    async with a_peer(hub.ticket) as peer:
        peer.say("call.requested", {"requestId": "1", "operationId": "hub.topics", "input": None})
        rows: list[dict[str, Any]] = (await peer.hears("call.responded"))["output"]
        return rows


async def test_without_gossip_nobody_is_told_of_any() -> None:
    async with a_hub(gossip={"enabled": False}) as hub, a_gossiper(hub, "x") as x:
        x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        await x.hears("hub.error", code="NO_SWARM")
        assert not x.peers


async def test_a_spoke_whose_messages_have_another_size_stays_with_the_stream() -> None:
    async with a_hub(gossip={"message_bytes": 1_024}, **GOSSIP) as hub, a_gossiper(hub, "x") as x:
        error = await x.hears("hub.error", code="NO_SWARM")
        assert "1024" in error["message"]
        x.subscribe("a")
        x.publish("a", 1)
        await until(lambda: heard(x) == [1])
        assert "a" not in x.told


async def test_auto_moves_a_dear_topic_to_gossip_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "QUIET", 0.5)
    names = [f"s{number}" for number in range(8)]
    async with a_hub(topics={"cpu_deliveries": 400.0}) as hub, a_peer(hub.ticket, name="old") as old:
        await begin(old)
        async with gossipers(hub, *names, waits=False) as members:
            sent = 0

            def some() -> bool:
                nonlocal sent
                sent += 1
                old.say("a", sent)
                return all(out_of_stream(hub, one) for one in members)

            await until(some)  # a hundred a second and more
            assert (await topics(hub))[0]["carrier"] == "gossip"

            def few() -> bool:
                nonlocal sent
                if hub.router.topics.channels["a"].published == sent + 1:
                    sent += 1
                    old.say("a", sent)
                return "a" not in hub.router.swarms.by_topic

            # What goes on while it moves is not much, and comes too.
            await until(lambda: "a" not in hub.router.swarms.by_topic)
            await until(few)
            old.say("a", "end")
            for one in members:
                await until(lambda one=one: "end" in heard(one))  # type: ignore[misc]
                stream = [number for number in heard(one) if number != "end"]
                gossip = {seq - 1 for _, _, seq in one.events}
                assert set(range(1, sent + 1)) <= set(stream) | gossip, "no hole"
                assert len(stream) == len(set(stream)), "nothing twice on one way"
            assert Numbers(hub)("carrier_switches_total") == 2


async def test_a_program_that_asks_for_gossip_gets_it_while_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "QUIET", 0.2)
    async with a_hub() as hub, a_gossiper(hub, "y") as y:
        y.subscribe("a")
        async with a_gossiper(hub, "x") as x:
            x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
            await y.until_joined(hub)
            await until(lambda: "a" in x.swarms and x.swarms["a"].neighbours())
            x.gossip("a", 1, 3)
            await until(lambda: len(y.events) >= 3)
        await until(lambda: "a" not in hub.router.swarms.by_topic)
        assert y.told["a"]["id"] is None


async def test_repairs_that_many_ask_for_at_once_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", "y", want=True) as (x, y):
        x.gossip("a", 1, 20)
        await x.hears("topic.ack", seq=20)
        ring = hub.router.topics.channels["a"].ring
        asked: list[tuple[int, int]] = []
        real = ring.range

        def counted(author: str, epoch: str, a: int, b: int, most: int = 512) -> Any:
            asked.append((a, b))
            return real(author, epoch, a, b, most)

        monkeypatch.setattr(ring, "range", counted)
        question = {"topic": "a", "author": x.node_id, "epoch": EPOCH, "from": 3, "to": 9}
        conns = {one.node_id: one.peer for one in hub.router.sessions.values()}
        for one in (x, y):
            hub.router.frames(conns[one.node_id], [encode("topic.repair", question)])
        hub.router.batch_done(2)
        await until(lambda: heard(x) == heard(y) == list(range(3, 10)))
        assert asked == [(3, 9)]
        assert Numbers(hub)("swarm_repairs_total", direction="served") == 2


async def test_what_a_hundred_ask_for_within_the_jitter_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a batch of its own."""
    assert max(GAP_PATIENCE) < readers.KEPT
    async with a_hub(**GOSSIP) as hub, a_gossiper(hub, "x") as x:
        x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        await until(lambda: "a" in x.swarms and x.swarms["a"].neighbours())
        x.gossip("a", 1, 20)
        await x.hears("topic.ack", seq=20)
        table, got, asked = hub.router.topics.readers, dict[int, list[bytes]](), list[tuple[int, int]]()
        ring = hub.router.topics.channels["a"].ring
        real = ring.range

        def counted(author: str, epoch: str, a: int, b: int, most: int = 512) -> Any:
            asked.append((a, b))
            return real(author, epoch, a, b, most)

        def ask(peer: int) -> None:
            table.repair(peer, "a", x.node_id, EPOCH, 3, 9)
            table.settle()

        monkeypatch.setattr(ring, "range", counted)

        def told(peer: int, frames: list[bytes]) -> bool:
            got[peer] = frames
            return True

        monkeypatch.setattr(table, "_tell", told)
        monkeypatch.setattr(readers, "KEPT", 100.0)  # however busy this machine is
        for peer in range(1_000, 1_100):
            ask(peer)
        assert asked == [(3, 9)]
        assert len(got) == 100
        assert all(frames == got[1_000] and len(frames) == 7 for frames in got.values())
        assert Numbers(hub)("swarm_repairs_total", direction="served") == 100
        assert Numbers(hub)("swarm_repairs_total", direction="merged") == 99
        table._answers.clear()
        monkeypatch.setattr(readers, "KEPT", 0.0)
        for peer in range(1_000, 1_003):
            ask(peer)
        assert len(asked) == 4, "an answer is not kept for longer"
        monkeypatch.setattr(readers, "KEPT", 100.0)
        for first in range(1, 15):
            monkeypatch.setattr(readers, "MAX_ANSWERS", 4)
            table.repair(1_000, "a", x.node_id, EPOCH, first, first)
        assert len(table._answers) == 4


async def test_what_waited_behind_holes_keeps_its_numbers() -> None:
    async with a_hub(**GOSSIP) as hub, gossipers(hub, "x", want=True) as (x,):
        x.gossip("a", 1, 1)
        await x.hears("topic.ack", seq=1)
        swarm = hub.router.swarms.by_topic["a"]
        for first, last in ((3, 4), (6, 9)):
            run = [event(x.node_id, seq) for seq in range(first, last + 1)]
            swarm.from_gossip(x.node_id, EPOCH, first, list(run))
        swarm.lost((x.node_id, EPOCH), 2, 5)
        span = swarm.channel.ring.range(x.node_id, EPOCH, 1, 9)
        assert [orjson.loads(frame)["meta"]["seq"] for frame in span.frames] == [1, 3, 4, 6, 7, 8, 9]
        assert span.missing == [(2, 2), (5, 5)]


async def test_of_a_batch_with_an_event_that_nobody_can_read_nothing_is_taken() -> None:
    async with a_hub(**GOSSIP) as hub, a_peer(hub.ticket) as old, gossipers(hub, "x", want=True) as (x,):
        old.say("__subscribe", {"topics": [">"]})
        (handle,) = hub.router.swarms.by_topic["a"].handles.values()
        right = event(x.node_id, 3)
        wrong = [right.replace(b":3,", b":tru,", 1), right.replace(b":3,", b":%b," % (b"[" * 300 + b"]" * 300), 1)]
        for frame in wrong:  # as the extension gives it: that it says what its batch says, it has seen
            frames: list[Frame] = [event(x.node_id, 1), (900, bytes(32)), frame]
            hub.router.swarms.gossiped(handle.id, x.node_id, EPOCH, 1, frames)
        hub.router.batch_done(len(wrong))
        assert Numbers(hub)("swarm_bad_batches_total", reason="contradicts") == 2
        x.gossip("a", 1, 1)
        await until(lambda: heard(old) == [1])


async def test_the_peers_know_of_each_other_and_forget_who_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "AWAY", 0.1)
    async with a_hub() as hub, a_gossiper(hub, "x") as x:
        x.meet()
        async with a_gossiper(hub, "y") as y:
            y.meet()
            await until(lambda: y.node_id in x.peers)
            assert y.peers == {hub.node_id, x.node_id, y.node_id}
        await until(lambda: y.node_id not in x.peers)
