"""The connections of a spoke beside the one to its hub: those that it dials, and those that are let in at its door.
Each has a host, who alone is told what comes.

Not here: why anybody is let in (door.py), the hub's own connection (link.py), and what hosts do with theirs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from broker import _gossip_ext as ext
from broker.protocol.wire import CloseCode
from broker.spoke.door import Door

__all__ = ["Connections", "Host"]

FIRST_WORD: Final = 10.0
"""Seconds for a stranger to say why it comes."""

NO_REASON: Final = (
    "this NodeId is not one of the hubs that may dial this spoke, and brings no secret of its ticket nor anything else "
    "that would let it in"
)


class Host(Protocol):
    """Who deals with a connection. Calls are in the order of arrival; :meth:`closed` is the last of each connection."""

    def opened(self, conn: int, node_id: str, token: int) -> None:
        """It was let in (token 0), or what was dialled with this token is there."""

    def frames(self, conn: int, frames: list[bytes]) -> None:
        """What it says; of one that was let in, the ``hub.register`` first."""

    def drained(self, conn: int) -> None:
        """A lane that refused a send has room again."""

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        """It has ended. ``code`` is None when its path died."""

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        """A dial came to nothing: ``unreachable``, ``refused`` or ``closed``."""


class Connections:
    """``endpoint`` gives the endpoint of the moment."""

    def __init__(self, endpoint: Callable[[], ext.Endpoint | None], door: Door) -> None:
        self._endpoint, self.door = endpoint, door
        self._hosts: dict[int, Host] = {}
        self._dials: dict[int, Host] = {}

    # What hosts do.

    def dial(
        self, host: Host, node_id: str, addrs: Sequence[str], relays: Sequence[str] = (), *, timeout: float
    ) -> int:
        """Returns the token of what follows, ``opened`` or ``dial_failed``. Without addresses those count that were
        learnt. ValueError for malformed ones; Closed after the endpoint was closed."""
        endpoint = self._endpoint()
        assert endpoint is not None
        token = random.getrandbits(62) | 1
        endpoint.dial(token, node_id, list(addrs), list(relays), timeout=timeout)
        self._dials[token] = host
        return token

    def taker(self, host: Host) -> Callable[[int, str], None]:
        """What a reason of the door answers for this host."""

        def take(conn: int, node_id: str) -> None:
            self._hosts[conn] = host
            host.opened(conn, node_id, 0)

        return take

    def send(self, conn: int, frames: list[bytes], lane: int = ext.CALLS) -> bool:
        """False: its lane is full, or it is gone."""
        endpoint = self._endpoint()
        return endpoint is not None and endpoint.send(conn, frames, lane)

    def close(self, conn: int, code: int, reason: str) -> None:
        if (endpoint := self._endpoint()) is not None:
            endpoint.close_connection(conn, code, reason)

    # What the link passes on.

    def came(self, conn: int, node_id: str) -> None:
        """An incoming connection."""
        if (take := self.door.lets_in(node_id)) is not None:
            take(conn, node_id)
        elif self.door.knocks(conn, node_id):
            asyncio.get_running_loop().call_later(FIRST_WORD, self._show_out, conn)
        else:
            self.close(conn, CloseCode.LIMIT, "too many strangers at the door; try again")

    def dialled(self, conn: int, node_id: str, token: int) -> bool:
        """False: nobody here has dialled this."""
        if (host := self._dials.pop(token, None)) is None:
            return False
        self._hosts[conn] = host
        host.opened(conn, node_id, token)
        return True

    def frames(self, conn: int, frames: list[bytes]) -> None:
        """A stranger's first frame may find it a host, or make it the hub."""
        if conn in self.door:
            node_id, take = self.door.opens(conn, frames[0])
            if take is None:
                self.close(conn, CloseCode.NOT_ADMITTED, f"not admitted: {NO_REASON}")
            else:
                take(conn, node_id)
        if (host := self._hosts.get(conn)) is not None:
            host.frames(conn, frames)

    def drained(self, conn: int) -> None:
        if (host := self._hosts.get(conn)) is not None:
            host.drained(conn)

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self.door.leaves(conn)
        if (host := self._hosts.pop(conn, None)) is not None:
            host.closed(conn, code, reason, remote)

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        if (host := self._dials.pop(token, None)) is not None:
            host.dial_failed(token, kind, code, message)

    def _show_out(self, conn: int) -> None:
        if self.door.leaves(conn) is not None:
            self.close(conn, CloseCode.NOT_ADMITTED, f"not admitted: {NO_REASON}")
