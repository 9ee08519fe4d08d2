"""A subscriber that counts in Rust: it registers and subscribes like any spoke, and from then on its frames are counted
by the extension and never reach Python. It measures the hub and not the reader. Not here: Python subscribers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from broker import _gossip_ext as ext
from broker.border import attach
from broker.errors import ConnectionLost, Unreachable
from broker.protocol.codec import decode, encode
from broker.protocol.ticket import Ticket
from broker.relays import read_authorities, way
from broker.spoke.options import SpokeOptions

__all__ = ["NativeReader", "native_reader"]

CONNECT_SECONDS = 20.0
POLL_SECONDS = 0.005


class NativeReader:
    """The handler of one endpoint with one connection (broker.border.Handler)."""

    def __init__(self, endpoint: ext.Endpoint, topic: str, expected: int, quiet: float) -> None:
        self._endpoint, self._topic, self._expected, self._quiet = endpoint, topic, expected, quiet
        self._conn: int | None = None
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        self._conn = conn
        registration = {"operations": [], "protocol": 1, "name": "bench counts", "capabilities": ["topic.ack"]}
        # The call's answer comes after the hub has seen the subscription.
        call = {"requestId": "ready", "operationId": "hub.topics", "input": None}
        hello = [
            encode("hub.register", registration),
            encode("__subscribe", {"topics": [self._topic], "patience": self._quiet}),
            encode("call.requested", call),
        ]
        self._endpoint.send(conn, hello)

    def frames(self, conn: int, frames: list[bytes]) -> None:
        for frame in frames:
            message = decode(frame)
            if message.type in ("call.responded", "call.error") and not self.subscribed.done():
                self.subscribed.set_result(None)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self._conn = None
        self._fail(ConnectionLost(f"the hub closed the connection: {reason}", close_code=code, reason=reason))

    def drained(self, conn: int) -> None:
        """Nothing waits to be sent."""

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self._fail(Unreachable(f"the hub did not answer: {message}"))

    def datagram(self, conn: int, payload: bytes) -> None:
        """None are expected."""

    def batch_done(self, size: int) -> None:
        """Nothing is gathered."""

    def _fail(self, error: Exception) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(error)

    async def count(self) -> dict[str, Any]:
        """Polls until all have come, or none has for a while. What else the hub sends (``topic.head``) counts too; it
        is a handful of frames, and hidden by the cut at what was expected."""
        assert self._conn is not None
        self._endpoint.count_only(self._conn)
        before = self._frames()
        received, ended = 0, time.perf_counter()
        while received < self._expected and time.perf_counter() - ended < self._quiet * (1 if received else 10):
            await asyncio.sleep(POLL_SECONDS)
            if (now := self._frames() - before) > received:
                received, ended = now, time.perf_counter()
        return {"received": min(received, self._expected), "ended": ended, "latencies": [], "verdict": None}

    def _frames(self) -> int:
        stats = self._endpoint.stats(self._conn) if self._conn is not None else None
        return stats.frames_received if stats is not None else 0


@asynccontextmanager
async def native_reader(
    ticket: str, options: SpokeOptions, topic: str, expected: int, quiet: float
) -> AsyncIterator[NativeReader]:
    """A connected, subscribed reader with an endpoint of its own."""
    hub = Ticket.decode(ticket)
    address, relays = way(hub, options.relays)
    endpoint = ext.Endpoint.bind(
        ext.generate_secret(), bind=address, relay_urls=relays, relay_ca=read_authorities(options.relay_ca)
    )
    try:
        reader = NativeReader(endpoint, topic, expected, quiet)
        detach = attach(endpoint, reader)
        endpoint.dial(1, hub.node_id, list(hub.addrs), list(hub.relays))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await reader.subscribed
            yield reader
        finally:
            detach()
    finally:
        endpoint.close(0.1)
