"""Connections of strangers while invites are unspent: the extension lets them in, nothing else does.

A guest's first message is ``hub.register`` with the secret of an invite; then it is admitted, and only then anything of
it is processed. Any other message, or none in time, ends it with NOT_ADMITTED. Guests are few and brief by named
bounds, since whoever can reach the hub can be one. Not here: the invites (admission.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from broker import _gossip_ext as ext
from broker.errors import FrameError
from broker.hub.admission import Admission
from broker.hub.metrics import HubMetrics
from broker.protocol.codec import decode
from broker.protocol.wire import CloseCode

__all__ = ["GUEST_SECONDS", "MAX_GUESTS", "Guests"]

MAX_GUESTS: Final = 64
"""At a time. One is here for one round trip; of a flood, 64 hold 6 MiB."""
GUEST_SECONDS: Final = 5.0
"""For the first frame to be whole. Its header has arrived when the guest does."""

NOT_ADMITTED: Final = "not admitted: this NodeId is not on the hub's allow list, and brings no unspent invite"


class Guests:
    """All guests of a hub."""

    def __init__(self, endpoint: ext.Endpoint, admission: Admission, metrics: HubMetrics) -> None:
        self._endpoint, self._admission, self._metrics = endpoint, admission, metrics
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._node_ids: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._node_ids)

    def __contains__(self, conn: int) -> bool:
        return conn in self._node_ids

    def opened(self, conn: int, node_id: str) -> None:
        """A stranger is there."""
        if not self._admission.invites:  # the last was spent while this one shook hands
            self._refuse(conn, NOT_ADMITTED)
        elif len(self._node_ids) >= MAX_GUESTS:
            self._metrics.refused("limit")
            self._metrics.limited("guests")
            why = f"busy: {MAX_GUESTS} strangers with an invite, or without, are at the door; try again"
            self._endpoint.close_connection(conn, CloseCode.LIMIT, why)
        else:
            self._node_ids[conn] = node_id
            late = f"not admitted: no hub.register within {GUEST_SECONDS:g} s"
            self._timers[conn] = asyncio.get_running_loop().call_later(GUEST_SECONDS, self._end, conn, late)

    def admitted(self, conn: int, frame: bytes) -> str | None:
        """The NodeId of a guest whose first frame is right: it is a guest no longer. None: it has been ended."""
        node_id = self._node_ids[conn]
        try:
            type, detail, _ = decode(frame)
        except FrameError as error:
            self.closed(conn)
            self._metrics.refused(error.close_code)
            self._endpoint.close_connection(conn, error.close_code, str(error))
            return None
        invite = detail.get("invite") if type == "hub.register" and isinstance(detail, dict) else None
        if self._admission.redeem(node_id, invite):
            self.closed(conn)
            return node_id
        if conn in self._node_ids:
            spent = "not admitted: the invite of this ticket is spent, expired or not of this hub"
            self._end(conn, NOT_ADMITTED if invite is None else spent)
        return None

    def closed(self, conn: int) -> bool:
        """Forgets a connection. False when it was no guest."""
        if (timer := self._timers.pop(conn, None)) is not None:
            timer.cancel()
        return self._node_ids.pop(conn, None) is not None

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _end(self, conn: int, why: str) -> None:
        self.closed(conn)
        self._refuse(conn, why)

    def _refuse(self, conn: int, why: str) -> None:
        self._metrics.refused(CloseCode.NOT_ADMITTED)
        self._endpoint.close_connection(conn, CloseCode.NOT_ADMITTED, why)
