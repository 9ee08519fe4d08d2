"""A spoke and a hub written on PyPI's ``iroh`` alone: what somebody has who knows upstream's document and none of our
code.

Messages are ``{"type", "detail"}`` (``meta`` where a test asks for it), frames are a 4-byte length and JSON. Of topics
they know ``__subscribe`` and ``__unsubscribe``: no acknowledgement, no sequence, no credit. Nothing of ours may be
imported here.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import iroh

ALPN = b"alkhub/1"
PATIENCE = 20.0
MAX_KEPT = 10_000

Operation = Callable[[Any], Awaitable[Any]]


@asynccontextmanager
async def endpoint() -> AsyncIterator[iroh.Endpoint]:
    """On loopback, no relay, no lookup."""
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(), relay_mode=iroh.RelayMode.disabled(), alpns=[ALPN], bind_addr="127.0.0.1:0"
    )
    bound = await iroh.Endpoint.bind(options)
    try:
        yield bound
    finally:
        await bound.close()


def addrs(bound: iroh.Endpoint) -> list[str]:
    return [address for address in bound.bound_sockets() if address.startswith("127.")]


async def dial(bound: iroh.Endpoint, node_id: str, addresses: list[str]) -> iroh.Connection:
    address = iroh.EndpointAddr(iroh.EndpointId.from_string(node_id), None, addresses)
    return await bound.connect(address, ALPN)


async def accept(bound: iroh.Endpoint) -> iroh.Connection:
    incoming = await bound.accept_next()
    assert incoming is not None
    return await (await incoming.accept()).connect()


class Peer:
    """One connection with its stream: sends messages, keeps those that come, answers calls of its operations."""

    def __init__(self, connection: iroh.Connection, stream: iroh.BiStream, operations: dict[str, Operation]) -> None:
        self.connection, self.operations = connection, operations
        self.node_id = ""
        self._send, self._recv = stream.send(), stream.recv()
        self.received: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._ids = iter(range(1, 1_000_000))
        self.on_message: Callable[[dict[str, Any]], Awaitable[None]] | None = None
        self._reader = asyncio.create_task(self._read())

    async def send(self, type: str, detail: Any, **others: Any) -> None:
        payload = json.dumps({"type": type, "detail": detail, **others}).encode()
        await self.send_raw(struct.pack(">I", len(payload)) + payload)

    async def send_raw(self, data: bytes) -> None:
        async with self._writing:
            await self._send.write_all(data)

    async def register(self, name: str | None = None) -> None:
        operations = [{"id": id, "kind": "query"} for id in self.operations]
        await self.send("hub.register", {"operations": operations, **({"name": name} if name else {})})

    async def call(self, operation: str, input: Any, **others: Any) -> dict[str, Any]:
        """The message that ends the call: call.responded or call.error."""
        request_id = f"foreign-{next(self._ids)}"
        await self.send("call.requested", {"requestId": request_id, "operationId": operation, "input": input, **others})
        answer: dict[str, Any] = await self.hears(
            lambda message: (
                message["type"] in ("call.responded", "call.error") and message["detail"]["requestId"] == request_id
            )
        )
        return answer

    async def hears(self, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> Any:
        """The first message that fits, or with ``count`` a list of so many. What has come already counts."""
        async with asyncio.timeout(PATIENCE), self._more:
            found = [message for message in self.received if wanted(message)]
            while len(found) < count:
                if self._reader.done():
                    raise EOFError(f"the connection is over: {self.connection.close_reason()}")
                await self._more.wait()
                found = [message for message in self.received if wanted(message)]
            return found[0] if count == 1 else found[:count]

    async def hears_type(self, type: str, count: int = 1) -> Any:
        return await self.hears(lambda message: message["type"] == type, count)

    async def ended(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return await self.connection.closed()

    async def close(self) -> None:
        self._reader.cancel()
        with suppress(asyncio.CancelledError, iroh.IrohError):
            await self._reader
        self.connection.close(0, b"")

    async def _read(self) -> None:
        try:
            while True:
                (size,) = struct.unpack(">I", await self._recv.read_exact(4))
                await self._take(json.loads(await self._recv.read_exact(size)))
        except iroh.IrohError:
            pass
        finally:
            async with self._more:
                self._more.notify_all()

    async def _take(self, message: dict[str, Any]) -> None:
        async with self._more:
            assert len(self.received) < MAX_KEPT
            self.received.append(message)
            self._more.notify_all()
        if message["type"] == "call.requested":
            await self._answer(message["detail"])
        if self.on_message is not None:
            await self.on_message(message)

    async def _answer(self, detail: dict[str, Any]) -> None:
        request_id, operation = detail["requestId"], self.operations.get(detail["operationId"])
        if operation is None:
            return
        try:
            output = await operation(detail["input"])
        except ValueError as error:
            await self.send("call.error", {"requestId": request_id, "code": "EXECUTION_ERROR", "message": str(error)})
        else:
            await self.send("call.responded", {"requestId": request_id, "output": output})


@asynccontextmanager
async def foreign_spoke(
    node_id: str, addresses: list[str], operations: dict[str, Operation] | None = None, *, name: str | None = None
) -> AsyncIterator[Peer]:
    """Dials, opens the stream, registers."""
    async with endpoint() as bound:
        connection = await dial(bound, node_id, addresses)
        peer = Peer(connection, await connection.open_bi(), operations or {})
        peer.node_id = str(bound.id())
        await peer.register(name)
        try:
            yield peer
        finally:
            await peer.close()


class ForeignHub:
    """A hub of upstream's kind in its smallest form: registration both ways, calls by operation, topics by equal
    name."""

    def __init__(self, bound: iroh.Endpoint) -> None:
        self.node_id, self.addrs = str(bound.id()), addrs(bound)
        self.spokes: list[Peer] = []
        self.offers: dict[str, Peer] = {}
        self.subscribers: dict[str, dict[Peer, None]] = {}
        self.callers: dict[str, Peer] = {}
        self.operations: dict[str, Operation] = {}
        self._bound = bound
        self._arrived = asyncio.Condition()
        self._acceptor = asyncio.create_task(self._accept())

    async def spoke(self, number: int = 0) -> Peer:
        """The spoke that came as that, once it has registered."""
        async with asyncio.timeout(PATIENCE), self._arrived:
            while len(self.spokes) <= number:
                await self._arrived.wait()
        await self.spokes[number].hears_type("hub.register")
        return self.spokes[number]

    async def close(self) -> None:
        self._acceptor.cancel()
        with suppress(asyncio.CancelledError):
            await self._acceptor
        for peer in self.spokes:
            await peer.close()

    async def _accept(self) -> None:
        while True:
            connection = await accept(self._bound)
            peer = Peer(connection, await connection.accept_bi(), self.operations)
            peer.on_message = partial(self._route, peer)
            async with self._arrived:
                self.spokes.append(peer)
                self._arrived.notify_all()

    async def _route(self, peer: Peer, message: dict[str, Any]) -> None:
        type, detail = message["type"], message["detail"]
        if type == "hub.register":
            self.offers.update({operation["id"]: peer for operation in detail["operations"]})
            await peer.register()
        elif type == "__subscribe":
            for topic in detail["topics"]:
                self.subscribers.setdefault(topic, {})[peer] = None
        elif type == "__unsubscribe":
            for topic in detail["topics"]:
                self.subscribers[topic].pop(peer, None)
        elif type == "call.requested":
            await self._pass_call(peer, detail)
        elif type in ("call.responded", "call.error"):
            if (caller := self.callers.pop(detail["requestId"], None)) is not None:
                await caller.send(type, detail)
        elif not type.startswith(("hub.", "call.", "topic.", "__")):
            for subscriber in list(self.subscribers.get(type, ())):
                await subscriber.send(type, detail)

    async def _pass_call(self, peer: Peer, detail: dict[str, Any]) -> None:
        operation, request_id = detail["operationId"], detail["requestId"]
        if operation in self.offers:
            self.callers[request_id] = peer
            await self.offers[operation].send("call.requested", detail)
        elif operation not in self.operations:
            error = {"requestId": request_id, "code": "OPERATION_NOT_FOUND", "message": operation}
            await peer.send("call.error", error)


@asynccontextmanager
async def foreign_hub(operations: dict[str, Operation] | None = None) -> AsyncIterator[ForeignHub]:
    async with endpoint() as bound:
        hub = ForeignHub(bound)
        hub.operations.update(operations or {})
        try:
            yield hub
        finally:
            await hub.close()
