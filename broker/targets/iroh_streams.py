"""The carrier on a connection of another library: framing, a writer and eager reading over its streams.

It asks for upstream's small surface: ``open_bi``/``accept_bi`` giving a ``(send, recv)`` pair or an object with
``send()`` and ``recv()``, ``write_all`` and ``read_exact`` on these, ``remote_node_id()`` or ``remote_id()``. What
PyPI's iroh has beyond it is used when it is there: ``read`` (large reads), ``close``, ``closed``, ``close_reason``,
``finish``, ``stopped``, and datagrams.

Bytes are read as they come and written in large pieces, because of what was measured on PyPI's iroh 1.2.0: a write
costs 100 ns a byte under the GIL plus two thread hand-overs, and its reader dies of some 4,100 small writes that it
has not read yet. Everything that the peer controls has a deadline. Not here: our own connections (iroh_endpoint.py),
JSON (remote.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import Any, NoReturn

from broker.errors import Closed, ConnectionLost, EventTooLarge, FrameError
from broker.protocol.codec import MAX_FRAME_BYTES, FrameReader, frame
from broker.protocol.wire import CloseCode
from broker.targets.event_target import Close
from broker.targets.remote import Receiver

__all__ = ["StreamCarrier", "open_stream"]

log = logging.getLogger("broker.targets")

OPEN_TIMEOUT = 10.0
"""A peer that takes the connection brings, or lets us open, the stream within this time."""
FRAME_TIMEOUT = 30.0
"""A frame once begun is whole within this time; on an accepted connection the first one from the start."""
WRITE_TIMEOUT = 30.0
"""A piece of the stream is taken within this time; a peer that reads nothing for so long is gone."""
CLOSE_TIMEOUT = 1.0
"""What closing waits for at most: our last bytes being taken, and then their word on how it ended."""

WRITE_QUEUE_BYTES = 1_048_576
"""One queue a connection. An empty one takes any single frame, so that the largest frame always fits."""
WRITE_PIECE = 32_768
"""Bytes a write: 3 ms of the loop's thread in PyPI's iroh (its buffer builder copies byte by byte)."""
READ_BYTES = 262_144
"""Bytes a read at most, where the library can read what is there."""
REASON_BYTES = 256

_CLOSED_BY_PEER = re.compile(r"closed by peer: (?:(?P<reason>.*) \(code (?P<code>\d+)\)|(?P<bare>\d+))", re.DOTALL)


class _Over(Exception):
    """Raised in one of a carrier's tasks to end them all."""

    def __init__(self, close: Close) -> None:
        self.close = close


async def open_stream(connection: Any, *, accepted: bool, open_timeout: float) -> tuple[Any, Any]:
    """(send, recv). ConnectionLost with code 37 when the peer does not bring or take the stream in time."""
    try:
        async with asyncio.timeout(open_timeout):
            stream = await (connection.accept_bi() if accepted else connection.open_bi())
    except TimeoutError:
        what = "opened no stream" if accepted else "let no stream be opened"
        reason = f"the peer {what} within {open_timeout:g} s"
        _close(connection, CloseCode.NO_STREAM, reason)
        raise ConnectionLost(reason, close_code=CloseCode.NO_STREAM, reason=reason) from None
    except Exception as error:
        close = _how_it_ended(connection, error)
        raise ConnectionLost(
            f"the connection ended before its stream was open: {close.reason}",
            close_code=close.code,
            reason=close.reason,
        ) from error
    return stream if isinstance(stream, tuple) else (stream.send(), stream.recv())


