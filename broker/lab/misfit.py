"""A peer that breaks the rules, again and again: for scenarios that show that the others do not notice.

Not here: every way to break them; the tests have those.
"""

from __future__ import annotations

import asyncio
from typing import Final

from broker import _gossip_ext as ext
from broker.border import attach
from broker.protocol.codec import encode
from broker.protocol.ticket import Ticket

__all__ = ["KINDS", "misbehave"]

PAUSE: Final = 0.5
"""Seconds between offences."""
KINDS: Final = {
    "json": b"{this is not JSON",
    "words": encode("hub.nonsense", {}),
    "answers": encode("call.responded", {"requestId": "nobody-asked", "output": 1}),
}


class _Misfit:
    """Connects, registers, offends, and connects again when it is thrown out."""

    def __init__(self, ticket: Ticket, offence: bytes) -> None:
        self._ticket, self._offence = ticket, offence
        self._endpoint = ext.Endpoint.bind(ext.generate_secret(), bind="0.0.0.0:0")
        self._detach = attach(self._endpoint, self)
        self._conn: int | None = None
        self._dialling = False

    def offend(self) -> None:
        if self._conn is not None:
            self._endpoint.send(self._conn, [self._offence])
        elif not self._dialling:
            self._dialling = True
            self._endpoint.dial(0, self._ticket.node_id, list(self._ticket.addrs), list(self._ticket.relays))

    def close(self) -> None:
        self._detach()
        self._endpoint.close()

    # broker.border.Handler

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        self._conn, self._dialling = conn, False
        self._endpoint.send(conn, [encode("hub.register", {"name": "misfit", "operations": [], "protocol": 1})])

    def frames(self, conn: int, frames: list[bytes]) -> None: ...

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self._conn = None

    def drained(self, conn: int) -> None: ...

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self._dialling = False

    def datagram(self, conn: int, payload: bytes) -> None: ...

    def batch_done(self, size: int) -> None: ...


async def misbehave(ticket: str, kind: str) -> None:
    """Until it is cancelled."""
    misfit = _Misfit(Ticket.decode(ticket), KINDS[kind])
    try:
        while True:
            misfit.offend()
            await asyncio.sleep(PAUSE)
    finally:
        misfit.close()
