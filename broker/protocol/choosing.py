"""Which spokes a call is for: the least busy that offers the operation, all of them, or the one that was asked before.

Not here: who offers what and the balancing (registration.py), and limits (call_records.py).
"""

from __future__ import annotations

from typing import Any

from broker.protocol.answering import Refused
from broker.protocol.call_records import Spoke
from broker.protocol.registration import Offers

__all__ = ["spokes_for"]

MAX_SHOWN = 80
"""Characters of a peer's own text in a message of ours."""


def spokes_for(offers: Offers[Spoke], operation: str, roll: bool, again: dict[str, Any] | None) -> list[Spoke]:
    """At least one. Refused says why there is none. ``again``: it was asked over a direct connection before, and nobody
    but that spoke knows whether it has run."""
    if again is not None:
        if asked := [one for one in offers.all(operation) if one.node_id == again["id"]]:
            return asked[-1:]
        message = f"the spoke that was asked for {operation[:MAX_SHOWN]} is not here; it may have done it"
        raise Refused("EXECUTION_ERROR", message, {"retryable": True})
    if not roll:
        if (spoke := offers.pick(operation)) is not None:
            return [spoke]
    elif offering := offers.all(operation):
        if spokes := [spoke for spoke in offering if spoke.operations[operation].kind != "subscription"]:
            return spokes
        raise Refused("VALIDATION_ERROR", f"{operation} is a subscription: it has no one answer for a roll-call")
    raise Refused("OPERATION_NOT_FOUND", f"no connected spoke offers {operation[:MAX_SHOWN]}")
