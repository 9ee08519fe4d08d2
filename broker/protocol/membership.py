"""A spoke's machine for the swarm of one topic: whether it is in it, whether it hears it, and what the hub is told.

Rules:
1. A spoke hears a swarm when it has a neighbour there, and has heard a hub's heartbeat `SETTLED` times since the last
   neighbour came: the tree around it has settled then, and brings what is published at once. Only then it says
   `joined`, upon which the hub stops feeding it by stream, and only then it publishes there.
2. It takes that back when it has heard nothing for `SILENT`, no hub for `UNBEATEN` (what others send does not prove
   that the hub's half of the swarm is heard), or had no neighbour for `ALONE`. It says so first and then subscribes
   again with its positions, so that the stream begins where the swarm ended. Then it asks for fresh bootstrap.
3. Another id is another generation. The old one is kept until the new one is heard, for `MOVE` at most.
4. That it was overrun it says with its membership, once in `LAG_EVERY`: the hub narrows the authors' windows.
5. While the hub is away nobody can be asked: the swarm goes on among whoever is there and is heard with the first word,
   and peers heard of before are the bootstrap.
6. Who hears the swarm and is told of it again (other authors, say) joins no more peers: each join moves the neighbours
   of others, and what is sent meanwhile comes late. A hub that was away is joined, since nobody is its neighbour.

Not here: the wire, addresses, what is sent in a swarm, and clocks. ``jitter`` draws from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Beat",
    "Effect",
    "Event",
    "Heard",
    "HubDown",
    "HubUp",
    "Join",
    "JoinPeers",
    "Lagged",
    "Leave",
    "Membership",
    "Neighbour",
    "NoSwarm",
    "Subscribe",
    "TellHub",
    "Tick",
    "Told",
    "ToldToLeave",
    "Want",
]

SETTLED: Final = 2
"""Heartbeats after the last neighbour: plumtree sends by all new neighbours and drops those that bring a thing for the
second time. A flood in that moment drops too many, and then what comes is half a second late (docs/decisions/0006)."""
RESTLESS: Final = 5.0
"""Seconds of a swarm in which a new neighbour counts. A swarm that many join has never done with neighbours."""
SILENT: Final = 5.0
"""Seconds without a word; the hub sends a heartbeat every two, and more while spokes join."""
UNBEATEN: Final = 7.0
"""Seconds without a heartbeat, while others are heard: three of them."""
ALONE: Final = 1.0
"""Seconds without a neighbour: one that was lost is replaced in less."""
MOVE: Final = 3.0
"""Seconds for a new generation to be heard, before the stream takes over."""
ASK_EVERY: Final = 2.0
"""Seconds between questions for bootstrap; up to a half more by jitter, since all are silent at once."""
LAG_EVERY: Final = 0.2
"""Seconds between words that it was overrun: one wave counts as one (protocol/pacing.py)."""
REMEMBERED: Final = 32
"""Peers to join by way of while the hub is away."""


@dataclass(frozen=True, slots=True)
class Told:
    """``topic.swarm`` with an id: to be joined, or by a known id fresh bootstrap. Peers and hubs are NodeIds."""

    id: str
    generation: int
    bootstrap: tuple[str, ...]
    hubs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToldToLeave:
    """``topic.swarm`` without an id; or the program wants the topic by stream alone."""


@dataclass(frozen=True, slots=True)
class Want:
    """The program wants this topic to have a swarm."""


@dataclass(frozen=True, slots=True)
class NoSwarm:
    """The hub will have none for this topic."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour has come or gone."""

    id: str
    node_id: str
    up: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """Anything checked came from the swarm."""

    id: str


@dataclass(frozen=True, slots=True)
class Beat:
    """A hub's heartbeat came."""

    id: str


@dataclass(frozen=True, slots=True)
class Lagged:
    """Gossip overran this program."""

    id: str


@dataclass(frozen=True, slots=True)
class HubUp:
    """The connection to the hub is there, and the subscriptions are made."""


@dataclass(frozen=True, slots=True)
class HubDown:
    """It is gone."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Told | ToldToLeave | Want | NoSwarm | Neighbour | Heard | Beat | Lagged | HubUp | HubDown | Tick


@dataclass(frozen=True, slots=True)
class Join:
    """Join the swarm ``id`` by way of these peers."""

    id: str
    bootstrap: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinPeers:
    """More peers of a swarm that was joined."""

    id: str
    bootstrap: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave it."""

    id: str


