"""The operations that the hub itself offers: hub.operations, hub.spokes, hub.topics. Answered from live state.

In the call table the hub is a peer like any other, so these are called, listed and balanced like a spoke's. Not here:
administration (administration.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from broker.errors import CallError
from broker.hub.router import Router
from broker.protocol.calls import HUB
from broker.protocol.registration import Kind, Operation, Registration

__all__ = ["Handler", "HubOperations"]

log = logging.getLogger("broker.hub")

Handler = Callable[[Any, str], Any]
"""From the input and the caller's NodeId to the output. A CallError it raises is the answer."""


class HubOperations:
    """Attaches itself to a router's call table."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._handlers: dict[str, Handler] = {}
        self._operations: list[Operation] = []
        self.add("hub.operations", "what can be called now, and at whom", lambda _, __: self.operations())
        self.add("hub.spokes", "who is connected, how, and how far behind", lambda _, __: self.spokes())
        self.add("hub.topics", "topics that have events or subscribers", lambda _, __: self.topics())
        router.on_local_call = self._on_message

    def add(
        self,
        id: str,
        description: str,
        handler: Handler,
        *,
        kind: Kind = "query",
        input_schema: dict[str, Any] | None = None,
    ) -> None:
        """One operation more."""
        self._handlers[id] = handler
        self._operations.append(Operation(id=id, kind=kind, description=description, input_schema=input_schema))
        registration = Registration(operations=tuple(self._operations), name="hub")
        self._router.calls.register(HUB, self._router.endpoint.node_id, "hub", registration)

    def _on_message(self, type: str, detail: dict[str, Any]) -> None:
        if type != "call.requested":
            return  # aborts and credits: every answer here is given at once
        id, table, now = detail["requestId"], self._router.calls, time.monotonic()
        try:
            output = self._handlers[detail["operationId"]](detail.get("input"), detail["identity"]["id"])
        except CallError as error:
            wire = {"requestId": id, "code": error.code, "message": error.message, "details": error.details}
            self._router.perform(table.error(HUB, wire, now))
        except Exception:
            log.exception("%s failed", detail["operationId"])
            wire = {"requestId": id, "code": "EXECUTION_ERROR", "message": "the hub failed; see its log"}
            self._router.perform(table.error(HUB, wire, now))
        else:
            self._router.perform(table.responded(HUB, {"requestId": id, "output": output}, now))

    def operations(self) -> list[dict[str, Any]]:
        rows = []
        for operation, spokes in self._router.calls.operations():
            rows.append(
                {
                    "operation": operation.id,
                    "kind": operation.kind,
                    "description": operation.description,
                    "input_schema": operation.input_schema,
                    "output_schema": operation.output_schema,
                    "spokes": [{"node_id": node_id, "name": name} for node_id, name in spokes],
                }
            )
        return rows

    def spokes(self) -> list[dict[str, Any]]:
        rows = []
        for session in self._router.sessions.values():
            stats = self._router.endpoint.stats(session.peer)
            rows.append(
                {
                    "node_id": session.node_id,
                    "name": session.name,
                    "transport": "iroh",
                    "path": stats.path if stats else "none",
                    "rtt_ms": round(stats.rtt * 1000, 3) if stats else None,
                    "queued": stats.queued_frames if stats else 0,
                    "queued_bytes": stats.queued_bytes if stats else 0,
                    "dropped": session.dropped,
                    "slow": session.slow,
                    "lagging": self._router.topics.readers.lag_of(session.peer),
                    "operations": len(session.registration.operations),
                }
            )
        return rows

    def topics(self) -> list[dict[str, Any]]:
        topics = self._router.topics
        rows = [
            {
                "topic": channel.topic,
                "subscribers": len(topics.subscriptions.match(channel.topic)),
                "carrier": "stream",
                "authors": len({author for author, _, _ in channel.ring.heads()}),
                "events": channel.published,
                "kept": len(channel.ring),
            }
            for channel in topics.channels.values()
        ]
        known = {row["topic"] for row in rows}
        rows += [
            {"topic": pattern, "subscribers": count, "carrier": "stream", "authors": 0, "events": 0, "kept": 0}
            for pattern, count in topics.subscriptions.rows()
            if pattern not in known
        ]
        return rows
