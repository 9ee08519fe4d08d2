"""Our own endpoint and connection for programs that use event targets directly, without a Hub or Spoke around them.

A thin asyncio form of the extension's Endpoint: dialling and accepting are awaited, and each connection is a carrier.
The extension opens and accepts the one stream of a connection and frames it in Rust, so an :class:`IrohConnection` has
no ``open_bi`` or ``accept_bi``: the two factories (iroh.py) take it as it is. All of a target's events go through one
lane, in order. Not here: policy beyond the admission sets, reconnecting (broker/spoke/), or streams of other libraries
(iroh_streams.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from broker import _gossip_ext as ext
from broker.border import attach
from broker.errors import Closed, ConnectError, ConnectionLost, FrameError, Refused, Unreachable
from broker.protocol.codec import MAX_FRAME_BYTES
from broker.protocol.ticket import Ticket
from broker.protocol.wire import CloseCode
from broker.targets.event_target import Close
from broker.targets.remote import Receiver

__all__ = ["IrohConnection", "IrohEndpoint"]

ACCEPT_BACKLOG = 1_024
"""Accepted connections, one endpoint, that nobody has taken with ``accept`` yet; one more is closed."""
HELD_BYTES = 33_554_432
"""Frames, one endpoint, on connections whose target has no listener yet. They have left the extension's bounds, so what
would go over this closes its connection."""
CLOSE_TIMEOUT = 3.0
"""Longer than the extension takes to hand over what is queued (1 s) and close; it always reports the end."""


class IrohConnection:
    """One connection with its stream, from :meth:`IrohEndpoint.connect` or :meth:`IrohEndpoint.accept`."""

    def __init__(self, owner: IrohEndpoint, conn: int, node_id: str, *, incoming: bool, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.incoming = incoming
        self._owner, self._conn, self._node_id = owner, conn, node_id
        self._receiver: Receiver | None = None
        self._listens = False
        self._held: deque[list[bytes] | bytes] = deque()  # bounded by HELD_BYTES; a list is frames, bytes a datagram
        self._close: Close | None = None
        self._own_end: Close | None = None
        self._gone = asyncio.Event()

    def __del__(self) -> None:
        # One that nobody ever listened on: what it holds goes with it.
        self._owner.release(sum(map(_size, self._held)))

    def remote_node_id(self) -> str:
        """The peer's NodeId, as upstream names it."""
        return self._node_id

    @property
    def node_id(self) -> str:
        return self._node_id

    def max_datagram_size(self) -> int | None:
        """None when the peer or the path takes none, or the connection is gone."""
        return self._owner.ext.max_datagram_size(self._conn)

    def stats(self) -> ext.ConnectionStats | None:
        """None when the connection is gone."""
        return self._owner.ext.stats(self._conn)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Ends the connection; one that has an event target is closed by that."""
        self._end(Close(code, reason, remote=False, error=None))

    # As broker.targets.remote.Carrier.

    def attach(self, receiver: Receiver) -> None:
        if self._receiver is not None:
            raise ValueError("this connection has an event target already; one stream has one")
        self._receiver = receiver

    def listen(self) -> None:
        asyncio.get_running_loop().call_soon(self._begin)

    def send(self, payload: bytes) -> bool:
        return self._owner.ext.send(self._conn, payload)

    def send_datagram(self, payload: bytes) -> None:
        self._owner.ext.send_datagram(self._conn, payload)

    def fail(self, error: FrameError) -> None:
        self._end(close := Close(error.close_code, str(error), remote=False, error=error))
        self._finish(self._own_end or close)

    async def end(self, code: int, reason: str) -> None:
        self._end(Close(code, reason, remote=False, error=None))
        self._begin()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._gone.wait()
        self.abandon(code, reason)

    # What the endpoint tells.

    def frames(self, frames: list[bytes]) -> None:
        if self._listens and self._receiver is not None:
            if self._close is None:
                self._receiver.received(frames)
        else:
            self._hold(frames)

    def datagram(self, payload: bytes) -> None:
        if self._listens and self._receiver is not None:
            if self._close is None:
                self._receiver.received_datagram(payload)
        else:
            self._hold(payload)

    def drained(self) -> None:
        if self._receiver is not None and self._close is None:
            self._receiver.drained()

    def closed(self, code: int | None, reason: str, remote: bool) -> None:
        self._finish(self._own_end if self._own_end is not None and not remote else _close(code, reason, remote=remote))

    def abandon(self, code: int, reason: str) -> None:
        """It ends here without the extension's word."""
        self._finish(self._own_end or Close(code, reason, remote=False, error=None))

    # Inside.

    def _hold(self, item: list[bytes] | bytes) -> None:
        """Frames come as many as there are: those before the one that has no room are kept, and none after it."""
        if self._own_end is not None:
            return
        parts = [item] if isinstance(item, bytes) else item
        kept = list(itertools.takewhile(lambda part: self._owner.hold(len(part)), parts))
        if kept:
            self._held.append(item if kept == parts else kept)
        if kept != parts:
            self.close(CloseCode.SLOW_CONSUMER, "nobody listens on this connection yet")

    def _begin(self) -> None:
        """Hands over what came before there was a listener, the end too."""
        receiver = self._receiver
        if self._listens or receiver is None:
            return
        self._listens, close = True, self._close
        held, self._held = self._held, deque()
        for item in held:
            self._owner.release(_size(item))
            if self._close is not close:
                continue  # an earlier one was bad and ended the connection
            if isinstance(item, bytes):
                receiver.received_datagram(item)
            else:
                receiver.received(item)
        if close is not None:
            receiver.ended(close)

    def _end(self, close: Close) -> None:
        if self._own_end is None and self._close is None:
            self._own_end = close
            self._owner.ext.close_connection(self._conn, int(close.code or 0), close.reason)

    def _finish(self, close: Close) -> None:
        if self._close is None:
            self._close = close
            self._gone.set()
            if self._listens and self._receiver is not None:
                self._receiver.ended(close)


