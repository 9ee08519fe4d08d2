"""What the tests of the hub's call table speak with: four peers, a table that they talk to, and its messages by name.

Not here: any test. The fixture ``talk``, in which Ann asks and Bob answers, is in conftest.py.
"""

from __future__ import annotations

from typing import Any

from broker.protocol.calls import CallLimits, CallTable, Effect, Ended, Send
from broker.protocol.registration import Kind, Operation, Registration

ANN, BOB, CARL, DORA = 1, 2, 3, 4
NAMES = {ANN: "ann", BOB: "bob", CARL: "carl", DORA: "dora"}
NOW_MS = 1_700_000_000_000.0
KINDS: dict[str, Kind] = {"get": "query", "put": "mutation", "watch": "subscription", "hub.ls": "query"}


def offering(*ids: str) -> Registration:
    return Registration(operations=tuple(Operation(id, KINDS.get(id, "query")) for id in ids))


class Talk:
    """A table and what was said: each line is a message of a peer and all that the hub does about it."""

    def __init__(self, **limits: Any):
        self.table = CallTable(CallLimits(**limits), leg_prefix="leg-")
        self.now = 1_000.0

    def join(self, peer: int, *ids: str) -> None:
        self.table.register(peer, f"id-{NAMES.get(peer, 'hub')}", NAMES.get(peer), offering(*ids))

    def asks(self, peer: int, request_id: str, operation: str, **more: Any) -> list[Effect]:
        detail = {"requestId": request_id, "operationId": operation, **more}
        return self.table.requested(peer, {"id": f"id-{NAMES.get(peer)}"}, detail, self.now, NOW_MS)

    def leg(self, peer: int, request_id: str, operation: str, **more: Any) -> str:
        """Asks, and gives the id under which the only spoke was asked."""
        (effect,) = self.asks(peer, request_id, operation, **more)
        assert isinstance(effect, Send)
        assert effect.type == "call.requested"
        return str(effect.detail["requestId"])

    def says(self, peer: int, verb: str, request_id: str, **more: Any) -> list[Effect]:
        handle = getattr(self.table, verb)
        effects: list[Effect] = handle(peer, {"requestId": request_id, **more}, self.now)
        return effects

    def empty(self) -> bool:
        peers = self.table._peers.values()
        return (len(self.table), self.table._legs, any(peer.calls or peer.legs for peer in peers)) == (0, 0, False)


def responded(peer: int, request_id: str, output: Any = None, **more: Any) -> Send:
    return Send(peer, "call.responded", {"requestId": request_id, "output": output, **more})


def completed(peer: int, request_id: str, **more: Any) -> Send:
    return Send(peer, "call.completed", {"requestId": request_id, **more})


def aborted(peer: int, leg: str, reason: str) -> Send:
    return Send(peer, "call.aborted", {"requestId": leg, "reason": reason})


def error(peer: int, request_id: str, code: str, message: str, **more: Any) -> Send:
    return Send(peer, "call.error", {"requestId": request_id, "code": code, "message": message, **more})


def ended(operation: str, code: str, caller: int, answerer: int | None, seconds: float = 0.0) -> Ended:
    return Ended(operation, KINDS[operation], code, seconds, caller, answerer)


def who(peer: int) -> dict[str, Any]:
    return {"id": f"id-{NAMES[peer]}", "name": NAMES[peer]}


def code_of(effects: list[Effect]) -> tuple[Any, Any]:
    send = effects[0]
    assert isinstance(send, Send)
    return send.detail.get("code"), send.detail.get("details")
