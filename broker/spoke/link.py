"""Keeps one connection to the hub: dials, waits for the hub's word, and dials again when it is gone.

The link is the endpoint's handler (border.py). It decodes frames and passes each message to whoever registered for its
type; it knows nothing of calls or topics. Attempts are spaced with full jitter. A spoke that is dialled (``accept``)
waits for the hub instead. Connections with anybody else are passed on to their hosts (connections.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from broker import _gossip_ext as ext
from broker.border import SwarmHandler, attach, explain
from broker.errors import Closed, ConnectError, ConnectionLost, EventTooLarge, FrameError, Refused, Unreachable
from broker.events import Event
from broker.protocol.codec import decode, encode
from broker.protocol.named import Named
from broker.protocol.registration import parse
from broker.protocol.ticket import Ticket
from broker.protocol.wire import RESERVED_PREFIXES, CloseCode
from broker.relays import read_authorities, way
from broker.spoke.connections import Connections
from broker.spoke.door import Door, Hubs
from broker.spoke.hubs import KnownHubs
from broker.spoke.options import SpokeOptions

__all__ = ["Link"]

log = logging.getLogger("broker.spoke")

CLOSE_TIMEOUT = 1.0
"""Seconds for the last messages to go out."""
BACKLOG_BYTES = 8 * 1024 * 1024
"""Control messages that wait for room in the queue to the hub. A hub that lets so many wait is not reading."""
INBOX_BYTES = 131_072
"""Read ahead of the program. Some hundred events: more leave the processor's cache before they are read (measured with
INBOXES_A_TURN of loop.py: 2.9 us of a subscriber's CPU an event beside 2.2). QUIC's windows hold the rest."""
REGISTER_TIMEOUT = 10.0
"""A hub that took the connection says hub.register within this time, or the connection counts as failed."""
STABLE = 5.0
"""Seconds a connection has to last to count as good. One that fails as soon as it is there is not dialled again at the
first, shortest wait over and over."""
TRY_ONE = 3.0
"""Seconds for one hub to answer, where there are others to go to."""
HURRIED = 3.0
"""Seconds between attempts, at most, of who is in a swarm: overlays that were split merge by way of the hub, and have
10 s for it after a partition, of which an attempt that is under way then may take as many before it fails."""

Receiver = Callable[[Any], None]


class Link:
    """One connection at a time. ``up`` and ``down`` are called as it comes and goes; ``receivers`` by message type."""

    def __init__(self, *, secret: bytes, options: SpokeOptions, registration: Callable[[], dict[str, Any]]) -> None:
        self._secret, self._options, self._registration = secret, options, registration
        self._max_frame_bytes = options.max_frame_bytes
        self.hubs_reason = Hubs(secret, options.hubs, self._take_incoming)
        self.others = Connections(lambda: self.endpoint, Door([self.hubs_reason]))
        self.receivers: dict[str, Receiver] = {}
        self.on_events: Callable[[list[Event]], None] = lambda _messages: None
        self.on_datagram: Callable[[bytes], None] = lambda _payload: None
        self.on_up: Callable[[Any], None] = lambda _hub_registration: None
        self.on_down: Callable[[], None] = lambda: None
        self.on_drained: Callable[[], None] = lambda: None
        self.on_batch: Callable[[], None] = lambda: None
        self.swarms: SwarmHandler | None = None
        self.named = Named(ext.event_hash)
        self.hurries: Callable[[], bool] = lambda: False
        self.endpoint: ext.Endpoint | None = None
        self.hub_node_id = ""
        self._token = self.connects = self.disconnects = self.message_bytes = 0
        self._conn: int | None = None
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._registered = self._closing = False
        self._change = asyncio.Event()
        self._failure: ConnectError | None = None
        self.hubs = KnownHubs(options.address_book)
        self._keeper: asyncio.Task[None] | None = None
        self._detach: Callable[[], None] = lambda: None

    # Life.

    def configure(self, secret: bytes | None, options: SpokeOptions) -> None:
        """Takes the place of what it was made with. Before :meth:`bind`."""
        self._secret, self._options = secret or self._secret, options
        self._max_frame_bytes = options.max_frame_bytes
        self.hubs = KnownHubs(options.address_book)
        self.hubs_reason = Hubs(self._secret, options.hubs, self._take_incoming)
        self.others.door.reasons[0] = self.hubs_reason

    def limited(self, hub_takes: int | None) -> int:
        """Returns the largest frame to send from here on: what this spoke may and its hub, if it says so, takes."""
        self._max_frame_bytes = min(self._options.max_frame_bytes, hub_takes or self._options.max_frame_bytes)
        return self._max_frame_bytes

    def bind(self, ticket: Ticket | None = None) -> None:
        """Opens the endpoint, for the way to the ticket's hubs. Raises BindError, ConfigError."""
        if self.endpoint is None:
            address, relays = way(ticket, self._options.relays)
            self.message_bytes = self._options.message_bytes(ticket) if self._options.gossip else 0
            self.endpoint = ext.Endpoint.bind(
                self._secret,
                bind=self._options.bind or address,
                relay_urls=relays,
                relay_ca=read_authorities(self._options.relay_ca),
                accept=self._options.accept or self._options.gossip or self._options.introduced,
                open=self._options.accept,
                lookup=self._options.lookup or "",
                max_frame_bytes=self._options.max_frame_bytes,
                inbox_bytes=INBOX_BYTES,
                idle_timeout=self._options.idle_timeout,
                gossip_message_bytes=self.message_bytes,
            )
            self._detach = attach(self.endpoint, self, self.swarms)

    def keep(self, ticket: Ticket) -> None:
        """From now on there is a connection to the ticket's hub, as far as the network lets."""
        self.hubs.given(ticket)
        self._keeper = asyncio.create_task(self._keep(), name="broker-link")

    @property
    def conn(self) -> int | None:
        return self._conn

    @property
    def up(self) -> bool:
        """Connected, and the hub has registered."""
        return self._registered

    def trouble(self) -> str | None:
        """Why there is no hub, as far as it is known."""
        return None if self._registered or self._failure is None else str(self._failure).splitlines()[0]

    async def wait_up(self, timeout: float | None) -> None:
        """Returns when up. Raises what the first attempt failed with: Refused, Unreachable, or ConnectError at the
        deadline."""
        try:
            async with asyncio.timeout(timeout):
                while not self._registered:
                    self._raise_if_over()
                    await self._changed()
        except TimeoutError:
            raise self._failure or Unreachable(
                f"the hub did not answer within {timeout} s; "
                "is it running, and does the ticket have its current address?"
            ) from None

    def _raise_if_over(self) -> None:
        if self._closing:
            raise Closed("the spoke was closed")
        if isinstance(self._failure, Refused):
            raise self._failure

    async def wait_down(self) -> None:
        """Returns when the connection is gone, or was never there."""
        while self._registered:
            await self._changed()

    async def wait_closed(self) -> None:
        """Returns after :meth:`close`, or raises Refused when the hub will not have this spoke."""
        while not self._closing:
            if isinstance(self._failure, Refused) and not self.connects:
                raise self._failure
            await self._changed()

    async def close(self) -> None:
        self._closing = True
        self.hubs.save()
        self._signal()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self.endpoint is not None:
            if self._conn is not None:
                self.endpoint.close_connection(self._conn, CloseCode.NORMAL, "closed by the spoke")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        while self._conn is not None:
                            await self._changed()
            if (endpoint := self.endpoint) is None:
                return  # another close (run's own, say) ended meanwhile
            self.endpoint = None
            self._detach()
            endpoint.close()
            self._forget()

    # Sending.

    def send(self, type: str, detail: Any) -> bool:
        """One call or answer, before all topics. False while not :attr:`up` or when its queue is full. ValueError for
        what is not JSON, EventTooLarge for what no frame takes."""
        frame = encode(type, detail)
        limit = self._max_frame_bytes
        if len(frame) > limit:
            raise EventTooLarge(
                f"{type}: a message of {len(frame)} bytes, the limit is {limit}. "
                "Send a reference to the data, or split it.",
                size=len(frame),
                limit=limit,
            )
        # Before the hub has registered nobody would be told that the connection went, and with it the call.
        return self._registered and self.send_calls([frame])

    def control(self, type: str, detail: Any) -> None:
        """One message that may not be lost while the connection lasts: it waits for room, in order."""
        if self._conn is None or self.endpoint is None:
            return
        frame = encode(type, detail)
        if not self._backlog and self.send_calls([frame]):
            return
        self._backlog.append(frame)
        self._backlog_bytes += len(frame)
        if self._backlog_bytes > BACKLOG_BYTES:
            log.warning("the hub does not read what this spoke sends; connecting again")
            self.endpoint.close_connection(self._conn, CloseCode.SLOW_CONSUMER, "the hub does not read")

    def _send_backlog(self) -> None:
        while self._backlog and self.send_calls([self._backlog[0]]):
            self._backlog_bytes -= len(self._backlog.popleft())

    def send_calls(self, frames: list[bytes]) -> bool:
        return (
            self._conn is not None and self.endpoint is not None and self.endpoint.send(self._conn, frames, ext.CALLS)
        )

    def send_topics(self, frames: list[bytes]) -> bool:
        return (
            self._conn is not None and self.endpoint is not None and self.endpoint.send(self._conn, frames, ext.TOPICS)
        )

    def send_datagram(self, payload: bytes) -> bool:
        """False: there is no hub, or no room. EventTooLarge names what the path takes."""
        conn, endpoint = self._conn, self.endpoint
        return self._registered and conn is not None and endpoint is not None and endpoint.send_datagram(conn, payload)

    def fail(self, error: FrameError) -> None:
        """Ends the connection: the peer broke the rules."""
        if self._conn is not None and self.endpoint is not None:
            log.warning("the hub broke the protocol: %s", error)
            self.endpoint.close_connection(self._conn, error.close_code, str(error))

    def leave(self, reason: str) -> None:
        """Ends the connection, without waiting for its end."""
        if self._conn is not None and self.endpoint is not None:
            self.endpoint.close_connection(self._conn, CloseCode.NORMAL, reason)
            self._failure = ConnectionLost(f"the connection to the hub was left: {reason}")
            self._forget()

    def stats(self) -> ext.ConnectionStats | None:
        return self.endpoint.stats(self._conn) if self.endpoint is not None and self._conn is not None else None

    # What the border tells (broker.border.Handler).

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        if incoming:
            self.others.came(conn, node_id)
        elif token == self._token and self._conn is None:
            self._take(conn, node_id, False)
        elif not self.others.dialled(conn, node_id, token):
            self._one_hub(conn)

    def _take_incoming(self, conn: int, node_id: str) -> None:
        """The door has let in a hub."""
        if self._conn is None:
            self._take(conn, node_id, True)
        else:
            self._one_hub(conn)

    def _one_hub(self, conn: int) -> None:
        assert self.endpoint is not None
        self.endpoint.close_connection(conn, CloseCode.NORMAL, "this spoke has a hub already")

    def _take(self, conn: int, node_id: str, incoming: bool) -> None:
        """This is the hub now."""
        self._conn, self.hub_node_id = conn, node_id
        registration = self._registration()
        if (invite := self.hubs.invite_for(node_id)) is not None:
            registration["invite"] = invite  # each time: the answer to the first may have been lost
        self.control("hub.register", registration)
        if incoming:  # who dialled and says nothing must not keep the hub out
            asyncio.get_running_loop().call_later(REGISTER_TIMEOUT, self._still_silent, conn)
        self._signal()

    def _still_silent(self, conn: int) -> None:
        if conn == self._conn and not self._registered and self.endpoint is not None:
            self.endpoint.close_connection(conn, CloseCode.NORMAL, "no hub.register in time")

    def frames(self, conn: int, frames: list[bytes]) -> None:
        if conn != self._conn:
            self.others.frames(conn, frames)
            if conn != self._conn:  # else its first frame has just made it the hub
                return
        receivers, named = self.receivers, self.named
        events: list[Event] = []
        topic = None
        try:
            try:
                for frame in frames:
                    message = decode(frame, Event)
                    if named.known and not named.right(message, frame):
                        continue  # a hole still, and asked for again
                    kind = message.type
                    if kind == topic:
                        events.append(message)
                    elif (receiver := receivers.get(kind)) is not None:
                        if events:
                            before, events = events, []
                            self.on_events(before)
                        receiver(message.detail)
                    elif not kind.startswith(RESERVED_PREFIXES):  # else of a later version than this
                        topic = kind
                        events.append(message)
            finally:  # what came whole before a fault is handed on
                if events:
                    self.on_events(events)
        except FrameError as error:
            self.fail(error)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        if conn != self._conn:
            self.others.closed(conn, code, reason, remote)
            return
        if remote and code in (CloseCode.NOT_ADMITTED, CloseCode.BANNED, CloseCode.KICKED):
            self._failure = Refused(
                f"the hub refused this spoke: {reason} (code {code}); its NodeId is {self.node_id}: "
                "ask whoever runs the hub to admit it",
                close_code=code or 0,
                reason=reason,
            )
        else:
            self._failure = ConnectionLost(f"the connection to the hub ended: {reason}", close_code=code, reason=reason)
        self._forget()

    def drained(self, conn: int) -> None:
        if conn == self._conn:
            self._send_backlog()
            self.on_drained()
        else:
            self.others.drained(conn)

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        if token != self._token:
            self.others.dial_failed(token, kind, code, message)
            return
        message = explain(message)
        if kind == "refused":
            self._failure = Refused(f"the hub refused this spoke: {message}", close_code=code or 0, reason=message)
        else:
            self._failure = Unreachable(
                f"the hub did not answer: {message}; is it running, and is the ticket its current one?"
            )
            if self.endpoint is not None:
                self.endpoint.renew_relays()  # a connection to one may be dead, or wait long for its next try
        self._token = -1
        self._signal()

    def datagram(self, conn: int, payload: bytes) -> None:
        if conn == self._conn:
            self.on_datagram(payload)

    def batch_done(self, size: int) -> None:
        self.on_batch()

    def registered(self, hub_registration: Any) -> None:
        """The hub has said hub.register: the connection is good. A later one tells where it is now."""
        stats = self.stats()
        seen = stats.remote_addr if stats is not None and stats.path == "direct" else None
        self.hubs.registered(self.hub_node_id, parse(hub_registration, from_hub=True), seen)
        if not self._registered:
            self._registered, self._failure = True, None
            self.connects += 1
            self.on_up(hub_registration)
            self._signal()

    # Inside.

    @property
    def node_id(self) -> str:
        """Empty before it is bound and after its end."""
        return self.endpoint.node_id if self.endpoint is not None else ""

    def _forget(self) -> None:
        was_up, self._registered, self._conn = self._registered, False, None
        self._token = -1  # the attempt is over, also if it came and went in one batch
        self._backlog.clear()
        self._backlog_bytes = 0
        if was_up:
            self.disconnects += 1
            self.on_down()
        self._signal()

    def _signal(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _changed(self) -> None:
        await self._change.wait()

    async def _keep(self) -> None:
        """To one hub after the other: who lost one, or did not get it, goes to the next at once, and waits when it has
        been at all of them."""
        attempt, turn, loop = 0, 0, asyncio.get_running_loop()
        while True:
            if await self._attempt(self.hubs.nth(turn)):
                since = loop.time()
                while self._conn is not None:
                    await self._changed()
                if loop.time() - since >= STABLE:
                    attempt = 0
            turn += 1
            if len(self.hubs) > 1 and turn % len(self.hubs):
                continue
            most = min(self._options.backoff_first * 2**attempt, self._options.backoff_most)
            most = min(most, HURRIED) if self.hurries() else most
            attempt = min(attempt + 1, 16)  # 2**16 is far over any bound; keeps the number small
            await asyncio.sleep(random.uniform(0, most))

    async def _attempt(self, ticket: Ticket) -> bool:
        """Dials once. True when the hub has registered."""
        assert self.endpoint is not None
        self._token = token = random.getrandbits(62)
        try:
            timeout = min(self._options.dial_timeout, TRY_ONE if len(self.hubs) > 1 else math.inf)
            self.endpoint.dial(token, ticket.node_id, list(ticket.addrs), list(ticket.relays), timeout=timeout)
        except ValueError as error:
            self._failure = Unreachable(f"the ticket cannot be dialled: {error}")
            self._signal()
            return False
        try:
            async with asyncio.timeout(self._options.dial_timeout + REGISTER_TIMEOUT):
                while self._token == token and self._conn is None:
                    await self._changed()
                while self._conn is not None and not self._registered:
                    await self._changed()
        except TimeoutError:
            self.leave("no hub.register in time")
            self._failure = Unreachable("the hub took the connection and then said nothing")
            self._token = -1
        return self._registered
