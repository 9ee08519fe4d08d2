"""The Python side of the border: one wake-up of the loop hands on everything that the extension has collected.

Each endpoint has one handler. Its methods are plain calls, made in the order of arrival per connection;
``batch_done`` follows each batch, which is where a handler sends what it has gathered. Not here: any decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from broker import _gossip_ext as ext
from broker.loop import watch
from broker.protocol.wire import CloseCode

__all__ = ["Handler", "SwarmHandler", "attach", "explain"]

log = logging.getLogger("broker.border")


class Handler(Protocol):
    """Who is told what arrived at an endpoint."""

    def opened(self, conn: int, node_id: str, incoming: bool, token: int) -> None:
        """A connection has its stream. ``token`` is that of the dial; 0 for an incoming one."""

    def frames(self, conn: int, frames: list[bytes]) -> None:
        """Payloads of one connection, in order."""

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        """The last word of a connection. ``code`` is None when its path died."""

    def drained(self, conn: int) -> None:
        """A lane that refused a send has room again."""

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        """A dial came to nothing: ``unreachable``, ``refused`` or ``closed``."""

    def datagram(self, conn: int, payload: bytes) -> None:
        """One datagram."""

    def batch_done(self, size: int) -> None:
        """``size`` items have been handed on."""


class SwarmHandler(Protocol):
    """Who is told what arrived in the swarms of an endpoint. ``swarm`` is ``ext.Swarm.id``."""

    def neighbour(self, swarm: int, node_id: str, up: bool) -> None:
        """A neighbour has come or gone."""

    def gossiped(self, swarm: int, author: str, epoch: str, first_seq: int, events: Any) -> None:
        """A checked batch of consecutive events: frames, or parts or their number where the swarm was joined for it."""

    def headed(self, swarm: int, author: str, epoch: str, seq: int) -> None:
        """The newest number of a sequence, signed."""

    def lagged(self, swarm: int) -> None:
        """Gossip overran this program: nobody knows what is gone."""

    def swarm_drained(self, swarm: int) -> None:
        """A swarm that refused a publish has room again."""


def explain(message: str) -> str:
    """Why a dial failed, in words of this protocol where TLS has only its own. A NodeId is the certificate here."""
    if "invalid peer certificate" not in message:
        return message
    return (
        f"{message.partition(': ')[0]} is another NodeId than the ticket's: a new hub, or one whose data directory was "
        "replaced\ntake its present ticket, or give it back its data"
    )


def attach(endpoint: ext.Endpoint, handler: Handler, swarms: SwarmHandler | None = None) -> Callable[[], None]:
    """Hands ``endpoint``'s inbox to ``handler``, and what its swarms bring to ``swarms``, on the running loop. Returns
    what stops it."""
    methods: dict[int, Callable[..., None]] = {
        ext.OPENED: handler.opened,
        ext.FRAMES: handler.frames,
        ext.CLOSED: handler.closed,
        ext.DRAINED: handler.drained,
        ext.DIAL_FAILED: handler.dial_failed,
        ext.DATAGRAM: handler.datagram,
    }
    of_swarms: dict[int, Callable[..., None]] = {}
    if swarms is not None:
        of_swarms = {
            ext.NEIGHBOUR: swarms.neighbour,
            ext.BATCH: swarms.gossiped,
            ext.HEAD: swarms.headed,
            ext.LAGGED: swarms.lagged,
            ext.SWARM_DRAINED: swarms.swarm_drained,
        }
        methods |= of_swarms

    def wake() -> None:
        items: list[tuple[Any, ...]] = endpoint.drain()
        for kind, *rest in items:
            try:
                methods[kind](*rest)
            except Exception:
                # A bug of ours. The rest of this item is lost, so its connection must not go on as if nothing were;
                # the other connections do.
                log.exception("handling an item from the network failed; its connection, if it has one, is closed")
                if kind != ext.DIAL_FAILED and kind not in of_swarms:  # what a swarm lost is missed and repaired
                    endpoint.close_connection(rest[0], CloseCode.INTERNAL, "internal error")
        try:
            handler.batch_done(len(items))
        except Exception:
            log.exception("what follows a batch from the network failed; the next batch tries again")

    return watch(asyncio.get_running_loop(), endpoint, wake)