@dataclass(frozen=True, slots=True)
class TellHub:
    """``topic.swarm`` to the hub."""

    generation: int
    joined: bool
    neighbours: int
    want: bool = False
    lagged: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe again with positions: from here on the stream counts."""


Effect = Join | JoinPeers | Leave | TellHub | Subscribe


class _Swarm:
    """One generation."""

    __slots__ = ("alone_since", "beat_at", "beats", "bootstrap", "generation", "heard_at", "hubs", "id", "neighbours",
                 "since")  # fmt: skip

    def __init__(self, told: Told, now: float) -> None:
        self.id, self.generation = told.id, told.generation
        self.bootstrap, self.hubs = told.bootstrap, told.hubs
        self.neighbours: dict[str, None] = {}
        self.since = now
        self.alone_since: float | None = now
        self.heard_at: float | None = None
        self.beat_at = now
        self.beats = 0
        """Heartbeats since the last neighbour came."""

    def hears(self, *, hub: bool) -> bool:
        """``hub``: whether it is there to send heartbeats."""
        heard = self.beats >= SETTLED if hub else self.heard_at is not None
        return bool(self.neighbours) and heard

    def beat(self, now: float) -> None:
        self.beat_at = now
        self.beats += 1

    def meet(self, node_id: str, up: bool, now: float) -> None:
        if up:
            self.neighbours[node_id] = None
            self.alone_since = None
            if now < self.since + RESTLESS:
                self.beats = 0
            others = [peer for peer in self.bootstrap if peer != node_id]
            self.bootstrap = (*others, node_id)[-REMEMBERED:]
        elif node_id in self.neighbours:
            del self.neighbours[node_id]
            if not self.neighbours:
                self.alone_since = now

    def learn(self, told: Told) -> None:
        fresh = [peer for peer in told.bootstrap if peer not in self.bootstrap]
        self.bootstrap, self.hubs = (*self.bootstrap, *fresh)[-REMEMBERED:], told.hubs

    def lost_at(self) -> float:
        """When it counts as not heard any more, if nothing happens."""
        heard = self.since if self.heard_at is None else self.heard_at
        silent = min(heard + SILENT, self.beat_at + UNBEATEN)
        return silent if self.alone_since is None else min(silent, self.alone_since + ALONE)


class Membership:
    """See the module."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._now: _Swarm | None = None
        self._next: _Swarm | None = None
        self._up = False
        self._ask_at = 0.0
        self._lagged_at = float("-inf")
        self._returned = False
        """The hub was away, and has not told of the swarm since."""
        self.joined = False
        """The hub was told that the swarm is heard, and it is."""
        self.wanted = False
        """A program asked for a swarm."""

    # -- what is known

    @property
    def idle(self) -> bool:
        """Nothing is left to do: the machine can be thrown away."""
        return self._now is None and not self.wanted

    @property
    def ids(self) -> tuple[str, ...]:
        """The swarms to publish in: the one that is heard, and the next generation if somebody is there already. While
        the hub is away a neighbour is enough: there is no better way, and silence may have come from the hub's end."""
        if self._now is None or not self._now.neighbours or (self._up and not self.joined):
            return ()
        moving = self._next
        return (self._now.id,) if moving is None or not moving.neighbours else (self._now.id, moving.id)

    @property
    def neighbours(self) -> int:
        return len(self._now.neighbours) if self._now is not None else 0

    def next_due(self) -> float | None:
        """When a `Tick` has something to do."""
        if self._up:
            dues = [self._next.since + MOVE] if self._next is not None else []
            if self.joined and self._now is not None:
                dues.append(self._now.lost_at())
            elif self._now is not None or self.wanted:
                dues.append(self._ask_at)
            return min(dues, default=None)
        if self._now is None or self._now.alone_since is None:
            return None
        return max(self._ask_at, self._now.alone_since + ALONE)

    # -- what happens

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Heard(id):
                return self._heard(id, now, beat=False)
            case Beat(id):
                return self._heard(id, now, beat=True)
            case Lagged(id):
                return self._lagged(id, now)
            case Neighbour(id, node_id, up):
                return self._neighbour(id, node_id, up, now)
            case Told():
                return self._told(event, now)
            case ToldToLeave():
                return self._leave()
            case Want():
                return self._want(now)
            case NoSwarm():
                self.wanted = False
                return []
            case HubUp():
                return self._hub_up(now)
            case HubDown():
                self._up = False
                return []
            case Tick():
                return self._tick(now)

    def _heard(self, id: str, now: float, *, beat: bool) -> list[Effect]:
        for swarm in (self._now, self._next):
            if swarm is not None and swarm.id == id:
                swarm.heard_at = now
                if beat:
                    swarm.beat(now)
        return self._look(now)

    def _lagged(self, id: str, now: float) -> list[Effect]:
        """Of a swarm that is not heard there is nothing to say: its events come by stream."""
        known = self._now is not None and self._now.id == id
        if not (self._up and self.joined and known) or now < self._lagged_at + LAG_EVERY:
            return []
        self._lagged_at = now
        return [self._tell(lagged=True)]

    def _neighbour(self, id: str, node_id: str, up: bool, now: float) -> list[Effect]:
        for swarm in (self._now, self._next):
            if swarm is not None and swarm.id == id:
                swarm.meet(node_id, up, now)
        return self._look(now)

    def _look(self, now: float) -> list[Effect]:
        """Whether a swarm is heard now that was not."""
        if self._next is not None and self._next.hears(hub=self._up):
            assert self._now is not None
            old, self._now, self._next = self._now, self._next, None
            return [*self._say_joined(now), Leave(old.id)]
        if self._now is not None and self._now.hears(hub=self._up) and not self.joined:
            return self._say_joined(now)
        return []

    def _say_joined(self, now: float) -> list[Effect]:
        assert self._now is not None
        self.joined = True
        self._now.beat_at = max(self._now.beat_at, now)  # from here on heartbeats are due
        return [self._tell()] if self._up else []

    def _tell(self, *, want: bool = False, lagged: bool = False) -> TellHub:
        generation = self._now.generation if self._now is not None else 0
        return TellHub(generation, self.joined, self.neighbours, want, lagged)

    def _told(self, told: Told, now: float) -> list[Effect]:
        returned, self._returned = self._returned, False
        for swarm in (self._now, self._next):
            if swarm is not None and swarm.id == told.id:
                swarm.learn(told)
                swarm.generation = told.generation
                there = self.joined and swarm is self._now and bool(swarm.neighbours) and not returned
                peers: list[Effect] = [] if there else [JoinPeers(told.id, told.bootstrap)]
                return peers + self._stay(swarm)
        found: list[Effect] = []
        fresh = _Swarm(told, now)
        if self.joined:
            found += [Leave(self._next.id)] if self._next is not None else []
            self._next = fresh
        else:
            found += [Leave(swarm.id) for swarm in (self._now, self._next) if swarm is not None]
            self._now, self._next = fresh, None
            self._ask_later(now)
        return [*found, Join(told.id, told.bootstrap)]

    def _stay(self, swarm: _Swarm) -> list[Effect]:
        """The hub names the generation that is heard, so there is none to move to."""
        if swarm is self._now and self._next is not None:
            other, self._next = self._next, None
            return [Leave(other.id)]
        return []

    def _leave(self) -> list[Effect]:
        was, self.joined = self.joined, False
        left: list[Effect] = [Leave(swarm.id) for swarm in (self._now, self._next) if swarm is not None]
        told = self._tell()
        self._now = self._next = None
        again: list[Effect] = [Subscribe()] if was else []
        return [told, *again, *left] if self._up else left

    def _want(self, now: float) -> list[Effect]:
        self.wanted = True
        if not self._up or self.joined or now < self._ask_at:
            return []
        return self._ask(now)

    def _ask(self, now: float) -> list[Effect]:
        self._ask_later(now)
        return [self._tell(want=True)]

    def _ask_later(self, now: float) -> None:
        self._ask_at = now + ASK_EVERY * (1.0 + self._jitter() / 2)

    def _hub_up(self, now: float) -> list[Effect]:
        self._up = self._returned = True
        if self._now is None:
            return self._ask(now) if self.wanted else []
        self.joined = self.joined and bool(self._now.neighbours)
        if not self.joined:
            return self._ask(now)
        self._now.beat_at, self._now.heard_at = now, now  # it was not there to be heard
        return [self._tell()]

    def _tick(self, now: float) -> list[Effect]:
        if not self._up:
            return self._help_ourselves(now)
        if self._next is not None and now >= self._next.since + MOVE:
            assert self._now is not None
            old, self._now, self._next = self._now, self._next, None
            return [*self._deaf(now), Leave(old.id)]
        if self.joined and self._now is not None and now >= self._now.lost_at():
            return self._deaf(now)
        if not self.joined and (self._now is not None or self.wanted) and now >= self._ask_at:
            return self._ask(now)
        return []

    def _deaf(self, now: float) -> list[Effect]:
        """The swarm is not heard any more."""
        assert self._now is not None
        was, self.joined = self.joined, False
        self._now.heard_at, self._now.beats = None, 0
        return [*self._ask(now), Subscribe()] if was else self._ask(now)

    def _help_ourselves(self, now: float) -> list[Effect]:
        swarm, due = self._now, self.next_due()
        if swarm is None or due is None or now < due:
            return []
        self._ask_later(now)
        return [JoinPeers(swarm.id, swarm.bootstrap)]
