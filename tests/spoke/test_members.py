"""Members repair holes among themselves while no hub can be reached: whom they ask and answer, what they believe."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from broker import Spoke, SpokeOptions, connect
from broker.protocol.codec import encode
from broker.protocol.sequence import Repair
from broker.spoke import members as members_module
from broker.spoke.members import proof_of
from tests.rig import PATIENCE, a_hub, until
from tests.spoke.swarming import TOPIC, Reader, publish, reading, swarm_of

pytestmark = pytest.mark.timeout(180)

SLOW = SpokeOptions(backoff_first=1.0, backoff_most=2.0)


@contextmanager
def deaf(spoke: Spoke) -> Iterator[None]:
    """What its swarm brings passes it by, as when gossip overran it; it hears of newest numbers all the same."""
    take = spoke._swarms.take
    spoke._swarms.take = lambda *_batch: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        spoke._swarms.take = take  # type: ignore[method-assign]


@contextmanager
def mute(spoke: Spoke) -> Iterator[None]:
    """It asks nobody."""
    ask = spoke._subscriptions.ask_members
    spoke._subscriptions.ask_members = lambda _hole: False
    try:
        yield
    finally:
        spoke._subscriptions.ask_members = ask


@asynccontextmanager
async def without_a_hub(count: int) -> AsyncIterator[tuple[list[Spoke], list[Reader]]]:
    """An author and readers in a swarm whose hub has gone after 100 events."""
    async with AsyncExitStack() as stack:
        async with a_hub(topics={"carrier": "gossip"}) as hub:
            spokes = [
                await stack.enter_async_context(connect(hub.ticket, name=f"s{n}", options=SLOW, timeout=PATIENCE))
                for n in range(count)
            ]
            readers = [await stack.enter_async_context(reading(one)) for one in spokes[1:]]
            await publish(spokes[0], range(100))
            await spokes[0].flush(PATIENCE)
            for reader in readers:
                await reader.has(range(100))
        await until(lambda: not any(spoke.connected for spoke in spokes))
        yield spokes, readers


def known(reader: Reader) -> int:
    (verdict,) = reader.events.verdicts
    return verdict.known


async def test_the_author_fills_a_hole_while_there_is_no_hub() -> None:
    async with without_a_hub(3) as ((author, holey, _), (reader, other)):
        with deaf(holey):
            await publish(author, range(100, 400))
            await other.has(range(400))
            await until(lambda: known(reader) == 400)
        await reader.has(range(400))
        (verdict,) = reader.events.verdicts
        assert (verdict.missing, verdict.lost, verdict.repaired) == ((), (), 300)
        assert reader.events.verdict == "pending", "nobody can say whether that is all while the hub is away"
        assert holey.gossip_counts()["members_asked"] >= 1
        assert author.gossip_counts()["members_let_in"] >= 1


async def test_a_neighbour_fills_it_when_the_author_has_left() -> None:
    async with without_a_hub(3) as ((author, holey, neighbour), (reader, other)):
        with deaf(holey), mute(holey):
            await publish(author, range(100, 400))
            await other.has(range(400))
            await until(lambda: known(reader) == 400)
            await author.close()
        await reader.has(range(400))
        (verdict,) = reader.events.verdicts
        assert (verdict.missing, verdict.lost) == ((), ())
        assert neighbour.gossip_counts()["repairs_answered"] >= 1


async def test_what_no_member_has_stays_pending_and_is_never_named_lost_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after more questions than a hub that is silent gets."""
    monkeypatch.setattr("broker.protocol.tracker.WAITS", (0.02, 0.04, 0.08, 0.16, 0.28, 0.04))
    async with without_a_hub(3) as ((author, holey, other), (reader, _)):
        for spoke in (author, other):
            monkeypatch.setattr(spoke._swarms, "batches", lambda *_range: [])
        with deaf(holey):
            await publish(author, range(100, 200))
            await until(lambda: known(reader) == 200)
        await until(lambda: holey.gossip_counts().get("members_lacked", 0) > 12)
        (verdict,) = reader.events.verdicts
        assert (verdict.missing, verdict.lost) == (((101, 200),), ())
        assert reader.events.verdict == "pending"


async def test_only_who_proves_to_be_a_member_is_let_in_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with swarm_of(2) as (_, (a, b)), reading(a), reading(b):
        door, (id,) = a._link.others.door, a._swarms.ids(TOPIC)

        def member(proof: Any, topic: Any = TOPIC) -> Any:
            return door.lets_in(b.node_id, {"member": {"topic": topic, "proof": proof}})

        right = proof_of(id, b.node_id, a.node_id)
        assert member(right) is not None
        wrong = [right[:-1], "", 7, None, "\ud800", proof_of(id, a.node_id, b.node_id)]
        wrong += [proof_of("0" * 64, b.node_id, a.node_id), proof_of(id, b.node_id, "1" * 64)]
        assert [member(proof) for proof in wrong] == [None] * len(wrong)
        assert member(right, "other") is None
        assert member(right, None) is None
        assert door.lets_in(b.node_id, {"member": right}) is None
        assert "members_refused" not in a.gossip_counts()
        monkeypatch.setattr(members_module, "MAX_ASKING", 0)
        assert member(right) is not None, "it is told that there is no room"
        assert a.gossip_counts()["members_refused"] == 1


async def test_a_member_that_finds_no_room_asks_others_and_questions_are_proved_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with swarm_of(3) as (_, (a, b, c)), reading(b) as rb, reading(c):
        await publish(a, range(50))
        await rb.has(range(50))
        hole = Repair(TOPIC, a.node_id, rb.events.verdicts[0].epoch, 1, 50)
        assert b._subscriptions.ask_members(hole)
        await until(lambda: a.gossip_counts().get("members_let_in") == 1)  # the author first
        await until(lambda: a.gossip_counts().get("repairs_answered", 0) >= 1)
        (conn,) = b._link.others._hosts
        b._link.others.send(conn, [encode("topic.repair", hole.to_json() | {"proof": "0" * 40})])
        await until(lambda: a.gossip_counts().get("members_unproved") == 1)
        await until(lambda: not b._link.others._hosts)
        monkeypatch.setattr(members_module, "MAX_ASKED", 0)
        assert not b._subscriptions.ask_members(hole)
        assert b.gossip_counts()["members_full"] == 1
        assert c.gossip_counts().get("members_let_in", 0) == 0


async def test_a_member_is_believed_for_the_signature_alone() -> None:
    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, range(20))
        await rb.has(range(20))
        epoch = rb.events.verdicts[0].epoch
        (batch, *_) = a._swarms.batches(TOPIC, a.node_id, epoch, 1, 20, 100_000)
        forged = bytearray(batch)
        forged[-1] ^= 1
        assert b._repairs.taken({"topic": TOPIC, "data": b64encode(forged).decode()}) is None
        assert b._repairs.taken({"topic": TOPIC, "data": b64encode(batch).decode()}) == (TOPIC, a.node_id, epoch)


async def test_who_is_no_peer_any_more_may_not_ask_either() -> None:
    async with swarm_of(3) as (hub, (a, b, c)), reading(b) as rb, reading(c):
        await publish(a, range(50))
        await rb.has(range(50))
        assert b._subscriptions.ask_members(Repair(TOPIC, a.node_id, rb.events.verdicts[0].epoch, 1, 50))
        await until(lambda: bool(a._link.others._hosts))
        a._swarms.peers({"remove": [b.node_id]})
        await until(lambda: not a._link.others._hosts and not b._link.others._hosts)
        assert hub.node_id
