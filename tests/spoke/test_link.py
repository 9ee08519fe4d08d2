"""The link's own matters: how long it waits between attempts, and what it does with what it cannot send or use."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson
import pytest

from broker import SpokeOptions
from broker import _gossip_ext as ext
from broker.errors import EventTooLarge, Refused, Unreachable
from broker.protocol.ticket import Ticket
from broker.protocol.wire import CloseCode
from broker.spoke.link import BACKLOG_BYTES, Link
from tests.rig import PATIENCE, until


class FakeEndpoint:
    """As much of an endpoint as a link uses. It sends nothing; ``room`` is what its lane takes."""

    node_id = "0" * 64

    def __init__(self) -> None:
        self.dialled: list[int] = []
        self.sent: list[bytes] = []
        self.ended: list[tuple[int, int]] = []
        self.room = True
        self.renewed = 0

    def renew_relays(self) -> None:
        self.renewed += 1

    def dial(self, token: int, *_args: Any, **_options: Any) -> None:
        self.dialled.append(token)

    def send(self, conn: int, frames: list[bytes], lane: int) -> bool:
        if self.room:
            self.sent += frames
        return self.room

    def close_connection(self, conn: int, code: int, reason: str) -> None:
        self.ended.append((conn, code))

    def stats(self, _conn: int) -> None: ...

    def close(self) -> None: ...


def link_on(fake: FakeEndpoint, **options: Any) -> Link:
    link = Link(secret=ext.generate_secret(), options=SpokeOptions(**options), registration=lambda: {"operations": []})
    link.endpoint = fake  # type: ignore[assignment]
    link.receivers["hub.register"] = link.registered
    return link


def link_to_a_hub(fake: FakeEndpoint, **options: Any) -> Link:
    """A hub that it was given has dialled it: connection 1."""
    link = link_on(fake, accept=True, hubs=(TICKET.node_id,), **options)
    link.opened(1, TICKET.node_id, True, 0)
    return link


TICKET = Ticket(node_id=ext.node_id(b"1" * 32), addrs=("127.0.0.1:1",), relays=())


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """What random.uniform is asked for from now on; it gives 0."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    return asked


async def dials(fake: FakeEndpoint, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(fake.dialled) < count:  # noqa: ASYNC110 - the keeper needs turns, not time
            await asyncio.sleep(0)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_attempts_are_spaced_with_full_jitter_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = no_waiting(monkeypatch)
    fake = FakeEndpoint()
    link = link_on(fake, backoff_first=0.2, backoff_most=30.0)
    link.keep(TICKET)
    for number in range(1, 13):
        await dials(fake, number)
        link.dial_failed(fake.dialled[-1], "unreachable", None, "nobody")
    await turns()
    assert asked == [(0, most) for most in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0, 30.0)]
    assert len(set(fake.dialled)) == len(fake.dialled), "each attempt has a token of its own"
    assert fake.renewed >= 12, "a relay that is stuck is not what the next attempt goes by"
    with pytest.raises(Unreachable):
        await link.wait_up(0.01)
    await link.close()


async def test_who_is_in_a_swarm_waits_for_no_more_than_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = no_waiting(monkeypatch)
    fake = FakeEndpoint()
    link = link_on(fake, backoff_first=0.2, backoff_most=30.0)
    link.hurries = lambda: len(fake.dialled) < 8
    link.keep(TICKET)
    for number in range(1, 9):
        await dials(fake, number)
        link.dial_failed(fake.dialled[-1], "unreachable", None, "nobody")
    await turns()
    assert [most for _, most in asked] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0, 25.6]
    await link.close()


async def test_a_good_connection_starts_the_spacing_anew_and_one_that_never_registered_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = no_waiting(monkeypatch)
    fake = FakeEndpoint()
    link = link_on(fake, backoff_first=1.0)
    link.keep(TICKET)

    async def come_and_go(conn: int, *, registers: bool) -> None:
        count = len(fake.dialled)
        link.opened(conn, TICKET.node_id, False, fake.dialled[-1])
        if registers:
            link.frames(conn, [b'{"type":"hub.register","detail":{"operations":[]}}'])
            await turns()
            assert link.up
        link.closed(conn, None, "gone", False)
        await dials(fake, count + 1)

    await turns()
    await come_and_go(1, registers=False)  # in one batch: opened and closed before the keeper had a turn
    await come_and_go(2, registers=False)
    monkeypatch.setattr("broker.spoke.link.STABLE", 0.0)
    await come_and_go(3, registers=True)
    await come_and_go(4, registers=False)
    monkeypatch.setattr("broker.spoke.link.STABLE", 3600.0)
    await come_and_go(5, registers=True)  # gone again before it could count as good
    assert asked == [(0, 1.0), (0, 2.0), (0, 1.0), (0, 2.0), (0, 4.0)]
    assert link.connects == 2
    await link.close()