class StreamCarrier:
    """A :class:`~broker.targets.remote.Carrier` of tasks over one stream. It lives until :meth:`end` or the peer's."""

    def __init__(
        self,
        connection: Any,
        stream: tuple[Any, Any],
        *,
        accepted: bool,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        frame_timeout: float = FRAME_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
        queue_bytes: int = WRITE_QUEUE_BYTES,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._connection, self._accepted = connection, accepted
        self._send, self._recv = stream
        self._frame_timeout, self._write_timeout, self._queue_bytes = frame_timeout, write_timeout, queue_bytes
        self._node_id = _node_id(connection)
        self._out = bytearray()
        self._writing = 0
        self._refused = False
        self._ending: Close | None = None
        self._work = asyncio.Event()
        self._listens = asyncio.Event()
        self._ended = False

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._runner = asyncio.create_task(self._run(), name=f"iroh-event-target-{self._node_id[:8]}")

    def listen(self) -> None:
        self._listens.set()

    @property
    def node_id(self) -> str:
        return self._node_id

    def send(self, payload: bytes) -> bool:
        if self._ended or self._ending is not None:
            return False
        queued = len(self._out) + self._writing
        if queued and queued + len(payload) + 4 > self._queue_bytes:
            self._refused = True
            return False
        self._out += frame(payload)
        self._work.set()
        return True

    def send_datagram(self, payload: bytes) -> None:
        limit = self._datagram_limit()
        if limit is not None and len(payload) > limit:
            raise EventTooLarge(
                f"the event is {len(payload)} bytes and a datagram here holds {limit}; send it reliably, or send less",
                size=len(payload),
                limit=limit,
            )
        try:
            self._connection.send_datagram(payload)
        except Exception as error:
            # The connection went, or the path's size shrank just now: either way it was a datagram.
            log.debug("a datagram was not sent: %s", _words(error))

    def fail(self, error: FrameError) -> None:
        self._finish(Close(error.close_code, str(error), remote=False, error=error))
        self._runner.cancel()

    async def end(self, code: int, reason: str) -> None:
        if self._ending is None and not self._ended:
            self._ending = Close(code, reason, remote=False, error=None)
            self._work.set()
        done, _ = await asyncio.wait([self._runner], timeout=2 * CLOSE_TIMEOUT)
        if not done:
            self._finish(Close(code, reason, remote=False, error=None))
            self._runner.cancel()
            await asyncio.wait([self._runner])

    # The tasks.

    async def _run(self) -> None:
        jobs = [self._read(), self._write(), self._refuse_streams()]
        if hasattr(self._connection, "read_datagram"):
            jobs.append(self._read_datagrams())
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        except* _Over as over:
            self._finish(_first(over))
        except* asyncio.CancelledError:
            self._finish(_internal("cancelled"))
        except* Exception:
            log.exception("an event target failed; its connection is closed")
            self._finish(_internal("internal error"))

    async def _read(self) -> None:
        await self._listens.wait()
        loop = asyncio.get_running_loop()
        reader, inside = FrameReader(self.max_frame_bytes), 0
        deadline = loop.time() + self._frame_timeout if self._accepted else None
        while True:
            data = await self._take(deadline)
            if not data:
                await self._stream_ended(reader)
            frames = self._checked(reader.feed, data)
            inside += len(data) - sum(len(frame) + 4 for frame in frames)
            if frames:
                self._receiver.received(frames)
            if reader.fault is not None:
                self._over(reader.fault)
            if frames or deadline is None:
                deadline = loop.time() + self._frame_timeout if inside else None

    async def _take(self, deadline: float | None) -> bytes:
        """What has come, or with a plain ``read_exact`` the next header and its frame."""
        try:
            async with asyncio.timeout_at(deadline):
                if hasattr(self._recv, "read"):
                    return bytes(await self._recv.read(READ_BYTES))
                return await self._take_exactly()
        except TimeoutError:
            self._over(
                FrameError(
                    f"a frame was not whole within {self._frame_timeout:g} s", close_code=CloseCode.FRAME_TOO_SLOW
                )
            )
        except _Over:
            raise
        except Exception as error:
            raise _Over(_how_it_ended(self._connection, error)) from error

    async def _take_exactly(self) -> bytes:
        header = bytes(await self._recv.read_exact(4))
        size = int.from_bytes(header, "big")
        if not 0 < size <= self.max_frame_bytes:
            return header  # the reader refuses it by the header alone
        async with asyncio.timeout(self._frame_timeout):
            return header + bytes(await self._recv.read_exact(size))

    async def _stream_ended(self, reader: FrameReader) -> NoReturn:
        """The peer's side of the stream is over. Its close code, if any, is on the way."""
        self._checked(lambda _: reader.finish(), b"")
        if hasattr(self._connection, "closed"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._connection.closed()
                raise _Over(_how_it_ended(self._connection, None))
        raise _Over(Close(CloseCode.NORMAL, "the peer ended its stream", remote=True, error=None))

    def _checked(self, read: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return read(data)
        except FrameError as error:
            self._over(error)

    def _over(self, error: FrameError) -> NoReturn:
        raise _Over(Close(error.close_code, str(error), remote=False, error=error)) from error

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._out:
                await self._write_piece()
            if self._ending is not None:
                await self._say_goodbye()
                raise _Over(self._ending)

    async def _write_piece(self) -> None:
        piece = bytes(self._out[:WRITE_PIECE])
        del self._out[:WRITE_PIECE]
        self._writing = len(piece)
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send.write_all(piece)
        except TimeoutError:
            what = f"the peer read nothing for {self._write_timeout:g} s"
            self._over(FrameError(what, close_code=CloseCode.SLOW_CONSUMER))
        except Exception as error:
            raise _Over(_how_it_ended(self._connection, error)) from error
        self._writing = 0
        if self._refused and len(self._out) <= self._queue_bytes // 2:
            self._refused = False
            self._receiver.drained()

    async def _say_goodbye(self) -> None:
        """QUIC's close throws away what is still under way, so the stream is finished first and its end
        acknowledged."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send.finish()
                await self._send.stopped()

    async def _refuse_streams(self) -> None:
        """One stream a connection."""
        try:
            await self._connection.accept_bi()
        except Exception as error:
            log.debug("no more streams: %s", _words(error))  # the reader says how the connection ended
        else:
            self._over(FrameError("a second stream on one connection", close_code=CloseCode.SECOND_STREAM))

    async def _read_datagrams(self) -> None:
        await self._listens.wait()
        while True:
            try:
                payload = bytes(await self._connection.read_datagram())
            except Exception as error:
                log.debug("no more datagrams: %s", _words(error))
                return
            self._receiver.received_datagram(payload)

    # The end.

    def _finish(self, close: Close) -> None:
        if self._ended:
            return
        self._ended = True
        _close(self._connection, close.code or CloseCode.NORMAL, close.reason)
        self._receiver.ended(close)

    def _datagram_limit(self) -> int | None:
        """None: the library does not tell."""
        if not hasattr(self._connection, "send_datagram"):
            return 0
        if not hasattr(self._connection, "max_datagram_size"):
            return None
        return int(self._connection.max_datagram_size() or 0)


def _internal(reason: str) -> Close:
    return Close(CloseCode.INTERNAL, reason, remote=False, error=Closed(f"the event target was closed: {reason}"))


def _first(over: BaseExceptionGroup[_Over]) -> Close:
    error: BaseException = over
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, _Over)
    return error.close


def _node_id(connection: Any) -> str:
    name = "remote_node_id" if hasattr(connection, "remote_node_id") else "remote_id"
    return str(getattr(connection, name)())


def _close(connection: Any, code: int, reason: str) -> None:
    """Best effort: upstream's surface has no close, and it may be gone already."""
    if hasattr(connection, "close"):
        with contextlib.suppress(Exception):
            connection.close(int(code), reason.encode()[:REASON_BYTES])


def _how_it_ended(connection: Any, error: Exception | None) -> Close:
    """PyPI's iroh tells code and reason in one line of words; without them the path is taken to have died."""
    words = ""
    if hasattr(connection, "close_reason"):
        with contextlib.suppress(Exception):
            words = str(connection.close_reason() or "")
    if (match := _CLOSED_BY_PEER.fullmatch(words)) is not None:
        code = int(match["code"] or match["bare"])
        reason = match["reason"] or ""
        lost = ConnectionLost(f"the peer closed the connection: {reason} (code {code})", close_code=code, reason=reason)
        return Close(code, reason, remote=True, error=None if code == CloseCode.NORMAL else lost)
    reason = words or (_words(error) if error is not None else "the connection is gone")
    return Close(None, reason, remote=True, error=ConnectionLost(f"the connection was lost: {reason}", reason=reason))


def _words(error: Exception) -> str:
    """IrohError has no text of its own; its ``message()`` does."""
    message = getattr(error, "message", None)
    return str(message()) if callable(message) else str(error) or type(error).__name__
