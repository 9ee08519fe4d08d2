"""Calls across the hub whose other end is slow or whose messages are large: who waits, who fails, and nobody else.

Not here: departures, deadlines, answers of the wrong peer (test_calls.py); topics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.errors import EventTooLarge
from tests.rig import PATIENCE, Numbers, a_hub, a_peer, serving, spokes, until


async def echo(text: str) -> str:
    return text


async def test_a_slow_reader_of_a_stream_slows_its_spoke_and_no_other_call() -> None:
    sent = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal sent
        for number in range(1_000):
            sent = number + 1
            yield number

    async with (
        a_hub() as hub,
        serving(hub.ticket, "s", t__numbers=numbers, t__echo=echo),
        spokes(hub.ticket, "caller") as (caller,),
    ):
        stream = caller.stream("t.numbers", window=10)
        assert await anext(stream) == 0
        for _ in range(50):
            assert await caller.call("t.echo", {"text": "x"}) == "x"
        assert sent <= 10 + 2, "the window holds the generator back"
        assert [item async for item in stream] == list(range(1, 1_000))
        assert sent == 1_000


async def test_a_caller_without_credit_that_does_not_read_loses_its_stream_and_not_its_connection() -> None:
    """Upstream's spokes know no credit: the hub buffers to its bound, then ends the stream and says why."""
    pad = "x" * 20_000

    async def endless() -> AsyncIterator[str]:
        while True:
            yield pad
            await asyncio.sleep(0)

    async with (
        a_hub(limits={"calls_queue_bytes": 65_536}) as hub,
        serving(hub.ticket, "s", t__all=endless, t__echo=echo),
        spokes(hub.ticket, "other") as (other,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=65_536) as stuck,
    ):
        stuck.stop_reading()
        stuck.say("call.requested", {"requestId": "1", "operationId": "t.all"})
        await until(lambda: Numbers(hub)("calls_total", operation="t.all", code="EXECUTION_ERROR") == 1)
        for _ in range(10):
            assert await other.call("t.echo", {"text": "x"}) == "x"
        stuck.resume()
        error = await stuck.hears("call.error", requestId="1")
        assert "does not read" in error["message"]
        stuck.say("call.requested", {"requestId": "2", "operationId": "t.echo", "input": {"text": "y"}})
        assert (await stuck.hears("call.responded", requestId="2"))["output"] == "y"


async def test_a_caller_that_never_reads_its_answers_is_disconnected_and_nobody_else() -> None:
    big = "x" * 100_000
    asked = 0

    async def counted(text: str) -> str:
        nonlocal asked
        asked += len(text) > 1
        return text

    async with (
        a_hub(limits={"calls_queue_bytes": 65_536}) as hub,
        serving(hub.ticket, "s", t__echo=counted),
        spokes(hub.ticket, "other") as (other,),
        a_peer(hub.ticket, name="stuck", inbox_bytes=65_536) as stuck,
    ):
        stuck.stop_reading()
        number = 0

        def stuck_is_there() -> bool:
            return any(session.name == "stuck" for session in hub.router.sessions.values())

        while stuck_is_there():
            number += 1
            stuck.say("call.requested", {"requestId": str(number), "operationId": "t.echo", "input": {"text": big}})
            await until(lambda number=number: asked == number or not stuck_is_there())  # type: ignore[misc]
            assert await other.call("t.echo", {"text": "x"}, timeout=PATIENCE) == "x"
        assert Numbers(hub)("disconnects_total", reason="slow_consumer") == 1
        stuck.resume()
        assert (await stuck.end())[0] == 38


async def test_a_call_that_only_the_hub_makes_too_large_fails_and_nobody_else() -> None:
    """The hub adds identity and deadline to a request: near the limit it does not fit in a frame any more."""
    async with (
        a_hub() as hub,
        serving(hub.ticket, "s", t__echo=echo),
        spokes(hub.ticket, "other") as (other,),
        a_peer(hub.ticket) as caller,
    ):
        empty = {"requestId": "1", "operationId": "t.echo", "input": {"text": ""}}
        room = 1_048_576 - len(b'{"type":"call.requested","detail":}') - len(str(empty).replace(" ", ""))
        caller.say("call.requested", {**empty, "input": {"text": "x" * room}})
        error = await caller.hears("call.error", requestId="1")
        assert error["code"] == "EXECUTION_ERROR"
        assert "1048576" in error["message"]
        assert await other.call("t.echo", {"text": "x"}) == "x"
        with pytest.raises(EventTooLarge):
            await other.call("t.echo", {"text": "x" * 1_100_000})
        with pytest.raises(ValueError, match="JSON"):
            await other.call("t.echo", {"text": {1}})
        assert await other.call("t.echo", {"text": "x"}) == "x"
        assert len(hub.router.calls) == 0


async def test_an_output_waits_for_room_and_is_not_dropped() -> None:
    """More answers than the spoke's queue to the hub takes: the handlers wait, every caller gets its answer."""
    text = "x" * 900_000
    async with a_hub() as hub, serving(hub.ticket, "s", t__echo=echo), spokes(hub.ticket, "caller") as (caller,):
        answers = await asyncio.gather(
            *(caller.call("t.echo", {"text": text}, timeout=PATIENCE) for _ in range(6)),
            *(caller.call("t.echo", {"text": "small"}, timeout=PATIENCE) for _ in range(100)),
        )
        assert answers == [text] * 6 + ["small"] * 100
