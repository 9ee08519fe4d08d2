"""What the hub's call table (calls.py) is made of: its limits, its effects, and the records of spokes, calls and legs.

A call knows its legs, a leg its call and its spoke, a spoke the calls it made and the legs it was asked; ``detach``
undoes all of it for one call. The limits say whether there is room for one more.

Not here: when a call begins and how it ends, the counts over all calls, deadlines: those are the table's. A spoke's own
record of the calls it makes is in caller.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from broker.protocol.answering import Refused
from broker.protocol.registration import Kind, Offerer

__all__ = ["HUB", "Call", "CallLimits", "Complain", "Effect", "Ended", "Leg", "Peer", "Send", "Spoke"]

Peer: TypeAlias = int
HUB: Final[Peer] = 0
"""The hub itself, as a caller and as the spoke that offers ``hub.*``."""

_RETRYABLE: Final = {"retryable": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of one table. Times are seconds, windows count responses."""

    in_flight_per_peer: int = 1_024
    """Calls of one caller, and legs of one spoke; the hub itself is bounded by ``in_flight`` alone."""
    in_flight: int = 100_000
    """Legs in all: about 1 kB each."""
    default_timeout: float = 30.0
    max_timeout: float = 3_600.0
    window: int = 256
    max_window: int = 65_536
    slack: int = 256
    """Responses beyond the window before a stream is ended: room for a spoke that knows no credit and little to say."""

    def check_room(self, caller: Spoke, spokes: list[Spoke], legs: int) -> None:
        """Refused, retryable, when a call to ``spokes`` is one too many beside the ``legs`` that there are."""
        most = self.in_flight_per_peer
        if len(caller.calls) >= most and caller.peer != HUB:
            raise Refused("EXECUTION_ERROR", f"{most} calls of yours are in flight, which is the limit", _RETRYABLE)
        if legs + len(spokes) > self.in_flight:
            raise Refused("EXECUTION_ERROR", "the hub has as many calls in flight as it may", _RETRYABLE)
        # A roll-call asks everyone whatever they have to do, and is bounded by the sum above.
        if len(spokes) == 1 and len(spokes[0].legs) >= most and spokes[0].peer != HUB:
            raise Refused(
                "EXECUTION_ERROR", "every spoke that offers it has as many calls in flight as it may", _RETRYABLE
            )


@dataclass(slots=True)
class Send:
    """A message for a peer; for ``HUB`` it is the hub's own business."""

    peer: Peer
    type: str
    detail: dict[str, Any]


@dataclass(slots=True)
class Ended:
    """A call ended. ``code`` is ``OK`` or a code of the wire's table; refused calls are told too, with no answerer."""

    operation: str
    kind: Kind | None
    code: str
    seconds: float
    caller: Peer
    answerer: Peer | None
    request_id: str = field(default="", compare=False)
    """The caller's own."""


@dataclass(slots=True)
class Complain:
    """A ``hub.error`` for a peer: it did something wrong that does not end its connection."""

    peer: Peer
    code: str
    message: str
    about: str | None


Effect: TypeAlias = Send | Ended | Complain


class Spoke(Offerer):
    """A connected peer: beside what it offers and the legs it was asked, the calls it made."""

    __slots__ = ("calls", "live", "peer")

    def __init__(self, peer: Peer, node_id: str, name: str | None):
        super().__init__(node_id, name)
        self.peer = peer
        self.live = True
        self.calls: dict[str, Call] = {}
        self.legs: dict[str, Leg] = {}

    def who(self) -> dict[str, Any]:
        """As a roll-call names it."""
        return {"id": self.node_id, "name": self.name}


class Call:
    """What a caller asked, under its own request id."""

    __slots__ = (
        *("auto", "caller", "items", "kind", "legs", "live"),
        *("missing", "operation", "parent", "request_id", "started", "streaming"),
    )

    def __init__(
        self,
        caller: Spoke,
        request_id: str,
        operation: str,
        kind: Kind,
        started: float,
        *,
        roll: bool,
        stream: bool | None,
    ):
        self.caller, self.request_id, self.operation, self.kind = caller, request_id, operation, kind
        self.started = started
        self.live = True
        self.legs: dict[str, Leg] = {}
        self.parent: Leg | None = None
        self.missing: list[Spoke] | None = [] if roll else None
        """Of a roll-call, those that will not answer any more. None for a call to one."""
        self.streaming = not roll and (kind == "subscription" if stream is None else stream)
        """Ends with call.completed."""
        self.items = self.streaming and kind == "subscription"
        """Streaming, from a subscription: any number of responses, under a window."""
        self.auto = 0
        """The window that the hub itself keeps open, for a caller that knows no credit."""

    def absent(self) -> list[dict[str, Any]]:
        """Of a roll-call, who has not answered: those that left, then those that are late."""
        late = [leg.spoke for leg in self.legs.values()]
        return [spoke.who() for spoke in (*(self.missing or ()), *late)]

    def detach(self) -> dict[str, Leg]:
        """Takes it out of its caller, its parent and the spokes that were asked. Returns its legs."""
        self.live = False
        del self.caller.calls[self.request_id]
        if (parent := self.parent) is not None and parent.children is not None:
            del parent.children[self]
            self.parent = None
        # The call lets go of its legs, so that neither waits for the garbage collector.
        legs, self.legs = self.legs, {}
        for leg in legs.values():
            del leg.spoke.legs[leg.id]
        return legs


class Leg:
    """What one spoke was asked for a call, under an id of the hub's."""

    __slots__ = ("allowance", "call", "children", "id", "spoke")

    def __init__(self, id: str, call: Call, spoke: Spoke, allowance: int):
        self.id, self.call, self.spoke, self.allowance = id, call, spoke, allowance
        self.children: dict[Call, None] | None = None
        """Calls that were made under it, oldest first."""

    def adopt(self, child: Call) -> None:
        child.parent = self
        if self.children is None:
            self.children = {}
        self.children[child] = None

    def grant(self, more: int, effects: list[Effect]) -> None:
        """Lets the spoke send that many responses more, and tells it."""
        if more > 0:
            self.allowance += more
            effects.append(Send(self.spoke.peer, "call.credit", {"requestId": self.id, "n": more}))
