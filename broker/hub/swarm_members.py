"""Who may be in which swarm, and what they are told: invitations, the allow set, bans.

A member can read, so it must be allowed to subscribe; it may publish if it is on the list that every member is given,
or if there is none. Invitations wait until the peers that they name have been told of each other (peers.py). Not here:
who hears a swarm (protocol/overlay.py), and which topics have one (swarms.py).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from broker.hub.channel import Channel
from broker.hub.holes import Key
from broker.hub.peers import AWAY, Peers
from broker.hub.session import Session
from broker.protocol import overlay
from broker.protocol.parts import parts
from broker.protocol.routing import matches

if TYPE_CHECKING:
    from broker.hub.swarm import TopicSwarm
    from broker.hub.swarms import Swarms

__all__ = ["SwarmMembers"]

log = logging.getLogger("broker.hub")

MAX_AUTHORS_LISTED: Final = 1_000
"""Authors of a topic that not everybody may publish to, as all its members are told: 66 KB. One with more goes by
stream, as does one with more than half a frame takes."""
ID_BYTES: Final = 67
"""A NodeId in a list."""


RETURN_TIME: Final = 10.0
"""Seconds in which an author that lost its connection comes back, and sends again what the hub does not have."""


class SwarmMembers:
    """The members of all swarms of a hub."""

    def __init__(self, swarms: Swarms) -> None:
        self._swarms, self._router = swarms, swarms.router
        self._frame_bytes = self._router.limits.max_frame_bytes
        self.most_authors = min(MAX_AUTHORS_LISTED, self._frame_bytes // 2 // ID_BYTES)
        """Authors that a topic over gossip can have, if not everybody may publish to it."""
        self.peers = Peers(self._router.endpoint, swarms.realm.hubs, swarms.queue, most=self._frame_bytes)
        self._began = time.monotonic()
        """When the hub was last alone."""
        self._adopted: list[tuple[TopicSwarm, frozenset[str]]] = []
        """Swarms, and who must leave them by another hub's decision."""
        self._denied = self._router.admission.policy.deny
        self._invites: dict[tuple[str, int], tuple[str, ...]] = {}
        """(topic, peer) -> bootstrap: invitations that wait."""

    # -- who may what

    def gossips(self, peer: int) -> bool:
        return peer in self.peers.sessions

    def may_join(self, peer: int, topic: str) -> bool:
        session = self.peers.sessions.get(peer)
        return session is not None and not session.closing and session.grant.may("subscribe", topic)

    def may_publish(self, author: str, topic: str) -> bool:
        admission = self._router.admission
        return bool(admission.policy.admitted(author)) and admission.grant(author).may("publish", topic)

    def authors_of(self, channel: Channel) -> dict[str, None] | None:
        """Who may publish on a topic; None: whoever is in its swarm."""
        if not self._router.admission.policy.scopes:
            return None
        authors = dict.fromkeys(author for author, _, _ in channel.ring.heads())
        return {author: None for author in authors if self.may_publish(author, channel.topic)}

    # -- who is there

    def connection(self, node_id: str) -> int | None:
        """A NodeId's newest connection."""
        sessions = self._router.by_node.get(node_id)
        return next(reversed(sessions)) if sessions else None

    def node_ids(self, peers: Iterable[int]) -> list[str]:
        """Of connections, each once."""
        known = self.peers.sessions
        return list(dict.fromkeys(known[peer].node_id for peer in peers if peer in known))

    def who_has(self, swarm: TopicSwarm, key: Key) -> tuple[int | None, list[int], list[int]]:
        """The connection that holds a sequence as its author, or else members that may have some of it, and
        other hubs."""
        peer = swarm.channel.authors.get(key)
        session = None if peer is None else self._router.sessions.get(peer)
        if session is not None and session.node_id == key[0]:
            return peer, [], []
        newest = self.connection(key[0])
        others = [peer for peer in swarm.overlay.joined() if peer != newest]
        random.shuffle(others)
        hubs = [session.peer for session in self._router.links.sessions()]
        members = [peer for peer in others if peer not in hubs]
        members = members if newest is None else [newest, *members]
        return None, members, hubs

    def has_left(self, author: str, now: float) -> bool:
        """Whether an author is not just away for a moment: after a restart of the hub, everybody is."""
        if self.connection(author) is not None or now < self._began + RETURN_TIME:
            return False
        away = self.peers.away_for(author, now)
        return away is None or away >= RETURN_TIME

    def is_gone(self, author: str, now: float) -> bool:
        """Whether an author is not expected any more. Until then it may have what members do not: it is not lost."""
        return self.connection(author) is None and author not in self.peers and now >= self._began + AWAY

    # -- who is invited

    def invite(self, swarm: TopicSwarm, now: float) -> None:
        """Whom the topic concerns: those who subscribe, and the authors that are here."""
        channel = swarm.channel
        for peer in self._swarms.topics.subscriptions.match(channel.topic):
            self.admit(swarm, peer, reads=True, now=now)
        for peer in set(channel.authors.values()):
            self.admit(swarm, peer, reads=False, now=now)

    def admit(self, swarm: TopicSwarm, peer: int, *, reads: bool, now: float) -> None:
        """Into a swarm that is there for the realm's hubs alone no spoke is let."""
        if self.may_join(peer, swarm.topic) and (swarm.carrier.choice != "stream" or self.peers.sessions[peer].hub):
            swarm.step(overlay.Admit(peer, self.peers.sessions[peer].node_id, reads), now)
            self._swarms.touched(swarm)

    def publishes(self, swarm: TopicSwarm, peer: int, author: str, now: float) -> None:
        """An author's connection is heard on a topic for the first time."""
        if swarm.authors is not None and author not in swarm.authors:
            if len(swarm.authors) >= self.most_authors:
                self._swarms.give_up(swarm, f"more than {self.most_authors} authors publish to it", now)
                return
            swarm.authors[author] = None
            swarm.lists_changed(now)
        self.admit(swarm, peer, reads=False, now=now)

    def authors_elsewhere(self, swarm: TopicSwarm, authors: object, now: float) -> None:
        """Who publishes at another hub of the realm, of those who may do so here."""
        if swarm.authors is None or not isinstance(authors, list):
            return
        new = [one for one in authors if type(one) is str and one not in swarm.authors]
        new = [one for one in new if self.may_publish(one, swarm.topic)]
        if len(swarm.authors) + len(new) > self.most_authors:
            self._swarms.give_up(swarm, f"more than {self.most_authors} authors publish to it", now)
        elif new:
            swarm.authors.update(dict.fromkeys(new))
            swarm.lists_changed(now)

    def subscribed(self, session: Session, patterns: Sequence[str]) -> None:
        """Of topics over gossip that these cover it is told now; of others when they appear."""
        if self._swarms.by_topic and session.peer in self.peers.sessions:
            now = time.monotonic()
            for swarm in list(self._swarms.by_topic.values()):
                if any(matches(pattern, swarm.topic) for pattern in patterns):
                    self.admit(swarm, session.peer, reads=True, now=now)

    def unsubscribed(self, peer: int) -> None:
        """It has fewer subscriptions than before."""
        now = time.monotonic()
        for swarm in list(self._swarms.by_topic.values()):
            if peer in swarm.overlay and peer not in self._swarms.topics.subscriptions.match(swarm.topic):
                swarm.step(overlay.Revoke(peer), now)

    # -- what they are told

    def tell(self, swarm: TopicSwarm, peer: int, bootstrap: tuple[str, ...]) -> None:
        self._invites[swarm.topic, peer] = bootstrap

    def dismiss(self, swarm: TopicSwarm, peer: int) -> None:
        self._invites.pop((swarm.topic, peer), None)
        detail = {"topic": swarm.topic, "id": None, "generation": swarm.overlay.generation}
        self._router.send(peer, "topic.swarm", detail)

    def forget(self, topic: str) -> None:
        """Its swarm is over."""
        for key in [key for key in self._invites if key[0] == topic]:
            del self._invites[key]

    @property
    def waiting(self) -> bool:
        """Whether :meth:`flush` may have something to tell."""
        return bool(self._invites) or self.peers.changed

    def flush(self, now: float) -> None:
        """Tells the peers of each other, and then those who are invited."""
        if self.peers.changed:
            self.peers.flush(now)
        if self._invites and not self.peers.gathering:
            invites, self._invites = self._invites, {}
            for (topic, peer), bootstrap in invites.items():
                swarm = self._swarms.by_topic.get(topic)
                if swarm is not None and peer in swarm.overlay:
                    self.peers.tell(peer)
                    detail = self._invitation(swarm, bootstrap)
                    for frame in parts("topic.swarm", detail, self._frame_bytes, cut=("bootstrap",)):
                        self._swarms.queue(peer, frame)

    def _invitation(self, swarm: TopicSwarm, bootstrap: tuple[str, ...]) -> dict[str, Any]:
        swarms, generation = self._swarms, swarm.overlay.generation
        return {
            "topic": swarm.topic,
            "id": swarms.realm.id(swarm.topic, generation).hex(),
            "generation": generation,
            "bootstrap": [place for node_id in bootstrap if (place := self._place(node_id)) is not None],
            "hubs": list(swarms.realm.hubs),
            "authors": None if swarm.authors is None else list(swarm.authors),
            "max": swarms.message_bytes,
        }

    def _place(self, node_id: str) -> dict[str, Any] | None:
        if node_id != self._swarms.node_id:
            return self.peers.place(node_id)
        place = self._swarms.place()
        return None if place is None else {"id": node_id, "addrs": list(place.addrs), "relays": list(place.relays)}

    # -- sessions

    def registered(self, session: Session) -> None:
        """A spoke has said what it can do."""
        others = [one for one in self._router.sessions.values() if one.registered and not one.hub]
        if not any(one is not session for one in others):
            self._began = time.monotonic()  # the hub was cut off: all that were here are on their way back
        place, limit = session.registration.gossip, self._swarms.message_bytes
        if not self._swarms.enabled or not session.registration.gossips or place is None:
            return
        if place.max != limit:
            why = f"its gossip messages have at most {place.max} bytes, this realm's {limit} (gossip.message_bytes)"
            self._router.complain(session.peer, "NO_SWARM", f"{why}; it gets every topic by stream", None)
            return
        now = time.monotonic()
        try:
            self.peers.registered(session, place, now)
        except ValueError as error:
            self._router.complain(session.peer, "VALIDATION_ERROR", f"hub.register: gossip: {error}", None)
            return
        self._swarms.due(self.peers.next_due())
        self.subscribed(session, self._swarms.topics.subscriptions.patterns(session.peer))

    def gone(self, session: Session, code: int | None) -> None:
        """Its connection ended."""
        now = time.monotonic()
        for swarm in list(self._swarms.by_topic.values()):
            swarm.gone(session.peer, now)
        self.peers.gone(session, code, now)
        self._swarms.due(self.peers.next_due())

    def access_changed(self) -> None:
        """The lists of who may do what are others now: who must not hear a topic any more leaves it, and what it knew
        of is worth nothing."""
        now, policy = time.monotonic(), self._router.admission.policy
        out = {one for one in self.peers.node_ids() if not policy.admitted(one)}
        # Nothing but a ban takes admission away, so these are all that were told of a swarm and must not hear it now.
        out |= policy.deny - self._denied
        self._denied = policy.deny
        self.peers.remove(out)
        affected: list[tuple[TopicSwarm, frozenset[str]]] = []
        for swarm in self._swarms.by_topic.values():
            lost = [peer for peer in swarm.overlay.members() if not self.may_join(peer, swarm.topic)]
            leaving = frozenset(out.union(self.node_ids(lost)))
            if any(map(swarm.overlay.knew, leaving)):
                affected.append((swarm, leaving))
        if self._swarms.realm.adopting:
            self._adopted += affected  # whether the other hub has seen to it shows in its generations
        elif affected or out:
            self._rekey(affected, now)
        for swarm in list(self._swarms.by_topic.values()):
            swarm.authors_changed(now)
        self.flush(now)
        self._swarms.due(now)
        if not self._swarms.realm.adopting:
            self._router.links.changed()

    def adopt(self, out: frozenset[str]) -> None:
        """Another hub of the realm has told of hubs and generations: swarms move to theirs, ``out`` stay behind."""
        now, realm = time.monotonic(), self._swarms.realm
        self.peers.hubs_changed(realm.hubs, now)
        for swarm in list(self._swarms.by_topic.values()):
            if (generation := realm.generation(swarm.topic)) > swarm.overlay.generation:
                swarm.step(overlay.Banned(out, generation, settled=True), now)
            swarm.lists_changed(now)
        adopted, self._adopted = self._adopted, []
        # The hub that banned them did not know that they had been told here.
        if unmoved := [(swarm, out) for swarm, out in adopted if any(map(swarm.overlay.knew, out))]:
            self._rekey(unmoved, now)
        self.flush(now)
        self._swarms.due(now)

    def _rekey(self, affected: list[tuple[TopicSwarm, frozenset[str]]], now: float) -> None:
        named = {swarm.topic for swarm, _ in affected}
        live = self._swarms.by_topic.items()
        generation = self._swarms.realm.rekey(
            {topic: swarm.overlay.generation for topic, swarm in live if topic not in named}
        )
        for swarm, leaving in affected:
            log.info("%s gets a new swarm: %d NodeIds that knew the old one are out", swarm.topic, len(leaving))
            swarm.step(overlay.Banned(leaving, generation), now)
            self._swarms.touched(swarm)
