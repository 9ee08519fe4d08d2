"""Who may gossip, as every spoke is told that has to do with a swarm: ``hub.peers``, and where each can be dialled.

Whoever has registered as able to gossip is a peer until its NodeId is not admitted any more, was kicked, or has been
away for `AWAY`: a spoke that lost the hub's connection alone goes on hearing the swarms. Additions are gathered for a
moment; removals, which cut live connections at every spoke, go with the batch that brought them. A connection hears of
its peers from its first swarm on: N spokes that are in none would be told N * N NodeIds for nothing, and the burst that
a long list is leaves 28 KiB in QUIC's buffers, measured, for as long as the connection lasts. Not here: which swarms a
peer may join (swarms.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from broker import _gossip_ext as ext
from broker.hub.session import Session
from broker.protocol.parts import parts
from broker.protocol.registration import GossipPlace
from broker.protocol.wire import CloseCode

__all__ = ["Peers"]

log = logging.getLogger("broker.hub")

GATHER: Final = 0.05
"""Seconds for which additions are gathered: a thousand spokes that come at once are twenty lists a second, not a
million messages."""
AWAY: Final = 60.0
"""Seconds that a peer without a connection is kept: twice the longest pause between attempts to reconnect."""
MAX_REMOTE: Final = 20_000
"""Peers of another hub."""
ENDED: Final = (CloseCode.BANNED, CloseCode.KICKED, CloseCode.NOT_ADMITTED)


class Peers:
    """All peers of a hub. ``queue`` hands an encoded message to a connection, in order with its other messages; it has
    at most ``most`` bytes."""

    def __init__(
        self, endpoint: ext.Endpoint, hubs: Iterable[str], queue: Callable[[int, bytes], None], *, most: int
    ) -> None:
        self._endpoint, self._queue, self._most = endpoint, queue, most
        self._hubs: tuple[str, ...] = ()
        self.sessions: dict[int, Session] = {}
        """Connections of spokes that can gossip."""
        self._told: dict[int, Session] = {}
        """Those of them that have been told who else can, and hear of every change."""
        self._places: dict[str, dict[str, Any]] = {}
        self._away: dict[str, float] = {}
        self._added: dict[str, None] = {}
        self._removed: dict[str, None] = {}
        self._remote: dict[str, dict[str, None]] = {}
        """By hub: the peers of the realm's other hubs."""
        self._due: float | None = None
        self.hubs_changed(hubs, 0.0)
        self._due = None

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._places

    def node_ids(self) -> list[str]:
        return list(dict.fromkeys((*self._places, *self._elsewhere())))

    def _elsewhere(self) -> Iterator[str]:
        for known in self._remote.values():
            yield from known

    def heard(self, hub: str, add: list[str], remove: list[str], full: bool, now: float) -> int:
        """Another hub tells of its peers; they are this hub's spokes' peers too. Returns for how many is no room."""
        before = set(self.node_ids())
        known = self._remote.setdefault(hub, {})
        if full:
            known.clear()
        for node_id in remove:
            known.pop(node_id, None)
        new = [node_id for node_id in dict.fromkeys(add) if node_id not in known]
        room = MAX_REMOTE - len(known)
        known.update(dict.fromkeys(new[:room]))
        after = set(self.node_ids())
        for node_id in before - after:
            self._forget(node_id)
        self._endpoint.admit_peers(list(after - before), list(before - after))
        for node_id in after - before:
            self._add(node_id, now)
        return max(len(new) - room, 0)

    def hubs_changed(self, hubs: Iterable[str], now: float) -> None:
        """The realm has other hubs now."""
        before, self._hubs = self._hubs, tuple(hubs)
        new = [hub for hub in self._hubs if hub not in before and hub != self._endpoint.node_id]
        if new:
            self._endpoint.admit_peers(new)
        for hub in new:
            self._add(hub, now)

    def _add(self, node_id: str, now: float) -> None:
        self._removed.pop(node_id, None)
        self._added[node_id] = None
        self._due = now + GATHER if self._due is None else self._due

    def _forget(self, node_id: str) -> None:
        self._added.pop(node_id, None)
        self._removed[node_id] = None

    def place(self, node_id: str) -> dict[str, Any] | None:
        """Where a peer can be dialled, as ``topic.swarm`` has it."""
        return self._places.get(node_id)

    @property
    def changed(self) -> bool:
        """Whether :meth:`flush` may have something to tell."""
        return bool(self._removed) or self._due is not None

    @property
    def gathering(self) -> bool:
        """Whether there are peers that the others have not been told of."""
        return self._due is not None

    def away_for(self, node_id: str, now: float) -> float | None:
        """Seconds that a peer has been without a connection. None: it is here, or not remembered."""
        until = self._away.get(node_id)
        return None if until is None else now - (until - AWAY)

    def registered(self, session: Session, place: GossipPlace, now: float) -> None:
        """A spoke that can gossip is there, or has said anew where it is. ValueError when nobody could dial that."""
        node_id = session.node_id
        addrs = list(place.addrs)
        stats = self._endpoint.stats(session.peer)
        if stats is not None and stats.path == "direct" and stats.remote_addr and stats.remote_addr not in addrs:
            addrs.append(stats.remote_addr)  # behind a NAT it does not know this one itself
        self._endpoint.learn(node_id, addrs, list(place.relays))
        self.sessions[session.peer] = session
        self._away.pop(node_id, None)
        if node_id not in self._places:
            self._endpoint.admit_peers([node_id])
            self._add(node_id, now)
        self._places[node_id] = {"id": node_id, "addrs": addrs, "relays": list(place.relays)}
        if session.hub:
            self.tell(session.peer)

    def gone(self, session: Session, code: int | None, now: float) -> None:
        """A connection ended."""
        self._told.pop(session.peer, None)
        if self.sessions.pop(session.peer, None) is None:
            return
        if any(other.node_id == session.node_id for other in self.sessions.values()):
            return
        if code in ENDED:
            self.remove([session.node_id])
        elif not session.hub:  # a hub stays one while it is away
            self._away[session.node_id] = now + AWAY

    def remove(self, node_ids: Iterable[str]) -> None:
        """These must not gossip any more: here at once, at the spokes with the next `flush`."""
        known = set(self.node_ids())
        gone = [node_id for node_id in node_ids if node_id in known]
        if not gone:
            return
        for node_id in gone:
            self._places.pop(node_id, None)
            self._away.pop(node_id, None)
            for remote in self._remote.values():
                remote.pop(node_id, None)
            self._forget(node_id)
        self._endpoint.admit_peers([], gone)

    def flush(self, now: float) -> None:
        """Tells what has changed."""
        gathered = self._due is not None and self._due <= now
        if gathered:
            self._due = None
        if not self._removed and not gathered:
            return
        add, remove = list(self._added) if gathered else [], list(self._removed)
        if gathered:
            self._added.clear()
        self._removed.clear()
        if not self._told:
            return
        frames = self._frames(add, remove, full=False)
        # Hubs tell each other of their own peers alone, or a NodeId would never be forgotten.
        own = self._frames([one for one in add if one in self._places], remove, full=False)
        for peer, session in self._told.items():
            for frame in own if session.hub else frames:
                self._queue(peer, frame)

    def tick(self, now: float) -> None:
        """Forgets those that have been away for long. Who is at another hub by now stays a peer."""
        gone = [node_id for node_id, until in self._away.items() if until <= now]
        elsewhere = set(self._elsewhere()) if gone else set()
        for node_id in elsewhere.intersection(gone):
            del self._away[node_id], self._places[node_id]
        self.remove([node_id for node_id in gone if node_id not in elsewhere])

    def next_due(self) -> float | None:
        """When :meth:`flush` or :meth:`tick` has something to do."""
        dues = list(self._away.values())
        if self._due is not None:
            dues.append(self._due)
        return min(dues, default=None)

    def tell(self, peer: int) -> None:
        """A connection has to do with swarms: it is told of all peers, once, and of changes from now on."""
        session = self.sessions.get(peer)
        if session is None or peer in self._told:
            return
        self._told[peer] = session
        ids = list(self._places) if session.hub else [*self._hubs, *self.node_ids()]
        for frame in self._frames(ids, [], full=True):
            self._queue(peer, frame)

    def _frames(self, add: list[str], remove: list[str], *, full: bool) -> list[bytes]:
        detail = {"add": add, "remove": remove, "full": full}
        return parts("hub.peers", detail, self._most, cut=("add", "remove"), rest={"full": False})
