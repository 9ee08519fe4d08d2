"""What spokes say about topics over gossip: whether they hear a swarm, what others have published, and their answers to
the hub's questions.

Not here: events and subscriptions (topic_messages.py). What is said of another's events counts only with that author's
signature: a report leads to a question, and a member's word that it has something no more to nothing lost by itself.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from broker import _gossip_ext as ext
from broker.errors import FrameError, TopicError
from broker.hub.holes import DENIALS
from broker.hub.session import Session
from broker.hub.swarm import TopicSwarm
from broker.protocol import overlay
from broker.protocol.pacing import MOST
from broker.protocol.tracker import MAX_SEQ
from broker.protocol.wire import CloseCode

if TYPE_CHECKING:
    from broker.hub.router import Router

__all__ = ["SwarmMessages"]

MAX_GENERATION: Final = 2**53
MAX_BATCH: Final = 90_000
"""Characters of a batch, whose parts are held until the last is there: the largest gossip message is 64 KiB."""


class SwarmMessages:
    """The part of a router that is about swarms."""

    def __init__(self, router: Router) -> None:
        self._router, self._swarms = router, router.swarms
        self.controls: dict[str, Callable[[Session, Any], None]] = {
            "topic.swarm": self.swarm,
            "topic.batch": self.batch,
            "topic.lost": self.lost,
        }

    def swarm(self, session: Session, detail: Any) -> None:
        """A spoke hears a swarm, or does not, or wants one."""
        if session.hub and isinstance(detail, dict) and "id" in detail:
            self._router.links.invited(session, detail)
            return
        match detail:
            case {"topic": str(topic), "generation": int(generation), "joined": bool(joined)} if (
                0 <= generation <= MAX_GENERATION
            ):
                want, lagged = detail.get("want") is True, detail.get("lagged") is True
                # Also one that is refused: what it knows of peers may be from another connection, and out of date.
                self._swarms.members.peers.tell(session.peer)
                self._swarm(session, topic, generation, joined=joined, want=want, lagged=lagged)
            case _:
                raise FrameError("topic.swarm needs topic, generation and joined", close_code=CloseCode.BAD_MESSAGE)

    def _swarm(
        self, session: Session, topic: str, generation: int, *, joined: bool, want: bool, lagged: bool = False
    ) -> None:
        swarms, now = self._swarms, time.monotonic()
        swarm = swarms.by_topic.get(topic)
        if not joined and not want:
            if swarm is not None:
                swarm.carrier.unpin(session.peer)
                swarm.step(overlay.NotJoined(session.peer), now)
                swarms.touched(swarm)
            return
        if swarm is None and (swarm := self._open(session, topic)) is None:
            return
        if not swarms.members.may_join(session.peer, topic):
            self._refuse(session, topic)
            return
        if want and not generation and not swarm.carrier.pin(session.peer):
            self._no_swarm(session, topic)
            return
        reads = session.peer in swarms.topics.subscriptions.match(topic)
        swarms.members.admit(swarm, session.peer, reads=reads, now=now)
        if lagged and session.peer in swarm.overlay:
            swarm.pacing.overrun(now)
        if joined:
            swarm.step(overlay.Joined(session.peer, generation), now)
            if session.hub:
                swarms.topics.readers.tell_heads(swarm.channel, session.peer)
        else:
            swarm.step(overlay.NotJoined(session.peer), now)
            swarm.step(overlay.Wanted(session.peer), now)
        swarms.touched(swarm)

    def _open(self, session: Session, topic: str) -> TopicSwarm | None:
        """A spoke asks for the swarm of a topic, or is in it already: the hub was restarted."""
        swarms = self._swarms
        if not swarms.members.may_join(session.peer, topic):
            self._refuse(session, topic)
            return None
        try:
            swarm = swarms.want(topic)
        except TopicError as error:
            self._router.complain(session.peer, error.code, str(error), topic)
            return None
        if swarm is None:
            self._no_swarm(session, topic)
        return swarm

    def _refuse(self, session: Session, topic: str) -> None:
        if self._swarms.members.gossips(session.peer):
            self._router.deny(session, "subscribe", topic)
        else:
            self._no_swarm(session, topic)

    def _no_swarm(self, session: Session, topic: str) -> None:
        """It leaves, if it is in one, and goes on by stream."""
        why = "this topic goes by stream at this hub (topics.carrier, gossip.enabled), or too many have a swarm"
        self._router.complain(session.peer, "NO_SWARM", why, topic)
        self._router.send(session.peer, "topic.swarm", {"topic": topic, "id": None, "generation": 0})

    def batch(self, session: Session, detail: Any) -> None:
        """Signed events that a member was asked for."""
        match detail:
            case {"topic": str(topic), "data": str(data)}:
                pass
            case _:
                raise FrameError("topic.batch needs topic and data", close_code=CloseCode.BAD_MESSAGE)
        data, session.batch = session.batch + data, ""
        if len(data) > MAX_BATCH:
            raise FrameError(f"topic.batch: more than {MAX_BATCH} characters", close_code=CloseCode.BAD_MESSAGE)
        if detail.get("more") is True:
            session.batch = data
            return
        swarms = self._swarms
        if (swarm := swarms.by_topic.get(topic)) is None or session.peer not in swarm.overlay:
            return
        try:
            author, epoch, first, frames = ext.open_batch(
                topic, base64.b64decode(data, validate=True), swarms.realm.hubs
            )
        except (ValueError, binascii.Error) as error:
            self._router.complain(session.peer, "VALIDATION_ERROR", f"topic.batch: {error}", topic)
            return
        if swarm.holes.was_asked((author, epoch)) and swarms.members.may_publish(author, topic):
            swarms.taken(swarm, author, swarm.batch(author, epoch, first, frames))

    def lost(self, session: Session, detail: Any) -> None:
        """Who was asked does not have a range (any more). Of its own events an author's word is the last."""
        match detail:
            case {
                "topic": str(topic),
                "author": str(author),
                "epoch": str(epoch),
                "from": int(first),
                "to": int(last),
            } if 0 < first <= last <= MAX_SEQ:
                pass
            case _:
                raise FrameError("topic.lost needs topic, author, epoch, from, to", close_code=CloseCode.BAD_MESSAGE)
        swarm, key, now = self._swarms.by_topic.get(topic), (author, epoch), time.monotonic()
        if swarm is None or not swarm.holes.was_asked(key):
            return
        if author == session.node_id and swarm.channel.authors.get(key) == session.peer:
            swarm.lost(key, first, last)
            swarm.excuse(key, session.peer)
            return
        if session.hub:
            # It has passed that hub's ring: what no hub of the realm has any more is lost, as with one hub.
            hubs = {one.peer for one in self._router.links.sessions()}
            gone = swarm.holes.denied(key, session.peer, first, last, hubs.issubset)
        elif session.peer in swarm.overlay and not swarm.shared and self._swarms.members.is_gone(author, now):
            # Where there are other hubs, its author may be at one of them.
            most = min(DENIALS, len(swarm.overlay.joined()))
            gone = swarm.holes.denied(key, session.peer, first, last, lambda peers: len(peers) >= most)
        else:
            return
        if gone is not None:
            swarm.lost(key, *gone)

    def reported(self, session: Session, topic: str, author: str, epoch: str, seq: int) -> None:
        """How far a member has heard another's: every so many events, and after it has come back."""
        swarms = self._swarms
        swarm, key = swarms.by_topic.get(topic), (author, epoch)
        if swarm is None or session.peer not in swarm.overlay or not swarms.members.may_publish(author, topic):
            return
        if session.hub:
            swarm.head(author, epoch, seq)
        elif swarms.members.connection(author) is not None:
            options = swarms.topics.subscriptions.match(topic).get(session.peer)
            if options is None or options.policy != "block":
                return
            # Nobody can have heard what its author may not have sent yet.
            seq = min(seq, swarm.top(key) + MOST)
            if swarm.pacing.heard(key, session.peer, seq, options.patience, time.monotonic()):
                swarms.topics.pace(swarm.channel, author, epoch)
        else:  # its author would send again what the hub does not have
            swarm.holes.reported(key, session.peer, seq, swarm.top(key), time.monotonic())
            swarms.touched(swarm)
