"""What the tests of relays stand on: a certificate authority, relays of ours on loopback, hubs that are reachable through
them alone. Not here: any expectation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker import Hub
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
        async with a_hub(relays=relays, relay_ca=self.ca, **config) as hub:
            yield hub

    @property
    def options(self) -> SpokeOptions:
        return replace(FAST, relay_ca=self.ca)


def by_relay(hub: Hub) -> str:
    """Its ticket without a direct address."""
    return replace(Ticket.decode(hub.ticket), addrs=()).encode()
