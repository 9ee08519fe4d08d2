"""How a further hub comes into a realm: once, before it is a hub, it asks one that is there for the realm's secret.

Who asks shows an invite with the scope ``realm``; it is spent then, and the NodeId stays admitted, so that the same
ticket serves for every start. Not here: what hubs tell each other afterwards (realm_links.py).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from broker import _gossip_ext as ext
from broker.border import attach, explain
from broker.errors import ConnectError, FrameError, Refused, Unreachable
from broker.hub.realm_links import MAX_TOLD
from broker.protocol.codec import decode, encode
from broker.protocol.parts import Gathered
from broker.protocol.ticket import Ticket
from broker.protocol.wire import PROTOCOL_VERSION, REALM, CloseCode

__all__ = ["join_realm"]

JOIN_TIMEOUT: Final = 20.0
"""Seconds for the whole of it."""
DIAL_TIMEOUT: Final = 10.0


async def join_realm(endpoint: ext.Endpoint, ticket: Ticket, own: Ticket) -> dict[str, Any]:
    """The detail of the other hub's ``hub.realm``, with the secret. Raises Refused, Unreachable."""
    asking = _Asking(endpoint, ticket, own)
    detach = attach(endpoint, asking)
    try:
        endpoint.dial(1, ticket.node_id, list(ticket.addrs), list(ticket.relays), timeout=DIAL_TIMEOUT)
        async with asyncio.timeout(JOIN_TIMEOUT):
            return await asking.answer
    except TimeoutError:
        raise Unreachable(
            f"the hub {ticket.node_id[:10]} did not let this one into its realm within {JOIN_TIMEOUT:g} s\n"
            "is its ticket an invite made with `broker invite TICKET --scopes realm`?"
        ) from None
    finally:
        asking.close()
        detach()


class _Asking:
    """The border's handler while a hub joins."""

    def __init__(self, endpoint: ext.Endpoint, ticket: Ticket, own: Ticket) -> None:
        self._endpoint, self._ticket, self._own = endpoint, ticket, own
        self._conn: int | None = None
        self._told = Gathered(MAX_TOLD)
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        if self._conn is not None:
            self._endpoint.close_connection(self._conn, CloseCode.NORMAL, "has what it asked for")

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        if incoming or self._conn is not None:
            self._endpoint.close_connection(conn, CloseCode.GOING_AWAY, "this hub is still joining its realm")
            return
        self._conn = conn
        detail = {
            "operations": [],
            "protocol": PROTOCOL_VERSION,
            "capabilities": [REALM],
            "join": self._own.place(),
            "invite": self._ticket.secret,
        }
        self._endpoint.send(conn, encode("hub.register", detail))

    def frames(self, conn: int, frames: list[bytes]) -> None:
        for frame in frames:
            try:
                message = decode(frame)
                detail = message.detail
                if conn != self._conn or message.type != "hub.realm" or not isinstance(detail, dict):
                    continue
                if (whole := self._told.add(detail)) is not None and "secret" in whole and not self.answer.done():
                    self.answer.set_result(whole)
            except (FrameError, ValueError) as error:
                self._fail(Unreachable(f"the hub to join broke the protocol: {error}"))
                return

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        if conn == self._conn:
            self._conn = None
            self._fail(
                Refused(
                    f"the realm's hub refused this one: {reason}\n"
                    "it needs an invite made with `broker invite TICKET --scopes realm` by an administrator",
                    close_code=code or 0,
                    reason=reason,
                )
            )

    def drained(self, conn: int) -> None: ...

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        message = explain(message)
        if kind == "refused":
            self._fail(Refused(f"the realm's hub refused this one: {message}", close_code=code or 0, reason=message))
        else:
            self._fail(Unreachable(f"the realm's hub did not answer: {message}; is its ticket the current one?"))

    def datagram(self, conn: int, payload: bytes) -> None: ...

    def batch_done(self, size: int) -> None: ...

    def _fail(self, error: ConnectError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