async def test_control_messages_wait_for_room_in_order_and_a_hub_that_never_reads_is_left() -> None:
    fake = FakeEndpoint()
    link = link_to_a_hub(fake)
    fake.sent.clear()
    fake.room = False
    link.control("a", 1)
    assert link.send("call", 1) is False
    fake.room = True
    link.control("b", 2)  # there is room, and it still goes behind what waits
    assert fake.sent == []
    link.drained(1)
    assert fake.sent == [b'{"type":"a","detail":1}', b'{"type":"b","detail":2}']
    fake.room = False
    for _ in range(BACKLOG_BYTES // 1_000_000 + 1):
        link.control("big", "x" * 1_000_000)
    assert (1, CloseCode.SLOW_CONSUMER) in fake.ended
    link.closed(1, CloseCode.SLOW_CONSUMER, "", False)
    fake.room = True
    link.drained(1)
    assert len(fake.sent) == 2, "what waited belongs to the old connection"
    await link.close()


async def test_silent_strangers_are_few_and_shown_out_and_the_hub_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.spoke.connections.FIRST_WORD", 0.02)
    monkeypatch.setattr("broker.spoke.door.MAX_STRANGERS", 2)
    fake = FakeEndpoint()
    link = link_on(fake)
    for conn in (1, 2, 3):
        link.opened(conn, TICKET.node_id, True, 0)
    assert (fake.ended, fake.sent) == ([(3, CloseCode.LIMIT)], [])
    await until(lambda: len(fake.ended) == 3)
    assert fake.ended[1:] == [(1, CloseCode.NOT_ADMITTED), (2, CloseCode.NOT_ADMITTED)]
    link.opened(4, TICKET.node_id, True, 0)
    hello = {"type": "hub.register", "detail": {"invite": link.hubs_reason.secret}}
    link.frames(4, [orjson.dumps(hello), b'{"type":"a"}'])
    assert (link.up, link.hub_node_id) == (True, TICKET.node_id)
    assert len(fake.sent) == 1, "what it is and offers is told to its hub alone"
    link.opened(5, TICKET.node_id, True, 0)
    link.frames(5, [orjson.dumps(hello)])
    assert fake.ended[-1] == (5, CloseCode.NORMAL), "it has a hub already"
    assert len(fake.sent) == 1
    await link.close()


async def test_what_no_frame_takes_is_refused_before_it_is_sent() -> None:
    link = link_to_a_hub(FakeEndpoint(), max_frame_bytes=1_000)
    with pytest.raises(EventTooLarge) as error:
        link.send("call.requested", "x" * 1_000)
    assert error.value.limit == 1_000
    assert error.value.size > 1_000
    await link.close()


async def test_unknown_reserved_messages_are_ignored_and_others_are_events() -> None:
    link = link_to_a_hub(FakeEndpoint())
    events: list[Any] = []
    link.on_events = events.extend
    link.frames(1, [b'{"type":"topic.later","detail":1}', b'{"type":"hub.news"}', b'{"type":"a"}', b'{"type":"__x"}'])
    assert [message.type for message in events] == ["a"]
    await link.close()


async def test_a_bad_frame_of_the_hub_ends_the_connection_with_its_code() -> None:
    fake = FakeEndpoint()
    link = link_to_a_hub(fake)
    events: list[Any] = []
    link.on_events = events.extend
    link.frames(1, [b'{"type":"a"}', b"nonsense"])
    assert fake.ended == [(1, CloseCode.BAD_JSON)]
    assert len(events) == 1, "what came whole before the fault is handed on"
    await link.close()


async def test_who_is_refused_is_told_by_whom_and_why() -> None:
    link = link_to_a_hub(FakeEndpoint())
    link.closed(1, CloseCode.BANNED, "banned", True)
    with pytest.raises(Refused, match="0000") as refused:
        await link.wait_up(PATIENCE)
    assert refused.value.close_code == CloseCode.BANNED
    await link.close()


async def test_an_address_that_cannot_be_dialled_is_told() -> None:
    link = Link(secret=ext.generate_secret(), options=SpokeOptions(), registration=dict)
    link.bind()
    link.keep(Ticket(node_id=TICKET.node_id, addrs=("nonsense",), relays=()))
    with pytest.raises(Unreachable, match="cannot be dialled"):
        await link.wait_up(0.2)
    await link.close()
