"""What the tests of the hub and the spoke stand on: a hub on loopback, spokes, a peer that may say anything, a lookup
service, and the hub's numbers. Waiting is for events; what has none (a gauge, a table) is polled. Not here: any
expectation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from broker import Event, Hub, HubConfig, Spoke, SpokeOptions, connect
from broker import _gossip_ext as ext
from broker.border import attach
from broker.protocol.ticket import Ticket
from broker.protocol.wire import CloseCode
from broker.spoke import Subscription

PATIENCE = 20.0
"""A busy machine is slow; a test that needs this long has failed."""

POLL = 0.005

FAST = SpokeOptions(backoff_first=0.01, backoff_most=0.05)
"""Comes back at once."""


@asynccontextmanager
async def a_hub(**config: Any) -> AsyncIterator[Hub]:
    """Open to everybody, without HTTP, unless the config says otherwise."""
    async with Hub(HubConfig.model_validate({"open": True, "http": ""} | config)) as hub:
        yield hub


@asynccontextmanager
async def serving(
    ticket: str, name: str, *, options: SpokeOptions = FAST, secret: bytes | None = None, **operations: Any
) -> AsyncIterator[Spoke]:
    """A connected spoke that offers functions: ``a__b`` is the operation ``a.b``."""
    app = Spoke(name, secret=secret, options=options)
    for id, function in operations.items():
        app.operation(id.replace("__", "."))(function)
    app.start(ticket)
    try:
        await app.wait_connected(PATIENCE)
        yield app
    finally:
        await app.close()


@asynccontextmanager
async def spokes(ticket: str, *names: str, options: SpokeOptions = FAST) -> AsyncIterator[list[Spoke]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(ticket, name=name, options=options, timeout=PATIENCE))
            for name in names
        ]


async def until(true: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Polls what no event tells."""
    async with asyncio.timeout(patience):
        while not true():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(POLL)


def conn_of(hub: Hub, name: str) -> int:
    """The connection of the spoke that goes by this name."""
    (conn,) = [session.peer for session in hub.router.sessions.values() if session.name == name]
    return conn


def cut(hub: Hub, name: str) -> None:
    """Breaks a spoke's connection from the hub's side, as if something had gone wrong."""
    hub.router.close(conn_of(hub, name), CloseCode.INTERNAL, "cut by a test")


class Numbers:
    """A hub's metrics at one moment."""

    def __init__(self, hub: Hub) -> None:
        self._samples = [sample for family in hub.router.metrics.registry.collect() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name that have these labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == f"broker_{name}" and labels.items() <= sample.labels.items()
        )


class Peer:
    """A connection to a hub with nothing above frames: it sends what it is told, keeps what comes."""

    def __init__(self, *, drains: bool = True, secret: bytes | None = None, **options: Any) -> None:
        self.endpoint = ext.Endpoint.bind(secret or ext.generate_secret(), **options)
        self.conn: int | None = None
        self.received: list[dict[str, Any]] = []
        self.ended: tuple[int | None, str] | None = None
        self.failure: tuple[str, int | None, str] | None = None
        self._change = asyncio.Event()
        self._drains = drains
        self._detach: Callable[[], None] = attach(self.endpoint, self)

    async def dial(self, ticket: str) -> None:
        target = Ticket.decode(ticket)
        self.endpoint.dial(1, target.node_id, list(target.addrs))
        await self._until(lambda: self.conn is not None or self.failure is not None)

    async def hello(
        self, ticket: str, *, name: str = "raw", operations: tuple[str, ...] = (), kind: str = "query"
    ) -> None:
        await self.dial(ticket)
        rows = [{"id": id, "kind": kind} for id in operations]
        self.say("hub.register", {"name": name, "operations": rows, "protocol": 1})
        await self.hears("hub.register")
        if not self._drains:
            self._detach()

    def say(self, type: str, detail: Any, **others: Any) -> None:
        self.raw(orjson.dumps({"type": type, "detail": detail, **others}))

    def raw(self, *payloads: bytes, lane: int = ext.CALLS) -> bool:
        assert self.conn is not None
        return self.endpoint.send(self.conn, list(payloads), lane)

    async def hears(self, type: str, **fields: Any) -> dict[str, Any]:
        """The detail of the first message of that type whose detail has these fields. It is taken off."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            for message in self.received:
                detail = message["detail"]
                if message["type"] == type and (not fields or fields.items() <= detail.items()):
                    found.append(message)
                    return True
            assert self.ended is None, f"closed while waiting for {type}: {self.ended}"
            return False

        await self._until(look)
        self.received.remove(found[0])
        detail: dict[str, Any] = found[0]["detail"]
        return detail

    async def end(self) -> tuple[int | None, str]:
        """How the connection ended: close code and reason."""
        await self._until(lambda: self.ended is not None)
        assert self.ended is not None
        return self.ended

    def stop_reading(self) -> None:
        """What comes from now on stays where it is, until the hub feels it."""
        self._detach()

    def resume(self) -> None:
        self._detach = attach(self.endpoint, self)

    def close(self) -> None:
        self._detach()
        self.endpoint.close()

    async def _until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await self._change.wait()

    # broker.border.Handler

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        self.conn = conn

    def frames(self, conn: int, frames: list[bytes]) -> None:
        self.received += map(orjson.loads, frames)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self.ended = (code, reason)

    def drained(self, conn: int) -> None: ...

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self.failure = (kind, code, message)

    def datagram(self, conn: int, payload: bytes) -> None: ...

    def batch_done(self, size: int) -> None:
        self._change.set()
        self._change = asyncio.Event()


@asynccontextmanager
async def a_peer(ticket: str, *, hello: bool = True, drains: bool = True, **options: Any) -> AsyncIterator[Peer]:
    said = {key: options.pop(key) for key in ("name", "operations", "kind") if key in options}
    peer = Peer(drains=drains, **options)
    try:
        if hello:
            await peer.hello(ticket, **said)
        else:
            await peer.dial(ticket)
        yield peer
    finally:
        peer.close()


async def take(events: Subscription, count: int) -> list[Event]:
    """The next events, in time."""
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


def details(events: list[Event]) -> list[Any]:
    return [event.detail for event in events]


class Pkarr:
    """A pkarr service on loopback: keeps what is put, gives it back."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def put(self, request: web.Request) -> web.Response:
        self.records[request.match_info["key"]] = await request.read()
        return web.Response(status=204)

    async def get(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        self.asked.append(key)
        if key not in self.records:
            return web.Response(status=404)
        return web.Response(body=self.records[key])

    @classmethod
    @asynccontextmanager
    async def on_loopback(cls) -> AsyncIterator[tuple[Pkarr, str]]:
        """With its URL."""
        made = cls()
        app = web.Application()
        app.router.add_put("/pkarr/{key}", made.put)
        app.router.add_get("/pkarr/{key}", made.get)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/pkarr"
        finally:
            await runner.cleanup()
