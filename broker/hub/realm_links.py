"""What hubs of one realm tell each other: generations, who is admitted and banned, who gossips, and which topics there
are. Events themselves travel by gossip; a hub is a member of every swarm of every other.

Each hub holds a connection to every other one. Of two between the same hubs the one that the smaller NodeId dialled
stays. ``hub.realm`` is told when a hub comes and whenever something has changed, and whoever learns something new from
it tells the others: so it ends. Not here: how a hub gets the realm's secret (joining.py), and calls, which stay with
the hub that they were made at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker.errors import FrameError, TicketError, TopicError
from broker.hub.realm import MAX_KEPT
from broker.hub.session import Session
from broker.protocol.access import MAX_ENTRIES
from broker.protocol.codec import Message
from broker.protocol.parts import MORE, Gathered, parts
from broker.protocol.place import origin
from broker.protocol.registration import parse
from broker.protocol.ticket import Ticket
from broker.protocol.wire import REALM, REALM_SCOPE, CloseCode

if TYPE_CHECKING:
    from broker.hub.router import Router
    from broker.hub.swarm import TopicSwarm

__all__ = ["MAX_TOLD", "RealmLinks"]

log = logging.getLogger("broker.hub")

MAX_BOOTSTRAP: Final = 16
MAX_TOLD: Final = MAX_KEPT + 5 * MAX_ENTRIES
"""Entries of another hub's ``hub.realm`` that are held until its last part is there."""


