"""What a spoke can be told about itself. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from broker.protocol.ticket import MESSAGE_BYTES, REALM_BYTES, Ticket

__all__ = ["SpokeOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokeOptions:
    """Times are seconds, sizes bytes."""

    bind: str | None = None
    """Local UDP address ``host:port``. None: loopback when the ticket has only loopback addresses, else every
    interface."""
    accept: bool = False
    """Waits to be dialled, by whoever has the ticket that ``Spoke.listen`` returns, and by ``hubs``. By nobody else."""
    hubs: tuple[str, ...] = ()
    """NodeIds of hubs that may dial without the ticket's secret, such as one that knows only the specification."""
    address_book: Path | None = None
    """A file in which it keeps where its hub and the realm's others were last, so that it finds them again after its
    own restart also where its ticket does not say. None: remembered while it runs."""
    lookup: str | None = None
    """URL of a pkarr service where hubs are looked up whose addresses are not known, and where a spoke that listens
    says where it is."""
    max_frame_bytes: int = 1_048_576
    dial_timeout: float = 10.0
    idle_timeout: float = 6.0
    """A connection that is silent for so long is dead: what it takes to notice a hub that was killed. With relays, a
    path that is silent for a third of it is left for another one."""
    backoff_first: float = 0.2
    """Full jitter: the n-th attempt waits a random time up to ``min(backoff_first * 2**n, backoff_most)``,
    and up to 3 s while the spoke is in a swarm."""
    backoff_most: float = 30.0
    gossip: bool = True
    """Joins the swarms of its topics when the hub says so, and lets their members in; nobody else."""
    direct: bool | None = None
    """Takes introductions: other spokes that may call something here then do so over a connection of their own. None:
    if it accepts or gossips, which opens its door anyway. `Spoke.direct` asks for one whatever this says."""
    gossip_message_bytes: int | None = None
    """The same in the whole realm. None: what the ticket says (4,096 if nothing); 32,768 for a spoke without a ticket,
    which a hub dials."""
    counts_gossip: bool = False
    """Of an event that comes by gossip its place alone is told: its ``detail`` is None, and nothing of it is decoded.
    To measure a swarm and not its reader (read it by :meth:`Subscription.runs`); order, repairs and verdicts are as
    always, and what comes by stream has its detail."""
    relays: tuple[str, ...] = ()
    """URLs of relays to be reachable through, beside those of the ticket, which are used by themselves."""
    relay_ca: Path | str | None = None
    """PEM file of the authorities that sign the relays' certificates. None: those that browsers believe."""
    subscription_events: int = 4_096
    """A subscription's queue: from here on its policy applies."""

    def message_bytes(self, ticket: Ticket | None) -> int:
        """The size of gossip messages in the realm of this ticket, or of the hub that is still to come."""
        told = REALM_BYTES if ticket is None else ticket.message_bytes or MESSAGE_BYTES
        return self.gossip_message_bytes or told

    @property
    def introduced(self) -> bool:
        """Whether it takes introductions."""
        return self.accept or self.gossip if self.direct is None else self.direct
