"""A hub, and peers that fall silent one after the other in the middle of their first words, all in this process:
``python -m tests.faults.silent_peers`` ends well, or the process ends badly. Not here: any expectation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from broker import SpokeOptions, connect
from broker.config import split_address
from broker.errors import BrokerError
from broker.protocol.ticket import Ticket
from tests.rig import a_hub

IDLE: Final = 3.0
"""Seconds for which QUIC goes on asking whoever is silent."""
PACKETS: Final = range(4, 9)
"""After so many, both ways counted, a peer is silent: as soon as the handshake is over."""
PEERS: Final = 240
APART: Final = 0.02
"""Seconds between two of them: at once they would hold each other up, and take other turns."""


class Wire(asyncio.DatagramProtocol):
    """Passes on the first packets between a hub and one peer. Whoever speaks first is the peer."""

    transport: asyncio.DatagramTransport

    def __init__(self, hub: tuple[str, int], packets: int) -> None:
        self._hub, self._left = hub, packets
        self._peer: tuple[str, int] | None = None

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self._peer is None:
            self._peer = address
        self._left -= 1
        if self._left >= 0:
            self.transport.sendto(data, self._peer if address == self._hub else self._hub)


@asynccontextmanager
async def wire(ticket: str, packets: int) -> AsyncIterator[str]:
    """The ticket of a hub at the other end."""
    target = Ticket.decode(ticket)
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Wire(split_address(target.addrs[0]), packets), local_addr=("127.0.0.1", 0)
    )
    made.transport = transport
    host, port = transport.get_extra_info("sockname")
    try:
        yield replace(target, addrs=(f"{host}:{port}",)).encode()
    finally:
        transport.close()


async def peer(ticket: str, number: int) -> None:
    await asyncio.sleep(number * APART)
    options = SpokeOptions(dial_timeout=IDLE, idle_timeout=IDLE)
    async with wire(ticket, PACKETS[number % len(PACKETS)]) as by_wire:
        try:
            async with connect(by_wire, options=options, timeout=IDLE):
                await asyncio.sleep(IDLE)
        except BrokerError:
            pass  # it was silent before that


async def main() -> None:
    async with a_hub(limits={"idle_timeout": IDLE}) as hub:
        await asyncio.gather(*(peer(hub.ticket, number) for number in range(PEERS)))


if __name__ == "__main__":
    asyncio.run(main())
