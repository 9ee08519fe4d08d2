"""What a spoke publishes into a swarm is gathered while the hub is late to acknowledge it, and never kept for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from broker.protocol.holding import MOST, SLACK
from broker.spoke import publisher as module
from broker.spoke.publisher import Published, Publisher
from tests.rig import until

TOPIC = "t"
MESSAGE_BYTES = 4_096
NEAR = 0.002
"""Seconds that an acknowledgement takes, on the test's clock."""


class Swarm:
    """The way into one swarm: which numbers it was given in one go."""

    def __init__(self) -> None:
        self.given: list[range] = []

    def open(self, topic: str) -> bool:
        return True

    def publish(self, topic: str, epoch: str, first_seq: int, frames: list[bytes]) -> bool:
        self.given.append(range(first_seq, first_seq + len(frames)))
        return True

    def message_bytes(self, topic: str) -> int:
        return MESSAGE_BYTES


class Author:
    """A publisher that is connected and in a swarm, on a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.swarm, self.control = 100.0, Swarm(), list[Any]()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.publisher = Publisher(
            send=lambda frames: True,
            send_control=lambda kind, detail: self.control.append(kind),
            clock_ms=lambda: 0,
            max_frame_bytes=1 << 20,
            ways=self.swarm,
        )
        self.publisher.identify("author")
        self.publisher.connected(acknowledges=True, max_frame_bytes=1 << 20)

    async def publish(self, detail: Any = None) -> Published:
        """The loop has had its turn after it."""
        place = await self.publisher.publish(TOPIC, detail, timeout=1.0)
        await asyncio.sleep(0)
        return place

    async def acknowledge(self, place: Published) -> None:
        self.publisher.acknowledged(TOPIC, place.epoch, place.seq, 512)
        await asyncio.sleep(0)

    async def is_late(self) -> Published:
        """Two events are in the swarm, and the hub takes longer with the second than it has ever done."""
        first = await self.publish()
        self.now += NEAR
        await self.acknowledge(first)
        second = await self.publish()
        assert self.swarm.given == [range(1, 2), range(2, 3)]
        self.now += 2 * NEAR + 2 * SLACK
        return second


@pytest.fixture
async def author(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Author]:
    author = Author(monkeypatch)
    yield author
    author.publisher.close()


async def test_lone_events_are_not_held(author: Author) -> None:
    for seq in range(1, 20):
        place = await author.publish()
        assert author.swarm.given[-1] == range(seq, seq + 1)
        author.now += NEAR
        await author.acknowledge(place)
        author.now += 1.0


async def test_what_gathers_while_the_hub_is_late_goes_as_one_when_it_is_not(author: Author) -> None:
    late = await author.is_late()
    for _ in range(3):
        await author.publish()
    assert len(author.swarm.given) == 2
    await author.acknowledge(late)
    assert author.swarm.given[2:] == [range(3, 6)]


async def test_it_goes_soon_though_the_hub_says_nothing(author: Author) -> None:
    await author.is_late()
    for turn in (0, 2):
        await author.publish()
        await author.publish()
        assert author.swarm.given[-1].stop == 3 + turn
        author.now += MOST
        await until(lambda turn=turn: author.swarm.given[-1] == range(3 + turn, 5 + turn))  # type: ignore[misc]
    assert author.publisher.unacknowledged == 5


async def test_what_fills_a_message_does_not_wait(author: Author) -> None:
    await author.is_late()
    await author.publish("x" * (MESSAGE_BYTES // 2))
    assert len(author.swarm.given) == 2
    await author.publish("x" * MESSAGE_BYTES)
    assert author.swarm.given[2:] == [range(3, 5)]


async def test_without_a_hub_nothing_waits(author: Author) -> None:
    await author.is_late()
    author.publisher.disconnected()
    await author.publish()
    assert author.swarm.given[-1] == range(3, 4)


async def test_what_waits_goes_before_the_end(author: Author) -> None:
    await author.is_late()
    await author.publish()
    author.publisher.close()
    assert author.swarm.given[2:] == [range(3, 4)]
