"""The operations that the hub itself offers: hub.operations, hub.spokes, hub.topics. Answered from live state.

In the call table the hub is a peer like any other, so these are called, listed and balanced like a spoke's. Not here:
administration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from broker.hub.router import Router
from broker.protocol.calls import HUB
from broker.protocol.registration import Operation, Registration

__all__ = ["HubOperations"]

log = logging.getLogger("broker.hub")


class HubOperations:
    """Attaches itself to a router's call table."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._handlers: dict[str, tuple[str, Callable[[], Any]]] = {
            "hub.operations": ("what can be called now, and at whom", self.operations),
            "hub.spokes": ("who is connected, how, and how far behind", self.spokes),
            "hub.topics": ("topics that have events or subscribers", self.topics),
        }
        registration = Registration(
            operations=tuple(
                Operation(id=id, kind="query", description=description)
                for id, (description, _) in self._handlers.items()
            ),
            name="hub",
        )
        router.calls.register(HUB, router.endpoint.node_id, "hub", registration)
        router.on_local_call = self._on_message

    def _on_message(self, type: str, detail: dict[str, Any]) -> None:
        if type != "call.requested":
            return  # aborts and credits: every answer here is given at once
        _, handler = self._handlers[detail["operationId"]]
        table, now = self._router.calls, time.monotonic()
        try:
            answer = {"requestId": detail["requestId"], "output": handler()}
        except Exception:
            log.exception("%s failed", detail["operationId"])
            error = {"requestId": detail["requestId"], "code": "EXECUTION_ERROR", "message": "the hub failed; see its log"}
            self._router.perform(table.error(HUB, error, now))
        else:
            self._router.perform(table.responded(HUB, answer, now))

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
                    "lagging": self._router.topics.lag_of(session.peer),
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
