"""The operations that the hub itself offers: hub.operations, hub.spokes, hub.topics. Answered from live state.

In the call table the hub is a peer like any other, so these are called, listed and balanced like a spoke's. Not here:
what they list (listings.py), administration (administration.py) and introductions (introductions.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from broker.errors import CallError
from broker.hub.later import Later
from broker.hub.listings import Listings
from broker.hub.router import Router
from broker.protocol.calls import HUB
from broker.protocol.registration import Kind, Operation, Registration

__all__ = ["Handler", "HubOperations"]

log = logging.getLogger("broker.hub")

Handler = Callable[[Any, str], Any]
"""From the input and the caller's NodeId to the output. A CallError it raises is the answer; a `Later` will have it."""


class HubOperations:
    """Attaches itself to a router's call table."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._handlers: dict[str, Handler] = {}
        self._operations: list[Operation] = []
        listings = Listings(router)
        self.add("hub.operations", "what can be called now, and at whom", listings.operations)
        self.add("hub.spokes", "who is connected, how, and how far behind", listings.spokes)
        self.add("hub.topics", "topics that have events or subscribers", listings.topics)
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
            self._fail(id, error)
        except Exception:
            log.exception("%s failed", detail["operationId"])
            wire = {"requestId": id, "code": "EXECUTION_ERROR", "message": "the hub failed; see its log"}
            self._router.perform(table.error(HUB, wire, now))
        else:
            if isinstance(output, Later):
                output.give = lambda later: self._give(id, later)
                output.fail = lambda error: self._fail(id, error)
            else:
                self._give(id, output)

    def _give(self, id: str, output: Any) -> None:
        detail = {"requestId": id, "output": output}
        self._router.perform(self._router.calls.responded(HUB, detail, time.monotonic()))

    def _fail(self, id: str, error: CallError) -> None:
        wire = {"requestId": id, "code": error.code, "message": error.message, "details": error.details}
        self._router.perform(self._router.calls.error(HUB, wire, time.monotonic()))
