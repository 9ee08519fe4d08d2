"""The extension alone: no hub, no JSON, no publisher. One process fans frames out to native readers, 64 a call, and
waits for those whose queue is full. It is what the hub could reach if routing cost nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from benchmarks.load import event_value
from benchmarks.ours import native
from benchmarks.processes import WorkerIO
from broker import _gossip_ext as ext
from broker.border import attach
from broker.protocol.codec import encode
from broker.protocol.ticket import Ticket

__all__ = ["hub", "native"]

BATCH = 64
META = {"author": "0" * 64, "epoch": "0" * 16, "seq": 1_000, "ts": 1_700_000_000_000}


async def hub(job: dict[str, Any], io: WorkerIO) -> None:
    endpoint = ext.Endpoint.bind(ext.generate_secret(), accept=True, open=True)
    fan = _Fan(endpoint)
    detach = attach(endpoint, fan)
    ticket = Ticket(node_id=endpoint.node_id, addrs=tuple(endpoint.addrs()), relays=())
    await io.serve(fan.publish, ticket=ticket.encode())
    detach()
    endpoint.close()


class _Fan:
    """The handler of the endpoint (broker.border.Handler): whoever says something is a subscriber."""

    def __init__(self, endpoint: ext.Endpoint) -> None:
        self._endpoint, self._group = endpoint, endpoint.group()
        self._refused: dict[int, list[bytes]] = {}
        self._room = asyncio.Event()

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        """It has yet to say something."""

    def frames(self, conn: int, frames: list[bytes]) -> None:
        if self._group.add(conn):
            self._endpoint.send(conn, encode("call.responded", None))

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self._refused.pop(conn, None)

    def drained(self, conn: int) -> None:
        if (frames := self._refused.get(conn)) and self._endpoint.send(conn, frames, ext.TOPICS):
            del self._refused[conn]
            self._group.add(conn)
            self._room.set()

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        """It dials nobody."""

    def datagram(self, conn: int, payload: bytes) -> None:
        """None are expected."""

    def batch_done(self, size: int) -> None:
        """Nothing is gathered."""

    async def publish(self, order: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        for first in range(0, order["events"], BATCH):
            numbers = range(first, min(first + BATCH, order["events"]))
            frames = [
                orjson.dumps({"type": "bench.events", "detail": event_value(n, order["size"]), "meta": META})
                for n in numbers
            ]
            for conn in self._group.send(frames):
                self._refused[conn] = frames
            while self._refused:
                self._room.clear()
                await self._room.wait()
            await asyncio.sleep(0)
        return {"began": began, "ended": time.perf_counter()}
