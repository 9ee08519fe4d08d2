"""Readers of a ring that read the same: what is framed for one of them serves all, and each gets all of it in order.

On an endpoint without a network, which says whose queue is full (tests/fuzz/endpoint.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest

from broker.hub import readers as readers_module
from broker.hub.channel import Channel
from broker.hub.fan_out import FanOut
from broker.hub.metrics import TopicCounters
from broker.hub.readers import FEED_EVENTS, Readers
from broker.protocol.ring import Demoted, Disconnect, Ring
from broker.protocol.routing import SubscribeOptions, Subscriptions
from tests.fuzz.endpoint import FakeEndpoint

FEEDS = 3
EVENTS = FEED_EVENTS * FEEDS
PEERS = range(1, 8)


class Endpoint(FakeEndpoint):
    """One that counts what it is to frame for many, and whose queues take a single send until they are drained."""

    def __init__(self) -> None:
        super().__init__()
        self.packs = 0
        self.narrow = False

    def pack(self, frames: Sequence[bytes]) -> tuple[bytes, ...]:
        self.packs += 1
        return super().pack(frames)

    def send(self, conn: int, frames: bytes | Sequence[bytes], lane: int = 0) -> bool:
        sent = super().send(conn, frames, lane)
        if self.narrow:
            self.full.add(conn)
        return sent


class Table:
    """Readers with one topic."""

    def __init__(self, ring: Ring, **options: Any) -> None:
        def nothing(*_: Any) -> None: ...

        endpoint = self.endpoint = Endpoint()
        fan_out = self.fan_out = FanOut(send=nothing, disconnect=nothing, limited=nothing, most_bytes=1 << 30)
        subscriptions = Subscriptions()
        self.readers = Readers(
            cast(Any, endpoint), fan_out, subscriptions, dropped=nothing, slow=nothing, queue=nothing
        )
        self.channel = Channel("a", ring, cast(Any, endpoint.group()), TopicCounters())
        fan_out.channels["a"] = self.channel
        for peer in PEERS:
            endpoint.opened(peer, f"{peer:064x}")
            subscriptions.add(peer, "a", SubscribeOptions(**options))
            self.channel.group.add(peer)
        self.published = 0

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.published += 1
            frame = orjson.dumps({"type": "a", "detail": self.published})
            self.channel.ring.append("author", "epoch", self.published, frame)
            self.channel.pending.append(frame)
        self.fan_out.flush(self.channel)

    def drain(self, peer: int) -> None:
        """The connection takes something again."""
        self.endpoint.full.discard(peer)
        self.readers.drained(peer)

    def got(self, peer: int) -> list[dict[str, Any]]:
        return [orjson.loads(sent.frame) for sent in self.endpoint.sent if sent.conn == peer]

    def numbers(self, peer: int) -> list[int]:
        return [message["detail"] for message in self.got(peer) if message["type"] == "a"]


def test_what_many_are_behind_by_is_framed_once_however_they_take_turns() -> None:
    table = Table(Ring())
    table.endpoint.full.update(PEERS)
    table.publish(EVENTS)
    assert table.readers.lagging == len(PEERS)
    table.endpoint.narrow = True
    for _ in range(FEEDS + 1):
        for peer in PEERS:
            table.drain(peer)
            table.readers.settle()
    assert table.readers.lagging == 0
    assert all(table.numbers(peer) == list(range(1, EVENTS + 1)) for peer in PEERS)
    assert table.endpoint.packs == FEEDS
    counters = table.channel.counters
    assert (counters.delivered, counters.repaired, counters.lost) == (EVENTS * len(PEERS), EVENTS * len(PEERS), 0)
    table.readers.settle()
    assert not table.readers._packed, "nobody is behind any more"


def test_what_readers_held_up_is_looked_at_once_a_batch_however_many_of_them_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(Ring(capacity_events=50), patience=60.0)
    table.endpoint.full.update(PEERS)
    table.publish(40)
    table.publish(40)
    table.fan_out.mind(table.channel)
    table.channel.unacked = 80
    assert table.channel.ring.held
    looks: list[float] = []
    tick = Ring.tick

    def counted(ring: Ring, now: float) -> list[Demoted | Disconnect]:
        looks.append(now)
        return tick(ring, now)

    monkeypatch.setattr(Ring, "tick", counted)
    for peer in PEERS:
        table.drain(peer)
    assert not looks
    table.readers.release()
    assert len(looks) == 1
    assert not table.channel.ring.held
    assert table.channel.unacked == 0, "acknowledged"
    table.readers.release()
    assert len(looks) == 1


def test_what_was_lost_is_told_to_each_and_is_no_delivery() -> None:
    table = Table(Ring(capacity_events=8), policy="drop_oldest")
    table.endpoint.full.update(PEERS)
    table.publish(20)
    for peer in PEERS:
        table.drain(peer)
        lost, *events = table.got(peer)
        assert (lost["type"], lost["detail"]["from"], lost["detail"]["to"]) == ("topic.lost", 1, 12)
        assert [message["detail"] for message in events] == list(range(13, 21))
    counters = table.channel.counters
    assert (counters.delivered, counters.lost) == (8 * len(PEERS), 12 * len(PEERS))


def test_a_feed_that_was_refused_is_counted_when_it_goes() -> None:
    table = Table(Ring())
    table.endpoint.full.update(PEERS)
    table.publish(10)
    table.readers.drained(1)
    assert (table.channel.counters.delivered, table.numbers(1)) == (0, [])
    table.drain(1)
    assert (table.channel.counters.delivered, table.numbers(1)) == (10, list(range(1, 11)))


def test_who_has_some_of_it_gets_the_rest_and_not_what_another_got() -> None:
    table = Table(Ring())
    channel = table.channel
    for detail, author in enumerate("xyz"):
        channel.ring.append(author, "epoch", 1, orjson.dumps({"type": "a", "detail": detail}))
    every = (("y", [0, 2]), ("z", [0, 1]), ("", [0, 1, 2]), ("x", [1, 2]), ("xy", [2]))
    for peer, (had, due) in zip(PEERS, every, strict=False):
        channel.group.remove(peer)
        channel.ring.seek(peer, dict.fromkeys(had, ("epoch", 1)), SubscribeOptions(), 0.0)
        table.readers.add(channel, peer)
        table.readers.feed(channel, peer)
        assert table.numbers(peer) == due, had


def test_feeds_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_module, "MAX_PACKED", 2)
    table = Table(Ring())
    table.endpoint.full.update(PEERS)
    table.publish(EVENTS)
    table.drain(1)
    assert (table.endpoint.packs, len(table.readers._packed)) == (FEEDS, 2)
    table.drain(2)
    assert table.numbers(1) == table.numbers(2) == list(range(1, EVENTS + 1))
