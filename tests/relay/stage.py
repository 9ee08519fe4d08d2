"""What the tests of relays stand on: a certificate authority, relays of ours on loopback, hubs and spokes that have no
other way to each other, and a valve before a relay that can shut it up. Not here: any expectation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker import Hub
from broker.config import split_address
from broker.lab.authority import Authority, Issued
from broker.protocol.ticket import Ticket
from broker.relay import RelayConfig, RelayServer
from broker.spoke.options import SpokeOptions
from tests.rig import FAST, a_hub

HOSTS = ("127.0.0.1", "localhost")


class Stage:
    """A directory with an authority, and one certificate of its that relays on loopback show."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.issued: Issued = self.authority.issue("relay", HOSTS)
        self.ca = self.authority.file

    @asynccontextmanager
    async def relay(self, **config: Any) -> AsyncIterator[RelayServer]:
        """Open to everybody, with TLS and without HTTP, on a free port, unless the config says otherwise."""
        files = {"tls_cert": self.issued.cert, "tls_key": self.issued.key}
        given = {"bind": "127.0.0.1:0", "http": "", "open": True} | files | config
        async with RelayServer(RelayConfig.model_validate(given)) as server:
            yield server

    @asynccontextmanager
    async def hub(self, *relays: str, **config: Any) -> AsyncIterator[Hub]:
        async with a_hub(**({"relays": relays, "relay_ca": self.ca} | config)) as hub:
            yield hub

    @property
    def options(self) -> SpokeOptions:
        return replace(FAST, relay_ca=self.ca)

    @property
    def apart(self) -> SpokeOptions:
        """Of a spoke that no direct path leads to: it speaks IPv6, and the hub IPv4."""
        return replace(self.options, bind="[::1]:0")


def by_relay(hub: Hub) -> str:
    """Its ticket without a direct address."""
    return replace(Ticket.decode(hub.ticket), addrs=()).encode()


class Valve:
    """Passes TCP on to a relay, until it is shut: then it takes connections, and what is sent, and is silent."""

    def __init__(self, relay: RelayServer) -> None:
        self._target = split_address(relay.relay.address())
        self._open = asyncio.Event()
        self._open.set()
        self.url = ""

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            onward, back = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._pump(reader, back), self._pump(onward, writer))
        except OSError:
            pass  # one of the two ends is gone, and so the other one goes
        finally:
            for end in filter(None, (writer, back)):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def valve(relay: RelayServer) -> AsyncIterator[Valve]:
    made = Valve(relay)
    tasks: set[asyncio.Task[None]] = set()

    def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made._passed(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(came, "127.0.0.1", 0)
    made.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for what was aborted to be closed
