"""A spoke for the time of a block. Not here: the spoke (spoke.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.protocol.ticket import Ticket
from broker.spoke.options import SpokeOptions
from broker.spoke.spoke import Spoke

__all__ = ["connect"]


@asynccontextmanager
async def connect(
    ticket: str | Ticket,
    *,
    name: str | None = None,
    secret: bytes | None = None,
    timeout: float | None = 10.0,
    options: SpokeOptions | None = None,
) -> AsyncIterator[Spoke]:
    """A connected spoke for the time of the block. Raises Unreachable, Refused, TicketError."""
    spoke = Spoke(name, secret=secret, options=options)
    try:
        spoke.start(ticket)
        await spoke.wait_connected(timeout)
        yield spoke
    finally:
        await spoke.close()
