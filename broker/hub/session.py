"""What the hub knows of one connection. Values only; the router changes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from broker.protocol.access import Grant
from broker.protocol.parts import Gathered
from broker.protocol.registration import Registration

__all__ = ["Session"]


@dataclass(slots=True)
class Session:
    """One connection of a spoke. A NodeId may have several."""

    peer: int
    node_id: str
    incoming: bool
    grant: Grant
    """What it may do."""
    registration: Registration = field(default_factory=Registration)
    registered: bool = False
    said_hello: bool = False
    identity: dict[str, Any] = field(default_factory=dict)
    """What handlers see of this caller; stamped on each of its calls."""
    epochs: dict[str, tuple[str, int]] = field(default_factory=dict)
    """(epoch, last seq) per topic that the hub gives to an author that sends no meta: the last MAX_NUMBERED topics."""
    events: int = 0
    """Events of the batch that is being read."""
    hub: bool = False
    """It is another hub of this realm, and believed what it says of others' events."""
    told: Gathered | None = None
    """Parts of the other hub's ``hub.realm``, until the last is there."""
    batch: str = ""
    """Parts of its ``topic.batch``, until the last is there."""
    closing: bool = False
    """The hub has ended it; what still comes from it is not read."""
    slow: int = 0
    """Times the fan-out found its queue full."""
    dropped: int = 0
    """Events it was to get and that are named lost."""

    def stamp(self) -> None:
        """Its calls carry its scopes from now on. A new value: calls that are under way keep theirs."""
        self.identity = {"id": self.node_id, "scopes": list(self.grant.scopes), "resources": {}}

    @property
    def name(self) -> str:
        return self.registration.name or self.node_id[:10]
