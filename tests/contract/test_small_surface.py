"""The iroh factories on connections that have upstream's small surface and nothing more: ``open_bi`` and ``accept_bi``
that give a pair, ``write_all``, ``read_exact``, ``remote_node_id``. No close, no datagrams, no reads of what is
there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import Closed, ConnectionLost, EventTooLarge, FrameError
from broker.targets import (
    CLOSE,
    DRAIN,
    ERROR,
    Event,
    create_hub_iroh_event_target,
    create_spoke_iroh_event_target,
)
from tests.contract.links import Ear, dispatch


class Stopped(Exception):
    """What this library raises when the connection is gone."""


class Pipe:
    """One direction of a stream: ``write_all`` here, ``read_exact`` there. Holds one write at a time."""

    def __init__(self) -> None:
        self._reader = asyncio.StreamReader()
        self.open = asyncio.Event()
        self.open.set()
        self.writes = 0

    async def write_all(self, data: bytes) -> None:
        await self.open.wait()
        self.writes += 1
        self._reader.feed_data(data)

    async def read_exact(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise Stopped("the stream is over") from None

    def end(self) -> None:
        self._reader.feed_eof()


class Connection:
    """One end. ``opened`` is where its streams come out at the other end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incoming: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue(1)
        self.peer: Connection
        self.out, self.into = Pipe(), Pipe()

    def remote_node_id(self) -> str:
        return self.peer.name

    async def open_bi(self) -> tuple[Any, Any]:
        await self.peer.incoming.put((self.into, self.out))
        return self.out, self.into

    async def accept_bi(self) -> tuple[Any, Any]:
        return await self.incoming.get()


def connections() -> tuple[Connection, Connection]:
    spoke, hub = Connection("a" * 64), Connection("b" * 64)
    spoke.peer, hub.peer = hub, spoke
    return spoke, hub


async def test_events_go_both_ways_in_order() -> None:
    spoke_end, hub_end = connections()
    async with (
        await create_spoke_iroh_event_target(spoke_end) as spoke,
        await create_hub_iroh_event_target(hub_end) as hub,
    ):
        assert (spoke.remote_node_id, hub.remote_node_id) == ("b" * 64, "a" * 64)
        at_hub, at_spoke = Ear(hub, "t"), Ear(spoke, "u")
        for i in range(2_000):
            await dispatch(spoke, Event("t", i))
            await dispatch(hub, Event("u", i))
        await at_hub.hears(2_000)
        await at_spoke.hears(2_000)
        assert at_hub.details == at_spoke.details == list(range(2_000))
        assert spoke_end.out.writes < 100, "small events are written together"


async def test_no_datagrams_is_a_limit_of_none_at_all() -> None:
    spoke_end, _ = connections()
    async with await create_spoke_iroh_event_target(spoke_end) as spoke:
        with pytest.raises(EventTooLarge) as caught:
            spoke.dispatch_event(Event("t"), reliable=False)
        assert caught.value.limit == 0


async def test_a_stream_that_is_over_is_a_lost_connection() -> None:
    spoke_end, _ = connections()
    spoke = await create_spoke_iroh_event_target(spoke_end)
    errors, closes = Ear(spoke, ERROR), Ear(spoke, CLOSE)
    spoke_end.into.end()
    [close] = await closes.hears()
    assert close.detail.code is None
    assert "the stream is over" in str(errors.details[0])
    assert isinstance(errors.details[0], ConnectionLost)
    await spoke.close()


@pytest.mark.parametrize(
    ("data", "code"), [(b"\x00\x00\x00\x00", 16), (b"\x00\x10\x00\x01", 17), (b"\x00\x00\x00\x01[", 20)]
)
async def test_bad_frames_end_it_here(data: bytes, code: int) -> None:
    spoke_end, hub_end = connections()
    spoke = await create_spoke_iroh_event_target(spoke_end)
    errors, closes = Ear(spoke, ERROR), Ear(spoke, CLOSE)
    await hub_end.out.write_all(b"")
    await spoke_end.into.write_all(data)
    [close] = await closes.hears()
    assert (close.detail.code, close.detail.remote) == (code, False)
    assert isinstance(errors.details[0], FrameError)
    with pytest.raises(Closed):
        spoke.dispatch_event(Event("t"))


async def test_a_frame_that_does_not_finish_and_a_peer_that_never_begins() -> None:
    spoke_end, hub_end = connections()
    spoke = await create_spoke_iroh_event_target(spoke_end, frame_timeout=0.05)
    hub = await create_hub_iroh_event_target(hub_end, frame_timeout=0.05)
    at_spoke, at_hub = Ear(spoke, CLOSE), Ear(hub, CLOSE)
    [never_began] = await at_hub.hears()
    assert never_began.detail.code == 39
    await spoke_end.into.write_all(b"\x00\x00\x00\x10{")
    [unfinished] = await at_spoke.hears()
    assert unfinished.detail.code == 39


async def test_a_peer_that_brings_no_stream() -> None:
    _, hub_end = connections()
    with pytest.raises(ConnectionLost, match="opened no stream") as caught:
        await create_hub_iroh_event_target(hub_end, open_timeout=0.05)
    assert caught.value.close_code == 37


async def test_a_path_that_takes_nothing_fills_the_queue_and_then_ends_it() -> None:
    spoke_end, _ = connections()
    spoke_end.out.open.clear()
    spoke = await create_spoke_iroh_event_target(spoke_end, queue_bytes=1_000, write_timeout=0.2)
    closes, drained = Ear(spoke, CLOSE), Ear(spoke, DRAIN)
    assert spoke.dispatch_event(Event("t", "x" * 5_000)), "an empty queue takes any frame"
    assert not spoke.dispatch_event(Event("t", "y"))
    [close] = await closes.hears()
    assert close.detail.code == 38
    assert drained.events == []


async def test_what_was_refused_has_room_later() -> None:
    spoke_end, hub_end = connections()
    spoke_end.out.open.clear()
    async with await create_spoke_iroh_event_target(spoke_end, queue_bytes=1_000) as spoke:
        drained = Ear(spoke, DRAIN)
        assert spoke.dispatch_event(Event("t", "x" * 900))
        assert not spoke.dispatch_event(Event("t", "y" * 200))
        spoke_end.out.open.set()
        await drained.hears()
        assert spoke.dispatch_event(Event("t", "y" * 200))
        async with await create_hub_iroh_event_target(hub_end) as hub:
            ear = Ear(hub, "t")
            await ear.hears(2)
            assert ear.details == ["x" * 900, "y" * 200]


async def test_closing_does_not_wait_for_a_peer_that_takes_nothing() -> None:
    spoke_end, _ = connections()
    spoke_end.out.open.clear()
    spoke = await create_spoke_iroh_event_target(spoke_end)
    closes = Ear(spoke, CLOSE)
    spoke.dispatch_event(Event("t", "never leaves"))
    async with asyncio.timeout(10):
        await spoke.close(1, "going away")
    assert [close.code for close in closes.details] == [1]
