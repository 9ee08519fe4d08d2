"""A peer written on PyPI's ``iroh`` that breaks the rules, against whoever listens: each fault has its close code, and
a word that names it. Listeners are our event target on our connection, the same on a foreign connection, and the
hub."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import iroh
import pytest

from broker import Hub, HubConfig
from broker.config import LimitsConfig
from broker.errors import ConnectionLost
from broker.protocol.ticket import Ticket
from broker.targets import (
    CLOSE,
    ERROR,
    Event,
    IrohEndpoint,
    create_hub_iroh_event_target,
    create_spoke_iroh_event_target,
)
from tests.contract.links import Ear
from tests.interop import foreign

SHORT = 0.3
"""Seconds that the listeners here give a peer."""

Listening = tuple[str, list[str]]


async def keep(accept: Callable[[], Awaitable[object]], open_timeout: float, **limits: Any) -> None:
    """A program that holds each target that comes."""
    targets = []
    while True:
        try:
            target = await create_hub_iroh_event_target(await accept(), open_timeout=open_timeout, **limits)
        except ConnectionLost:
            continue  # it brought no stream
        Ear(target, "hub.register")
        targets.append(target)


@asynccontextmanager
async def kept(accept: Callable[[], Awaitable[object]], **limits: Any) -> AsyncIterator[None]:
    keeper = asyncio.create_task(keep(accept, SHORT, **limits))
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


@asynccontextmanager
async def our_target() -> AsyncIterator[Listening]:
    endpoint = await IrohEndpoint.bind(accept=True, open=True, open_timeout=SHORT, frame_timeout=SHORT)
    async with endpoint, kept(endpoint.accept):
        yield endpoint.node_id, endpoint.addrs()


@asynccontextmanager
async def target_on_foreign() -> AsyncIterator[Listening]:
    async with foreign.endpoint() as bound, kept(lambda: foreign.accept(bound), frame_timeout=SHORT):
        yield str(bound.id()), foreign.addrs(bound)


@asynccontextmanager
async def our_hub() -> AsyncIterator[Listening]:
    limits = LimitsConfig(open_timeout=SHORT, frame_timeout=SHORT)
    async with Hub(HubConfig(open=True, bind="127.0.0.1:0", http="", limits=limits)) as hub:
        ticket = Ticket.decode(hub.ticket)
        yield ticket.node_id, list(ticket.addrs)


@pytest.fixture(params=[our_target, target_on_foreign, our_hub], ids=["our connection", "foreign connection", "hub"])
async def connection(request: pytest.FixtureRequest) -> AsyncIterator[iroh.Connection]:
    """Dialled to one of the listeners; nothing has been sent."""
    async with request.param() as (node_id, addrs), foreign.endpoint() as bound:
        yield await foreign.dial(bound, node_id, addrs)


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


async def ended(connection: iroh.Connection) -> str:
    async with asyncio.timeout(foreign.PATIENCE):
        return await connection.closed()


REGISTER = framed(b'{"type":"hub.register","detail":{"operations":[]}}')


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack(">I", 0), 16),
        (struct.pack(">I", 1_048_577), 17),
        (framed(b'{"type":"\xff"}'), 19),
        (framed(b"{"), 20),
        (framed(b"[" * 5_000 + b"]" * 5_000), 20),
        (framed(b'"text"'), 21),
        (framed(b'{"detail":{}}'), 22),
        (framed(b'{"type":7,"detail":{}}'), 22),
        (struct.pack(">I", 10) + b'{"t', 39),
        (b"\x00\x00", 39),
    ],
    ids=["empty", "large", "utf8", "json", "nesting", "no object", "no type", "type", "unfinished", "half a header"],
)
async def test_a_bad_frame_after_a_good_one(connection: iroh.Connection, data: bytes, code: int) -> None:
    stream = await connection.open_bi()
    await stream.send().write_all(REGISTER)
    await stream.send().write_all(data)
    words = await ended(connection)
    assert words.startswith("closed by peer: ")
    assert words.endswith(f" (code {code})")
    assert len(words) > len("closed by peer:  (code 16)"), "the reason names the fault"


async def test_a_stream_that_ends_inside_a_frame(connection: iroh.Connection) -> None:
    stream = await connection.open_bi()
    await stream.send().write_all(REGISTER + struct.pack(">I", 100) + b"{")
    await stream.send().finish()
    assert (await ended(connection)).endswith(" (code 18)")


async def test_a_second_stream(connection: iroh.Connection) -> None:
    first, second = await connection.open_bi(), await connection.open_bi()
    await first.send().write_all(REGISTER)
    await second.send().write_all(REGISTER)
    assert (await ended(connection)).endswith(" (code 36)")


async def test_no_stream(connection: iroh.Connection) -> None:
    assert (await ended(connection)).endswith(" (code 37)")


async def test_a_stream_without_a_first_frame(connection: iroh.Connection) -> None:
    stream = await connection.open_bi()
    await stream.send().write_all(b"\x00")
    assert (await ended(connection)).endswith((" (code 37)", " (code 39)"))


async def test_a_dialler_that_may_open_no_stream_gives_up() -> None:
    async with foreign.endpoint() as hub, foreign.endpoint() as spoke:
        accepting = asyncio.create_task(foreign.accept(hub))
        dialled = await foreign.dial(spoke, str(hub.id()), foreign.addrs(hub))
        for _ in range(1_000):  # the peer allows so many at first, and no more while they are open
            try:
                async with asyncio.timeout(SHORT):
                    await dialled.open_bi()
            except TimeoutError:
                break
        with pytest.raises(ConnectionLost, match="no stream") as caught:
            await create_spoke_iroh_event_target(dialled, open_timeout=SHORT)
        assert caught.value.close_code == 37
        assert (await ended(await accepting)).endswith(" (code 37)")


async def test_a_peer_that_reads_nothing_is_given_up() -> None:
    """On a foreign connection; on ours it is the hub's policy that decides."""
    async with foreign.endpoint() as hub, foreign.endpoint() as spoke:
        accepting = asyncio.create_task(foreign.accept(hub))
        dialled = await foreign.dial(spoke, str(hub.id()), foreign.addrs(hub))
        target = await create_spoke_iroh_event_target(dialled, write_timeout=SHORT, queue_bytes=10_000_000)
        errors, closes = Ear(target, ERROR), Ear(target, CLOSE)
        (await accepting).set_receive_window(100_000)

        while target.dispatch_event(Event("t", "x" * 100_000)):
            pass
        [close] = await closes.hears()
        assert (close.detail.code, errors.details[0].close_code) == (38, 38)