class RealmLinks:
    """The part of a router that is about the realm's other hubs. ``own`` says where this hub is, ``dial`` keeps a
    connection to another."""

    def __init__(self, router: Router) -> None:
        self._router, self._realm = router, router.swarms.realm
        self.own: Callable[[], Ticket] = lambda: Ticket(self._realm.hub)
        self.dial: Callable[[Ticket], None] = lambda _ticket: None
        self.on_change: Callable[[], None] = lambda: None
        """Told when there are other hubs than before."""
        self._dialling: set[str] = set()
        self.controls: dict[str, Callable[[Session, Any], None]] = {"hub.realm": self._told, "hub.peers": self._peers}

    def start(self) -> None:
        """The hubs that were there when this one last ran."""
        self._router.admission.trust(self._realm.others)
        self._mind()

    # -- who is a hub

    def is_hub(self, node_id: str) -> bool:
        return node_id in self._realm.others or REALM_SCOPE in self._router.admission.grant(node_id).scopes

    def sessions(self) -> list[Session]:
        """The other hubs that are here now."""
        return [session for session in self._router.sessions.values() if session.hub and session.registered]

    def connected(self, node_id: str) -> bool:
        return node_id in self._router.by_node

    def registered(self, session: Session, detail: Any) -> bool:
        """A peer has said ``hub.register``. Whether it is another hub: its NodeId is a hub's, and it says so itself."""
        if not self.is_hub(session.node_id) or not isinstance(detail, dict):
            return False
        registration = parse(detail, from_hub=True)
        if REALM not in registration.capabilities:
            return False  # a program that has the hub's key
        session.registration, session.registered, session.hub = registration, True, True
        self._router.registered(session)
        if (place := _place(detail.get("join"))) is not None:
            self._learn(place)
            self._tell(session, secret=True)
        elif not self._doubled(session):
            self._welcome(session)
        return True

    def _welcome(self, session: Session) -> None:
        self._router.registrations.hello(session)
        gossip = session.registration.gossip
        if gossip is not None:
            self._learn(Ticket(session.node_id, gossip.addrs, gossip.relays))
        self._router.swarms.members.registered(session)
        self._tell(session)
        self._share(session)
        log.info("hub %s of this realm is here", session.node_id[:10])

    def _doubled(self, session: Session) -> bool:
        """Two hubs may have dialled each other at once: the one with the smaller NodeId ends the connection that the
        other one made."""
        mine = self._realm.hub < session.node_id
        others = [one for one in self._router.by_node[session.node_id].values() if one is not session and one.hub]
        if not mine or not others:
            return False
        theirs = next((one for one in (session, *others) if one.incoming), None)
        if theirs is not None:
            self._router.close(theirs.peer, CloseCode.NORMAL, "there is another connection between these hubs")
        return theirs is session

    def _learn(self, place: Ticket) -> None:
        if (place.addrs or place.relays) and self._realm.add(place):
            self._changed()

    def _mind(self) -> None:
        """There is a connection to every other hub, or one is on its way."""
        for node_id, place in self._realm.others.items():
            if node_id not in self._dialling and not self.connected(node_id):
                self._dialling.add(node_id)
                self.dial(place)

    # -- what is told

    def _tell(self, session: Session, *, secret: bool = False) -> None:
        detail = {**self._realm.told(self.own(), secret=secret), **self._router.admission.told()}
        most = self._router.limits.max_frame_bytes
        for frame in parts("hub.realm", detail, most, cut=("kept", "hubs", "admitted", "banned", "bans"), first=MORE):
            self._router.queue(session.peer, frame)

    def tell_spoke(self, session: Session) -> None:
        """Where the other hubs are, for when this one is away."""
        if self._realm.others:
            hubs = [one.place() for one in self._realm.others.values()]
            self._router.send(session.peer, "hub.realm", {"hubs": hubs})

    def changed(self) -> None:
        """Something was decided here: the others are told."""
        for session in self.sessions():
            self._tell(session)

    def _told(self, session: Session, detail: Any) -> None:
        if not session.hub or not isinstance(detail, dict):
            self._router.complain(session.peer, "ACCESS_DENIED", "hub.realm is for hubs of this realm", None)
            return
        realm, admission = self._realm, self._router.admission
        realm.adopting = True
        session.told = session.told or Gathered(MAX_TOLD)
        try:
            if (detail := session.told.add(detail)) is None:
                return
            news = realm.merge(detail)
            news = admission.merge(detail) or news
        except (ValueError, LookupError, TypeError, AttributeError, TicketError) as error:
            raise FrameError(f"hub.realm: {error}", close_code=CloseCode.BAD_MESSAGE) from None
        finally:
            realm.adopting = False
        if news:
            self._changed()

    def _changed(self) -> None:
        """What follows from something new, wherever it came from."""
        self._router.admission.trust(self._realm.others)
        self._router.swarms.members.adopt(frozenset(self._router.admission.policy.deny))
        self._mind()
        self.changed()
        try:
            self.on_change()
        except OSError as error:
            log.error("the ticket file does not name the realm's hubs: %s", error.strerror)
        for session in self._router.sessions.values():
            if session.registered and not session.hub:
                self.tell_spoke(session)

    # -- who gossips

    def _peers(self, session: Session, detail: Any) -> None:
        match detail:
            case {"add": list(add), "remove": list(remove), "full": bool(full)} if session.hub and all(
                type(one) is str and len(one) == 64 for one in (*add, *remove)
            ):
                peers = self._router.swarms.members.peers
                if left_out := peers.heard(session.node_id, add, remove, full, time.monotonic()):
                    self._router.metrics.limited("remote_peers")
                    log.warning("%d peers of %s are left out: too many", left_out, session.name)
                self._router.swarms.due(peers.next_due())
            case _:
                raise FrameError("hub.peers needs add, remove and full, from a hub", close_code=CloseCode.BAD_MESSAGE)

    # -- topics

    def _share(self, session: Session) -> None:
        """Every topic here becomes one of the realm's, and the other hub a member of its swarm."""
        swarms, now = self._router.swarms, time.monotonic()
        for swarm in swarms.by_topic.values():
            swarm.hub_came(now)
        for channel in list(self._router.topics.channels.values()):
            if swarms.open(channel, shared=True) is not None:
                self.invite(session, channel.topic)

    def invite(self, session: Session, topic: str) -> None:
        if (swarm := self._router.swarms.by_topic.get(topic)) is not None:
            swarm.carrier.share(session.peer)
            self._router.swarms.members.admit(swarm, session.peer, reads=True, now=time.monotonic())

    def head(self, topic: str, author: str, epoch: str, seq: int) -> None:
        """How far a sequence is: other hubs need not have heard it in the swarm."""
        for session in self.sessions():
            detail = {"topic": topic, "author": author, "epoch": epoch, "seq": seq}
            self._router.send(session.peer, "topic.head", detail)

    def opened(self, topic: str) -> None:
        """A topic has a swarm now."""
        for session in self.sessions():
            self.invite(session, topic)

    def neighbour(self, node_id: str, swarm: TopicSwarm) -> None:
        """It hears the swarm from now on. If it is another hub, it is told how far everybody is: what it does not have
        by now it will not hear."""
        for session in self.sessions():
            if session.node_id == node_id:
                self._router.topics.readers.tell_heads(swarm.channel, session.peer)

    def invited(self, session: Session, detail: Any) -> None:
        """Another hub has a topic and invites this one into its swarm."""
        match detail:
            case {"topic": str(topic), "id": str(), "generation": int(generation), "bootstrap": list(bootstrap)}:
                pass
            case {"topic": str(), "id": None}:
                return  # it ends there; here it ends when nobody wants it
            case _:
                raise FrameError("topic.swarm needs topic, id and bootstrap", close_code=CloseCode.BAD_MESSAGE)
        swarms, router = self._router.swarms, self._router
        known: list[str] = []
        for place in bootstrap[:MAX_BOOTSTRAP]:
            one = _place(place)
            if one is not None and one.node_id != self._realm.hub:
                router.endpoint.learn(one.node_id, list(one.addrs), list(one.relays))
                known.append(one.node_id)
        try:
            swarm = swarms.open(router.topics.channel(topic), shared=True)
        except TopicError as error:
            router.complain(session.peer, error.code, str(error), topic)
            return
        if swarm is None or swarm.handle is None:
            router.complain(session.peer, "NO_SWARM", "this hub has too many swarms, or does not gossip", topic)
            return
        swarm.handle.join_peers(known)
        swarms.members.authors_elsewhere(swarm, detail.get("authors"), time.monotonic())
        self.invite(session, topic)
        answer = {"topic": topic, "generation": generation, "joined": True, "neighbours": 1}
        router.send(session.peer, "topic.swarm", answer)

    def event(self, session: Session, message: Message, frame: bytes) -> None:
        """An event that was asked of another hub: what it had in its ring."""
        place = origin(message.meta)
        swarm = self._router.swarms.by_topic.get(message.type)
        if swarm is None or place is None or not self._router.swarms.members.may_publish(place.author, message.type):
            return
        swarm.from_gossip(place.author, place.epoch, place.seq, [frame])


def _place(value: Any) -> Ticket | None:
    try:
        return Ticket.at(value)
    except TicketError:
        return None
