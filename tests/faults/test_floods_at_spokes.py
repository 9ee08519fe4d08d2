"""The same as test_floods.py, for what a spoke holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker import Event, SpokeOptions
from broker.errors import CallTimeout, EventTooLarge, ExecutionFailed
from broker.protocol.publication import UNACKED_EVENTS
from broker.spoke import publisher, swarm
from broker.spoke import subscription as of_spoke
from broker.spoke.subscription import Subscription
from tests.rig import PATIENCE, Numbers, a_hub, serving, spokes, until
from tests.spoke.swarming import TOPIC, publish, reading, swarm_of

KIB = 1024


class Deaf:
    """The owner of a subscription whose hub does not heed pauses."""

    @property
    def connected(self) -> bool:
        return True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.swarm: Callable[[str], Awaitable[None]] = lambda _topic: asyncio.sleep(0)

    def begin(self, subscription: Subscription) -> None: ...
    def end(self, subscription: Subscription) -> None: ...
    def pause(self, subscription: Subscription) -> None:
        self.asked.append("pause")

    def resume(self, subscription: Subscription, *, again: bool) -> None:
        self.asked.append("again" if again else "resume")


async def test_a_subscription_whose_hub_does_not_heed_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_spoke, "UNDER_WAY", 100)
    bound, count = 10, 500
    owner = Deaf()
    events = Subscription(("a",), since=None, policy="block", patience=2.0, bound=bound, owner=owner, gap_patience={})
    for seq in range(1, count + 1):
        events.receive("a", "x", "e", seq, [Event("a", seq, {"author": "x", "epoch": "e", "seq": seq})], 0.0)
    assert events.queued == bound + 100
    assert events.dropped == count - bound - 100
    assert (owner.asked, events.verdict) == (["pause"], "pending")
    got = [(await anext(events)).seq for _ in range(bound + 100)]
    assert got == list(range(1, bound + 101))
    assert owner.asked == ["pause", "again"], "what was left out is asked for"
    assert events.verdict == "pending"


async def test_events_that_the_hub_has_not_acknowledged() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "pub", options=SpokeOptions(backoff_first=5)) as (pub,):
        await pub.publish("a", 0)
        await pub.flush()
        hub.router.endpoint.admit(open=False, allow=[], deny=[])
        await until(lambda: not pub.connected)
        for _ in range(UNACKED_EVENTS):
            await pub.publish("a", 1, timeout=0.1)
        with pytest.raises(CallTimeout, match=f"{UNACKED_EVENTS} wait for the hub's acknowledgement; it is away"):
            await pub.publish("a", 1, timeout=0.1)
        with pytest.raises(CallTimeout, match=f"has not acknowledged {UNACKED_EVENTS} events"):
            await pub.flush(0.1)


async def test_topics_of_one_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "MAX_TOPICS", 3)
    async with a_hub() as hub, spokes(hub.ticket, "pub") as (pub,):
        for number in range(3):
            await pub.publish(f"t.{number}", 1)
        with pytest.raises(EventTooLarge, match="publishes to 3 topics already; reuse topics"):
            await pub.publish("t.3", 1)
        await pub.publish("t.0", 2)
        await pub.flush()
        assert Numbers(hub)("events_published_total") == 4
        assert pub.counts()["published"] == 4


async def test_sequences_of_one_swarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that spoke last are remembered; of the others nothing is passed over when they speak again."""
    monkeypatch.setattr(swarm, "MAX_SOURCES", 4)
    async with swarm_of(2) as (_, (a, b)), reading(b) as rb:
        await publish(a, range(5))
        await rb.has(range(5))
        (handle,) = b._swarms._handles
        for number in range(50):
            b._swarms.headed(handle, f"{number:064x}", "0" * 16, 1)
        assert len(b._swarms._topics[TOPIC].sources) == 4
        assert b.gossip_counts()["sources_forgotten"] >= 46
        await publish(a, range(5, 200))
        await rb.has(range(200))
        (verdict,) = [one for one in rb.events.verdicts if one.author == a.node_id]
        assert (verdict.missing, verdict.lost, verdict.received) == ((), (), 200)


async def test_calls_that_find_the_queue_to_the_hub_full() -> None:
    """All begun in one turn of the loop, in which nobody reads."""
    big, most = "x" * 900_000, list[int]()

    async with (
        a_hub() as hub,
        serving(hub.ticket, "s", t__size=size_of),
        spokes(hub.ticket, "asks") as (asks,),
    ):

        async def ask() -> Any:
            try:
                return await asks.call("t.size", {"text": big}, timeout=PATIENCE)
            except ExecutionFailed as error:
                stats = asks.stats()
                most.append(stats.queued_bytes if stats else 0)
                return error

        ends = await asyncio.gather(*(ask() for _ in range(40)))
        refused = [end for end in ends if isinstance(end, ExecutionFailed)]
        assert refused
        assert all(one.retryable and "its queue is full" in one.message for one in refused)
        answered = [end for end in ends if end not in refused]
        assert answered == [len(big)] * (40 - len(refused))
        assert 4_096 * KIB < max(most) <= 8_192 * KIB
        assert asks.counts()["connects"] == 1


async def size_of(text: str) -> int:
    return len(text)
