"""A peer that breaks the rules: PyPI iroh, a binding that nobody here wrote. It can send any bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import iroh

from tests.ext.pair import PATIENCE, Node


@asynccontextmanager
async def peer() -> AsyncIterator[iroh.Endpoint]:
    endpoint = await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(), bind_addr="127.0.0.1:0", relay_mode=iroh.RelayMode.disabled()
        )
    )
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def connect(endpoint: iroh.Endpoint, to: Node, alpn: bytes = b"alkhub/1") -> iroh.Connection:
    address = iroh.EndpointAddr(iroh.EndpointId.from_string(to.node_id), None, to.endpoint.addrs())
    return await asyncio.wait_for(endpoint.connect(address, alpn), PATIENCE)


async def closed(connection: iroh.Connection) -> str:
    return await asyncio.wait_for(connection.closed(), PATIENCE)
