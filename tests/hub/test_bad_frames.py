"""Bad input on a connection: it ends with the close code of the fault, which is counted, and nobody else notices."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import iroh
import pytest

from broker import Hub
from broker.protocol.wire import CloseCode
from tests.rig import PATIENCE, Numbers, a_hub, a_peer, serving, spokes, until


@asynccontextmanager
async def undisturbed(hub: Hub) -> AsyncIterator[None]:
    """Others go on calling, publishing and receiving during the block, and nothing of theirs fails or is missing."""

    async def echo(n: int) -> int:
        return n

    async with (
        serving(hub.ticket, "server", t__echo=echo),
        spokes(hub.ticket, "caller") as (caller,),
        caller.subscribe("others") as events,
    ):
        going, counts = True, [0, 0]

        async def work() -> None:
            while going:
                assert await caller.call("t.echo", {"n": counts[0]}) == counts[0]
                counts[0] += 1
                await caller.publish("others", counts[0])

        async def read() -> None:
            async for _ in events:
                counts[1] += 1

        tasks = [asyncio.create_task(work()), asyncio.create_task(read())]
        try:
            await until(lambda: counts[1])
            yield
            before = counts[0]
            await until(lambda: counts[0] > before or tasks[0].done())
        finally:
            going = False
            with suppress(asyncio.CancelledError):
                await tasks[0]
        await until(lambda: counts[1] == counts[0])
        tasks[1].cancel()
        assert events.verdict == "complete"
        assert {session.name for session in hub.router.sessions.values()} >= {"server", "caller"}
    await until(lambda: not hub.router.sessions)
    assert Numbers(hub)("disconnects_total", reason="slow_consumer") == 0


MANY_PATTERNS = b'{"type":"__subscribe","detail":{"topics":[' + b",".join(b'"a"' for _ in range(10_001)) + b"]}}"
TOPIC_PLACE = b'"topic":"a","author":"b","epoch":"0123456789abcdef"'

BAD = {
    "bad UTF-8": (b'{"type":"\xff"}', CloseCode.BAD_UTF8),
    "no JSON": (b"{nonsense", CloseCode.BAD_JSON),
    "nesting of 10,000": (b'{"type":"a","detail":' + b"[" * 10_000 + b"]" * 10_000 + b"}", CloseCode.BAD_JSON),
    "nesting that orjson reads but cannot write": (
        b'{"type":"a","detail":' + b"[" * 300 + b"]" * 300 + b"}",
        CloseCode.BAD_JSON,
    ),
    "an array": (b"[1]", CloseCode.NOT_AN_OBJECT),
    "a string": (b'"hub.register"', CloseCode.NOT_AN_OBJECT),
    "null": (b"null", CloseCode.NOT_AN_OBJECT),
    "no type": (b'{"detail":1}', CloseCode.NO_TYPE),
    "a type that is a number": (b'{"type":7}', CloseCode.NO_TYPE),
    "register: no object": (b'{"type":"hub.register","detail":[]}', CloseCode.BAD_REGISTRATION),
    "register: operations no list": (b'{"type":"hub.register","detail":{"operations":1}}', CloseCode.BAD_REGISTRATION),
    "register: an operation of the hub": (
        b'{"type":"hub.register","detail":{"operations":[{"id":"hub.spokes","kind":"query"}]}}',
        CloseCode.BAD_REGISTRATION,
    ),
    "register: unknown kind": (
        b'{"type":"hub.register","detail":{"operations":[{"id":"a","kind":"wish"}]}}',
        CloseCode.BAD_REGISTRATION,
    ),
    "requested: no detail": (b'{"type":"call.requested"}', CloseCode.BAD_MESSAGE),
    "requested: requestId a number": (b'{"type":"call.requested","detail":{"requestId":1}}', CloseCode.BAD_MESSAGE),
    "requested: requestId too long": (
        b'{"type":"call.requested","detail":{"requestId":"' + b"x" * 129 + b'"}}',
        CloseCode.BAD_MESSAGE,
    ),
    "responded: a list": (b'{"type":"call.responded","detail":[]}', CloseCode.BAD_MESSAGE),
    "completed: null": (b'{"type":"call.completed","detail":null}', CloseCode.BAD_MESSAGE),
    "aborted: no id": (b'{"type":"call.aborted","detail":{}}', CloseCode.BAD_MESSAGE),
    "error: no id": (b'{"type":"call.error","detail":{"code":"X"}}', CloseCode.BAD_MESSAGE),
    "credit: a string": (b'{"type":"call.credit","detail":"9"}', CloseCode.BAD_MESSAGE),
    "subscribe: null": (b'{"type":"__subscribe","detail":null}', CloseCode.BAD_MESSAGE),
    "subscribe: no topics": (b'{"type":"__subscribe","detail":{"topics":[]}}', CloseCode.BAD_MESSAGE),
    "subscribe: topics not strings": (b'{"type":"__subscribe","detail":{"topics":[1]}}', CloseCode.BAD_MESSAGE),
    "subscribe: since is nonsense": (
        b'{"type":"__subscribe","detail":{"topics":["a"],"since":{"a":{"b":[1,2]}}}}',
        CloseCode.BAD_MESSAGE,
    ),
    "subscribe: tag a number": (b'{"type":"__subscribe","detail":{"topics":["a"],"tag":1}}', CloseCode.BAD_MESSAGE),
    "subscribe: too many topics": (MANY_PATTERNS, CloseCode.LIMIT),
    "unsubscribe: a string": (b'{"type":"__unsubscribe","detail":"a"}', CloseCode.BAD_MESSAGE),
    "pause: no topics": (b'{"type":"topic.pause","detail":{}}', CloseCode.BAD_MESSAGE),
    "resume: no list": (b'{"type":"topic.resume","detail":{"topics":"a"}}', CloseCode.BAD_MESSAGE),
    "repair: backwards": (
        b'{"type":"topic.repair","detail":{' + TOPIC_PLACE + b',"from":5,"to":4}}',
        CloseCode.BAD_MESSAGE,
    ),
    "repair: from 0": (
        b'{"type":"topic.repair","detail":{' + TOPIC_PLACE + b',"from":0,"to":4}}',
        CloseCode.BAD_MESSAGE,
    ),
    "head: no epoch": (b'{"type":"topic.head","detail":{"topic":"a","epoch":"","seq":4}}', CloseCode.BAD_MESSAGE),
    "head: negative": (
        b'{"type":"topic.head","detail":{"topic":"a","epoch":"0123456789abcdef","seq":-1}}',
        CloseCode.BAD_MESSAGE,
    ),
    "head: beyond what a JSON number holds": (
        b'{"type":"topic.head","detail":{"topic":"a","epoch":"0123456789abcdef","seq":9223372036854775807}}',
        CloseCode.BAD_MESSAGE,
    ),
}


async def test_each_bad_message_ends_its_connection_with_its_code_and_no_other() -> None:
    async with a_hub() as hub, undisturbed(hub):
        for what, (payload, code) in BAD.items():
            async with a_peer(hub.ticket) as peer:
                before = Numbers(hub)("protocol_errors_total", code=code.name.lower())
                peer.raw(payload, b'{"type":"after.the.fault","detail":1}')
                assert (await peer.end())[0] == code, (what, peer.ended)
                assert peer.ended is not None
                assert peer.ended[1], what
                assert Numbers(hub)("protocol_errors_total", code=code.name.lower()) == before + 1, what
        assert "after.the.fault" not in hub.router.topics.channels


@pytest.mark.parametrize(
    ("type", "code"),
    [
        ("call.wished", "UNKNOWN_TYPE"),
        ("hub.shutdown", "UNKNOWN_TYPE"),
        ("topic.nonsense", "UNKNOWN_TYPE"),
        ("__secret", "RESERVED_TOPIC"),
        ("a..b", "BAD_TOPIC"),
        ("a.*", "BAD_TOPIC"),
        ("a.>", "BAD_TOPIC"),
        ("", "BAD_TOPIC"),
        ("a b", "BAD_TOPIC"),
        ("x" * 256, "BAD_TOPIC"),
        ("call." + "x" * 1_000_000, "UNKNOWN_TYPE"),
        ("\x00" * 1_000_00, "BAD_TOPIC"),
    ],
)
async def test_a_bad_type_is_complained_about_and_the_connection_goes_on(type: str, code: str) -> None:
    async with a_hub() as hub, a_peer(hub.ticket) as peer:
        peer.say(type, 1)
        complaint = await peer.hears("hub.error", code=code)
        assert complaint["message"]
        assert type.startswith(complaint["about"])
        assert Numbers(hub)("protocol_errors_total", code=code.lower()) == 1
        peer.say("call.requested", {"requestId": "1", "operationId": "hub.topics", "input": None})
        assert (await peer.hears("call.responded", requestId="1"))["output"] == []


async def test_a_complaint_quotes_no_more_than_a_name_of_what_may_be_a_whole_frame() -> None:
    async with a_hub() as hub, a_peer(hub.ticket) as peer:
        peer.say("__subscribe", {"topics": ["x" * 1_048_500]})
        assert len((await peer.hears("hub.error", code="BAD_PATTERN"))["about"]) == 255
        peer.say("__subscribe", {"topics": ["x" * 1_048_400], "policy": "hope"})
        assert len((await peer.hears("hub.error", code="BAD_PATTERN"))["about"]) == 255


async def test_an_event_that_its_meta_makes_too_large_is_complained_about() -> None:
    """The hub numbers it, and then no frame takes it: nobody else may feel that."""
    async with a_hub() as hub, undisturbed(hub), a_peer(hub.ticket) as peer:
        frame = b'{"type":"t.large","detail":"' + b"x" * (1_048_576 - 30) + b'"}'
        assert len(frame) <= 1_048_576
        peer.raw(frame)
        complaint = await peer.hears("hub.error", code="LIMIT", about="t.large")
        assert "1048576" in complaint["message"]
        peer.say("t.large", "small")
        await until(lambda: Numbers(hub)("events_published_total", topic="t.large") == 1)


async def test_options_of_a_subscribe_that_cannot_be_are_complained_about() -> None:
    async with a_hub() as hub, a_peer(hub.ticket) as peer:
        wrong: list[dict[str, Any]] = [{"policy": "hope"}, {"policy": []}]
        wrong += [{"patience": -1}, {"patience": 61}, {"patience": True}]
        for options in wrong:
            peer.say("__subscribe", {"topics": ["a" * 100_000], **options})
            assert await peer.hears("hub.error", code="BAD_PATTERN")
        for pattern in ("a.>.b", ">.a", "a..b", "", "**"):
            peer.say("__subscribe", {"topics": [pattern, "good"]})
            assert await peer.hears("hub.error", code="BAD_PATTERN", about=pattern)
        peer.say("__subscribe", {"topics": ["hub.spokes"]})
        assert await peer.hears("hub.error", code="RESERVED_TOPIC", about="hub.spokes")
        assert hub.router.topics.subscriptions.rows() == [("good", 1)]


# What the extension sees, through a hub. Byte for byte it is tested in tests/ext.


@asynccontextmanager
async def raw_connection(hub: Hub) -> AsyncIterator[iroh.Connection]:
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(), bind_addr="127.0.0.1:0", relay_mode=iroh.RelayMode.disabled()
    )
    endpoint = await iroh.Endpoint.bind(options)
    try:
        address = iroh.EndpointAddr(iroh.EndpointId.from_string(hub.node_id), None, hub.router.endpoint.addrs())
        yield await asyncio.wait_for(endpoint.connect(address, b"alkhub/1"), PATIENCE)
    finally:
        await endpoint.close()


async def close_code(connection: iroh.Connection) -> int:
    told = await asyncio.wait_for(connection.closed(), PATIENCE)
    found = re.search(r"\(code (\d+)\)", told)
    assert found is not None, told
    return int(found[1])


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


HELLO = framed(b'{"type":"hub.register","detail":{"operations":[]}}')


@pytest.mark.parametrize(
    ("bytes_sent", "code"),
    [
        (b"\0\0\0\0", CloseCode.EMPTY_FRAME),
        (b"\xff\xff\xff\xff", CloseCode.FRAME_TOO_LARGE),
        (struct.pack(">I", 1_048_577), CloseCode.FRAME_TOO_LARGE),
        (struct.pack(">I", 100) + b"{", CloseCode.FRAME_CUT_SHORT),
    ],
    ids=["of 0 bytes", "of 4 GiB", "over the limit by one", "cut short"],
)
async def test_a_bad_frame_is_refused_by_its_header(bytes_sent: bytes, code: int) -> None:
    async with a_hub() as hub, undisturbed(hub), raw_connection(hub) as connection:
        stream = await connection.open_bi()
        await stream.send().write_all(HELLO + bytes_sent)
        await stream.send().finish()
        assert await close_code(connection) == code
        assert hub.router.endpoint.counters()["bad_frames"] == 1


async def test_a_second_stream_ends_the_connection() -> None:
    async with a_hub() as hub, undisturbed(hub), raw_connection(hub) as connection:
        for _ in range(2):
            stream = await connection.open_bi()
            await stream.send().write_all(HELLO)
        assert await close_code(connection) == CloseCode.SECOND_STREAM
        assert hub.router.endpoint.counters()["second_streams"] == 1


async def test_a_stream_that_is_never_opened_ends_the_connection() -> None:
    async with a_hub(limits={"open_timeout": 0.2}) as hub, undisturbed(hub), raw_connection(hub) as connection:
        assert await close_code(connection) == CloseCode.NO_STREAM
        assert hub.router.endpoint.counters()["stream_timeouts"] == 1


async def test_a_frame_that_drips_ends_the_connection() -> None:
    async with a_hub(limits={"frame_timeout": 0.3}) as hub, undisturbed(hub), raw_connection(hub) as connection:
        stream = await connection.open_bi()
        await stream.send().write_all(HELLO)

        async def drip() -> None:
            with suppress(iroh.IrohError):  # the end of the connection is its end
                for byte in struct.pack(">I", 1_000) + b"x" * 1_000:
                    await stream.send().write_all(bytes([byte]))
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await close_code(connection) == CloseCode.FRAME_TOO_SLOW
        await dripping
        assert hub.router.endpoint.counters()["frame_timeouts"] == 1
