"""Who is let in at a spoke, and what for: a table of reasons. Anybody else is a stranger, and told nothing.

A reason is asked twice: when a connection has come, with its NodeId alone, and with what its first message says, which
is a ``hub.register``. The first reason in the table that has an answer decides. Which NodeIds get as far as this is the
extension's matter (``accept`` and ``open`` of its endpoint). Not here: connections that are let in (connections.py).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from broker.errors import FrameError
from broker.protocol.codec import decode

__all__ = ["MAX_STRANGERS", "Door", "Hubs", "Reason", "Take"]

MAX_STRANGERS = 8
"""Connections at a time that have yet to say why they come: one is here for a round trip."""
SECRET_BYTES = 20

_NODE_ID = re.compile(r"[0-9a-f]{64}")

Take = Callable[[int, str], None]
"""Takes a connection (its id and the NodeId) from the door. Its frames follow, the ``hub.register`` first."""
Reason = Callable[[str, Mapping[str, Any] | None], Take | None]
"""A NodeId, and the detail of its first message (None: it has said nothing yet). None: this is no reason."""


class Door:
    """The table, and those who wait before it."""

    def __init__(self, reasons: list[Reason]) -> None:
        self.reasons = reasons
        self._strangers: dict[int, str] = {}

    def lets_in(self, node_id: str, said: Mapping[str, Any] | None = None) -> Take | None:
        """Who takes this connection; None: nobody, so far."""
        return next((take for reason in self.reasons if (take := reason(node_id, said)) is not None), None)

    def knocks(self, conn: int, node_id: str) -> bool:
        """A stranger is there. False: there is no room for one more."""
        if len(self._strangers) < MAX_STRANGERS:
            self._strangers[conn] = node_id
        return conn in self._strangers

    def __contains__(self, conn: int) -> bool:
        return conn in self._strangers

    def leaves(self, conn: int) -> str | None:
        """The NodeId of a stranger that is none any more."""
        return self._strangers.pop(conn, None)

    def opens(self, conn: int, frame: bytes) -> tuple[str, Take | None]:
        """A stranger's first message decides. It is none any more."""
        node_id = self._strangers.pop(conn)
        try:
            type, detail, _ = decode(frame)
        except FrameError:
            return node_id, None
        return node_id, self.lets_in(node_id, detail) if type == "hub.register" and isinstance(detail, dict) else None


class Hubs:
    """The reason of a hub: it brings the secret of the spoke's own ticket, or its NodeId was given. ValueError for what
    is no NodeId. The secret follows from the spoke's identity, so that its ticket outlasts a restart."""

    def __init__(self, identity: bytes, hubs: tuple[str, ...], take: Take) -> None:
        self.secret = blake2b(key=identity, digest_size=SECRET_BYTES, person=b"spoke-ticket").hexdigest()
        self._hubs = frozenset(node_id.lower() for node_id in hubs)
        if wrong := [node_id for node_id in self._hubs if not _NODE_ID.fullmatch(node_id)]:
            raise ValueError(f"SpokeOptions.hubs: {wrong[0][:80]!r} is not a NodeId, which is 64 hex digits")
        self._take = take

    def __call__(self, node_id: str, said: Mapping[str, Any] | None) -> Take | None:
        if said is None:
            return self._take if node_id in self._hubs else None
        brought = said.get("invite")
        if not isinstance(brought, str):
            return None
        right = hmac.compare_digest(brought.encode("utf-8", "replace"), self.secret.encode())
        return self._take if right else None
