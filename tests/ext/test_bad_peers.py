"""What peers do wrong, sent for real by a foreign binding: each ends its own connection with a code and a reason."""

from __future__ import annotations

import asyncio
import struct

import pytest

from broker import _gossip_ext as ext
from tests.ext import raw
from tests.ext.pair import Node, connect, hub, node


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


async def closes(h: Node, wire: bytes, *, finish: bool = False) -> tuple[int, str, list[bytes]]:
    """Sends the bytes on a stream. The code and reason that the hub reports, and the frames before it."""
    async with raw.peer() as peer:
        connection = await raw.connect(peer, h)
        send = (await connection.open_bi()).send()
        await send.write_all(wire)
        if finish:
            await send.finish()
        heard = await raw.closed(connection)
        conn, frames = h.wait(ext.OPENED)[1], []
        item = h.wait(ext.FRAMES, ext.CLOSED, conn=conn)
        if item[0] == ext.FRAMES:
            frames = item[2]
            item = h.wait(ext.CLOSED, conn=conn)
        assert item[4] is False
        assert item[3] in heard, "the peer hears the same reason"
        return item[2], item[3], frames


async def test_a_frame_of_length_zero() -> None:
    with hub() as h:
        code, reason, frames = await closes(h, frame(b"{}") + bytes(4))
        assert (code, frames) == (16, [b"{}"])
        assert reason == "a frame of length 0: a frame is at least 1 byte"


async def test_a_length_of_four_gib() -> None:
    with hub() as h:
        code, reason, _ = await closes(h, b"\xff\xff\xff\xff")
        assert (code, reason) == (17, "a frame of 4294967295 bytes is above the limit of 1048576")
        assert h.endpoint.counters()["bad_frames"] == 1


async def test_a_frame_cut_short() -> None:
    with hub() as h:
        code, reason, frames = await closes(h, frame(b"whole") + frame(b"x" * 100)[:50], finish=True)
        assert (code, frames) == (18, [b"whole"])
        assert reason == "the stream ended inside a frame: 50 of 104 bytes came"


async def test_a_header_cut_short_never_reaches_python() -> None:
    with hub() as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            send = (await connection.open_bi()).send()
            await send.write_all(b"\0\0")
            await send.finish()
            assert "2 of its 4-byte header came" in await raw.closed(connection)
        assert not h.endpoint.pending()


@pytest.mark.parametrize("kind", ["bidirectional", "unidirectional"])
async def test_a_second_stream(kind: str) -> None:
    with hub() as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            first = await connection.open_bi()
            await first.send().write_all(frame(b"{}"))
            conn = h.wait(ext.OPENED)[1]
            if kind == "bidirectional":
                # Held: a dropped receiving half says STOP_SENDING, which opens the stream before the byte does.
                second = await connection.open_bi()
                await second.send().write_all(b"x")
            else:
                await (await connection.open_uni()).write_all(b"x")
            assert f"a second stream ({kind})" in await raw.closed(connection)
        assert h.wait(ext.CLOSED, conn=conn)[2] == 36
        assert h.endpoint.counters()["second_streams"] == 1


@pytest.mark.parametrize(("opened", "missing"), [(False, "stream"), (True, "first frame")])
async def test_a_peer_that_never_speaks_costs_no_python(opened: bool, missing: str) -> None:
    with hub(open_timeout=0.3) as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            if opened:
                stream = await connection.open_bi()
                await stream.send().write_all(b"\0\0")
            assert f"no {missing} within 0.3 s" in await raw.closed(connection)
        assert h.endpoint.counters()["stream_timeouts"] == 1
        assert not h.endpoint.pending()


async def test_a_byte_at_a_time_is_too_slow() -> None:
    with hub(frame_timeout=0.5) as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            send = (await connection.open_bi()).send()
            await send.write_all(frame(b"x" * 1000)[:4])
            closed = asyncio.ensure_future(raw.closed(connection))
            # A drop at a time keeps the connection busy; the frame as a whole is what has a deadline.
            while not (await asyncio.wait({closed}, timeout=0.05))[0]:
                await asyncio.wait({closed, asyncio.ensure_future(send.write_all(b"x"))}, return_when="FIRST_COMPLETED")
            assert "a frame was not whole within 0.5 s" in closed.result()
        conn = h.wait(ext.OPENED)[1]
        assert h.wait(ext.CLOSED, conn=conn)[2] == 39
        assert h.endpoint.counters()["frame_timeouts"] == 1


async def test_a_slow_reader_here_is_not_the_peers_fault() -> None:
    # The hub stops reading inside a frame because Python does not drain: that time must not count.
    with hub(frame_timeout=0.5, inbox_bytes=100_000) as h, node() as s:
        near, far = connect(s, h)
        sent = 0
        while s.endpoint.send(near, b"." * 90_000):
            sent += 1
        await asyncio.sleep(1.0)
        assert len(h.frames(far, sent)) == sent
        assert h.endpoint.counters()["frame_timeouts"] == 0


async def test_a_clean_finish_is_a_normal_end() -> None:
    with hub() as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            send = (await connection.open_bi()).send()
            await send.write_all(frame(b"{}"))
            await send.finish()
            conn = h.wait(ext.OPENED)[1]
            assert h.wait(ext.CLOSED, conn=conn) == (ext.CLOSED, conn, 0, "", True)


async def test_a_peers_own_close_code_is_passed_on() -> None:
    with hub() as h:
        async with raw.peer() as peer:
            connection = await raw.connect(peer, h)
            send = (await connection.open_bi()).send()
            await send.write_all(frame(b"{}"))
            conn = h.wait(ext.OPENED)[1]
            h.frames(conn, 1)
            connection.close(777, "schönen Tag".encode())
            assert h.wait(ext.CLOSED, conn=conn) == (ext.CLOSED, conn, 777, "schönen Tag", True)


async def test_the_others_do_not_notice() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        await closes(h, bytes(4))
        assert s.endpoint.send(near, b"still here")
        assert h.frames(far, 1) == [b"still here"]