def _size(item: list[bytes] | bytes) -> int:
    return len(item) if isinstance(item, bytes) else sum(map(len, item))


class IrohEndpoint:
    """One UDP socket and one identity. ``async with await IrohEndpoint.bind(...) as endpoint: ...``"""

    def __init__(self, endpoint: ext.Endpoint, *, max_frame_bytes: int) -> None:
        self.ext = endpoint
        self._max_frame_bytes = max_frame_bytes
        self._connections: dict[int, IrohConnection] = {}
        self._accepted: deque[IrohConnection] = deque()
        self._dials: dict[int, asyncio.Future[IrohConnection]] = {}
        self._tokens = itertools.count(1)
        self._arrival = asyncio.Event()
        self._held = 0
        self._closed = False
        self._detach: Callable[[], None] = attach(endpoint, self)

    @classmethod
    async def bind(
        cls,
        secret: bytes | None = None,
        *,
        bind: str = "127.0.0.1:0",
        relay_urls: Sequence[str] = (),
        accept: bool = False,
        open: bool = False,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        open_timeout: float = 10.0,
        frame_timeout: float = 30.0,
    ) -> Self:
        """Binds on the running loop; the parameters are the extension's. Without ``secret`` the identity is a new one.
        ``accept`` takes connections, ``open`` from anybody. Raises BindError."""
        endpoint = ext.Endpoint.bind(
            ext.generate_secret() if secret is None else secret,
            bind=bind,
            relay_urls=relay_urls,
            accept=accept,
            open=open,
            max_frame_bytes=max_frame_bytes,
            open_timeout=open_timeout,
            frame_timeout=frame_timeout,
        )
        return cls(endpoint, max_frame_bytes=max_frame_bytes)

    @property
    def node_id(self) -> str:
        return self.ext.node_id

    def addrs(self) -> list[str]:
        """Where it can be dialled."""
        return self.ext.addrs()

    @property
    def ticket(self) -> str:
        """All that a peer needs to dial it."""
        return Ticket(self.node_id, tuple(self.addrs()), tuple(self.ext.relay_urls()), None).encode()

    async def connect(
        self, peer: str, addrs: Sequence[str] = (), relay_urls: Sequence[str] = (), *, dial_timeout: float = 10.0
    ) -> IrohConnection:
        """Dials a ticket, or a NodeId at ``addrs``, and opens the stream. Raises TicketError, Unreachable or
        Refused."""
        if not addrs and not relay_urls:
            ticket = Ticket.decode(peer)
            peer, addrs, relay_urls = ticket.node_id, ticket.addrs, ticket.relays
        if self._closed:
            raise Closed("the endpoint was closed")
        token = next(self._tokens)
        future: asyncio.Future[IrohConnection] = asyncio.get_running_loop().create_future()
        self._dials[token] = future
        try:
            self.ext.dial(token, peer, list(addrs), list(relay_urls), dial_timeout)
            return await future
        finally:
            del self._dials[token]

    async def accept(self) -> IrohConnection:
        """The next connection that brought its stream. Raises Closed when the endpoint is."""
        while not self._accepted:
            if self._closed:
                raise Closed("the endpoint was closed")
            self._arrival.clear()
            await self._arrival.wait()
        return self._accepted.popleft()

    async def close(self) -> None:
        """Closes every connection (code 1, ``going away``) and the socket. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._arrival.set()
        self._detach()
        self.ext.close()
        for future in self._dials.values():
            if not future.done():
                future.set_exception(Closed("the endpoint was closed"))
        for connection in list(self._connections.values()):
            connection.abandon(CloseCode.GOING_AWAY, "the endpoint was closed")
        self._connections.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What its connections ask.

    def hold(self, size: int) -> bool:
        """Whether there is room to keep ``size`` bytes that nobody listens to yet."""
        if self._held + size > HELD_BYTES:
            return False
        self._held += size
        return True

    def release(self, size: int) -> None:
        self._held -= size

    # What the border tells (broker.border.Handler).

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        connection = IrohConnection(self, conn, node_id, incoming=incoming, max_frame_bytes=self._max_frame_bytes)
        if not incoming:
            future = self._dials.get(token)
            if future is None or future.done():
                self.ext.close_connection(conn, CloseCode.NORMAL, "the dialler gave up")
                return
            future.set_result(connection)
        elif len(self._accepted) < ACCEPT_BACKLOG:
            self._accepted.append(connection)
            self._arrival.set()
        else:
            self.ext.close_connection(conn, CloseCode.LIMIT, "too many connections wait to be accepted")
            return
        self._connections[conn] = connection

    def frames(self, conn: int, frames: list[bytes]) -> None:
        if (connection := self._connections.get(conn)) is not None:
            connection.frames(frames)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        if (connection := self._connections.pop(conn, None)) is not None:
            connection.closed(code, reason, remote)

    def drained(self, conn: int) -> None:
        if (connection := self._connections.get(conn)) is not None:
            connection.drained()

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        future = self._dials.get(token)
        if future is not None and not future.done():
            future.set_exception(_dial_error(kind, code, message))

    def datagram(self, conn: int, payload: bytes) -> None:
        if (connection := self._connections.get(conn)) is not None:
            connection.datagram(payload)

    def batch_done(self, size: int) -> None:
        """Nothing is gathered over a batch."""


def _dial_error(kind: str, code: int | None, message: str) -> ConnectError:
    if kind == "refused":
        return Refused(f"the peer refused the connection: {message}", close_code=code or 0, reason=message)
    return Unreachable(f"the peer did not answer: {message}; is it running, and is this its current address?")


def _close(code: int | None, reason: str, *, remote: bool) -> Close:
    """What the extension says, with whose fault it is: its own closes are for a peer that broke the rules."""
    if code == CloseCode.NORMAL:
        return Close(code, reason, remote, None)
    if not remote and code is not None and code > CloseCode.INTERNAL:
        return Close(code, reason, remote, FrameError(f"the peer broke the protocol: {reason}", close_code=code))
    who = "the peer closed the connection" if remote and code is not None else "the connection was lost"
    said = reason if code is None else f"{reason} (code {code})"
    return Close(code, reason, remote, ConnectionLost(f"{who}: {said}", close_code=code, reason=reason))
