"""Which way the events of one topic take: stream, from the hub to each subscriber, or gossip, among the subscribers.

What the config or an author has settled is settled. Otherwise (``auto``) topics go by stream while that is cheap for
the hub, all of them together: when their streams cost more than the hub's uplink or processor budget the dearest go by
gossip, until the rest is within it. Between there and back stands a third of the budget for ten seconds, so that a
topic at the border does not go back and forth. Not here: the move itself (overlay.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["LEAST_COST", "LEAST_SUBSCRIBERS", "Budget", "Carrier", "Choice", "Load", "weigh"]

Choice = Literal["auto", "stream", "gossip"]

LEAST_SUBSCRIBERS: Final = 8
"""Below it a swarm saves nothing: an author in it sends to five neighbours itself."""
LEAST_COST: Final = 0.01
"""Part of the budget below which a topic is not worth a swarm, whatever the others cost."""
BACK: Final = 3.0
"""A topic goes back to the stream when its stream and the others' cost less than this part of the budget."""
QUIET: Final = 10.0
"""Seconds for which it must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What streams of all topics may cost the hub."""

    uplink_bytes: float
    """Bytes a second."""
    deliveries: float
    """Events a second, counted once for each subscriber."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a topic has at the moment."""

    subscribers: int
    """Those that could gossip, or do."""
    events: float
    """A second."""
    bytes: float
    """A second."""

    def cost(self, budget: Budget) -> float:
        """What streams would cost, as a part of the budget."""
        return self.subscribers * max(self.bytes / budget.uplink_bytes, self.events / budget.deliveries)


class Carrier:
    """One topic's. ``choice`` is the config's; ``gossip`` what it is now; ``switches`` only grows."""

    __slots__ = ("_budget", "_cheap_since", "_pins", "_shared", "choice", "gossip", "switches")

    def __init__(self, choice: Choice, budget: Budget) -> None:
        self.choice: Choice = choice
        self._budget = budget
        self.gossip = choice == "gossip"
        self.switches = 0
        self._cheap_since: float | None = None
        self._pins: set[int] = set()
        self._shared: set[int] = set()

    def pin(self, peer: int) -> bool:
        """A spoke asks for gossip on this topic. False: the config says stream."""
        if self.choice == "stream":
            return False
        self._pins.add(peer)
        self._become(True)
        return True

    def unpin(self, peer: int) -> None:
        """It is gone, or has gone back to the stream."""
        self._pins.discard(peer)
        self._shared.discard(peer)

    def share(self, peer: int) -> None:
        """Another hub of the realm has the topic too: while it is here there is a swarm, whatever the config says of
        spokes."""
        self._shared.add(peer)
        self._become(True)

    def found(self) -> None:
        """The swarm is there already: a hub that was restarted finds its spokes in it."""
        if self.choice != "stream":
            self._become(True)

    def give_up(self) -> None:
        """No swarm can carry it: from now on it goes by stream, whatever it costs and whoever asks."""
        self.choice = "stream"
        self._pins.clear()
        self._become(False)

    def look(self, load: Load, now: float, *, others: float = 0.0) -> bool:
        """Once a second. True when the way is another one from now on. ``others``: what the streams of the other topics
        cost, as a part of the budget."""
        if self._shared or self.choice == "gossip":
            return False
        if self.choice == "stream":
            return self._become(False)
        cost = load.cost(self._budget)
        if not self.gossip:
            dear = others + cost > 1.0 and cost >= LEAST_COST
            return self._become(dear and load.subscribers >= LEAST_SUBSCRIBERS)
        if self._pins or ((others + cost) * BACK >= 1.0 and cost * BACK >= LEAST_COST):
            self._cheap_since = None
        elif self._cheap_since is None:
            self._cheap_since = now
        elif now - self._cheap_since >= QUIET:
            return self._become(False)
        return False

    def _become(self, gossip: bool) -> bool:
        if gossip == self.gossip:
            return False
        self.gossip, self._cheap_since = gossip, None
        self.switches += 1
        return True


def weigh(topics: Iterable[tuple[str, Carrier, Load]], budget: Budget, now: float) -> list[str]:
    """Once a second, all topics together: those whose way is another one from now on. The dearest leave the stream
    first, and the cheapest come back first."""
    by_cost = sorted(
        ((load.cost(budget), topic, carrier, load) for topic, carrier, load in topics), key=lambda one: one[:2]
    )
    spent = sum(cost for cost, _, carrier, _ in by_cost if not carrier.gossip)
    moved: list[str] = []
    for cost, topic, carrier, load in [one for one in reversed(by_cost) if not one[2].gossip]:
        if carrier.look(load, now, others=max(spent - cost, 0.0)):
            spent -= cost
            moved.append(topic)
    for cost, topic, carrier, load in [one for one in by_cost if one[2].gossip and one[1] not in moved]:
        if carrier.look(load, now, others=max(spent, 0.0)):
            spent += cost
            moved.append(topic)
    return moved
