"""Repair between members of a swarm, for a spoke that can reach no hub: it asks the author of a hole, or a neighbour,
over a connection of its own, and answers when it is asked.

Who asks proves that it knows the swarm's id, without saying it: a proof is worth something between these two alone, and
nothing any more when a ban has changed the id. What comes is believed for its signature. That a member has not got a
thing says nothing about others: only a hub names what is lost.

Not here: when a hole is asked for (subscriptions.py), and what an answer holds (repairs.py).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from broker import _gossip_ext as ext
from broker.errors import Closed, FrameError
from broker.protocol.codec import decode, encode
from broker.protocol.sequence import Repair
from broker.protocol.wire import CloseCode
from broker.spoke.door import Take
from broker.spoke.link import Link
from broker.spoke.repairs import Asker, Repairs
from broker.spoke.subscriptions import Subscriptions
from broker.spoke.swarm_messages import PeerList, Range, range_of
from broker.spoke.swarms import Swarms

__all__ = ["Members", "proof_of"]

log = logging.getLogger("broker.spoke")

MAX_ASKED: Final = 4
"""Members with whom there is a connection to ask. Holes that find no room here are due again."""
MAX_ASKING: Final = 16
"""Members that ask here at a time: of a thousand with one hole, those that find no room ask their neighbours."""
MAX_QUESTIONS: Final = 256
"""Of one member while its connection is under way; the oldest goes, and is due again."""
DIAL_TIMEOUT: Final = 3.0
QUIET: Final = 5.0
"""Seconds without a question or an answer, after which a connection is closed."""
JITTER: Final = 0.25
"""Seconds, at most, before a member is dialled. What is asked meanwhile goes with it."""
REMEMBERED: Final = 1_024
"""Sequences of which it is known who was asked."""
PROOF_BYTES: Final = 20

Sequence = tuple[str, str, str]


def proof_of(id: str, asker: str, asked: str) -> str:
    """That ``asker`` (a NodeId) knows the swarm's id (64 hex digits), for the eyes of ``asked``."""
    nodes = bytes.fromhex(asker) + bytes.fromhex(asked)
    return blake2b(nodes, key=bytes.fromhex(id), digest_size=PROOF_BYTES, person=b"swarm-member").hexdigest()


class _Member:
    """One that is asked. ``conn`` is None until it is there."""

    __slots__ = ("conn", "node_id", "questions", "quiet")

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.conn: int | None = None
        self.questions: deque[Range] = deque(maxlen=MAX_QUESTIONS)
        self.quiet: asyncio.TimerHandle | None = None


class _Tried:
    """Who was asked for a sequence. ``good``: whoever answered last."""

    __slots__ = ("good", "members")

    def __init__(self) -> None:
        self.members: set[str] = set()
        self.good: str | None = None


class Members:
    """Host of the connections (connections.py) in both directions. Its counters are those of ``repairs``:
    ``members_asked`` questions to members, ``members_full`` and ``members_failed`` ones that found no room or no
    connection, ``members_lacked`` answers that it is not there, and of those who ask here ``members_let_in``,
    ``members_refused`` and ``members_unproved``."""

    def __init__(self, link: Link, subscriptions: Subscriptions, swarms: Swarms, repairs: Repairs) -> None:
        self._link, self._connections, self._swarms, self._repairs = link, link.others, swarms, repairs
        self._counts = repairs.counts
        self._members: dict[str, _Member] = {}
        self._dials: dict[int, _Member] = {}
        self._asked: dict[int, _Member] = {}
        self._asking: dict[int, tuple[str, asyncio.TimerHandle]] = {}
        """Connections of those who ask here, each with its end unless it goes on."""
        self._tried: dict[Sequence, _Tried] = {}
        self._take = self._connections.taker(self)
        self._connections.door.reasons.append(self.reason)
        subscriptions.ask_members = self.ask
        swarms.on_peers = self.peers

    # Asking.

    def ask(self, hole: Repair) -> bool:
        """False: nobody can be asked for this now."""
        wanted = Range(hole.topic, hole.author, hole.epoch, hole.a, hole.b)
        whom = self._whom(wanted)
        if whom is None:
            return False
        member = self._members.get(whom)
        if member is None:
            if len(self._members) >= MAX_ASKED:
                self._counts["members_full"] += 1
                return False
            member = self._members[whom] = _Member(whom)
            asyncio.get_running_loop().call_later(random.uniform(0, JITTER), self._dial, member)
        self._counts["members_asked"] += 1
        if member.conn is None:
            member.questions.append(wanted)
        else:
            self._question(member, wanted)
        return True

    def _whom(self, wanted: Range) -> str | None:
        """Whoever answered last; else the author first, then neighbours that were not asked yet. When all were asked it
        begins anew."""
        key = wanted[:3]
        tried = self._tried.get(key)
        if tried is None:
            if len(self._tried) >= REMEMBERED:
                self._tried.clear()
            tried = self._tried[key] = _Tried()
        good, tried.good = tried.good, None
        if not self._swarms.ids(wanted.topic):
            return None
        candidates = {wanted.author, *self._swarms.members(wanted.topic)}
        candidates -= {self._me(), *self._swarms.hubs(wanted.topic)}
        if good in candidates:
            return good
        if not (fresh := candidates - tried.members):
            tried.members.clear()
            fresh = candidates
        if not fresh:
            return None
        whom = wanted.author if wanted.author in fresh else random.choice(sorted(fresh))
        tried.members.add(whom)
        return whom

    def _dial(self, member: _Member) -> None:
        if self._members.get(member.node_id) is not member or self._link.endpoint is None:
            return
        try:
            token = self._connections.dial(self, member.node_id, (), timeout=DIAL_TIMEOUT)
        except (ValueError, Closed):  # an author may call itself anything
            self._failed(member)
        else:
            self._dials[token] = member

    def _failed(self, member: _Member) -> None:
        """What it was to be asked goes to others at once."""
        self._counts["members_failed"] += 1
        questions = list(member.questions)
        self._drop(member)
        for wanted in questions:
            self._elsewhere(wanted, member.node_id)

    def _elsewhere(self, wanted: Range, node_id: str) -> None:
        """``node_id`` has not got it. When everybody has been asked it waits until it is due again."""
        tried = self._tried.get(wanted[:3])
        if tried is not None and not self._link.up:
            tried.members.add(node_id)
            if self._swarms.members(wanted.topic) - tried.members:
                self.ask(Repair(*wanted))

    def _question(self, member: _Member, wanted: Range) -> None:
        assert member.conn is not None
        detail = wanted.to_json() | self._claim(wanted.topic, member)
        if not self._connections.send(member.conn, [encode("topic.repair", detail)]):
            self._counts["members_full"] += 1
        self._mind(member)

    def _claim(self, topic: str, member: _Member) -> dict[str, str]:
        """By the swarm's id of the newest generation that is heard. Without a swarm it proves nothing."""
        ids = self._swarms.ids(topic)
        return {"topic": topic, "proof": proof_of(ids[0], self._me(), member.node_id) if ids else ""}

    def _mind(self, member: _Member) -> None:
        if member.quiet is not None:
            member.quiet.cancel()
        member.quiet = asyncio.get_running_loop().call_later(QUIET, self._end, member)

    def _end(self, member: _Member) -> None:
        self._drop(member)
        if member.conn is not None:
            self._connections.close(member.conn, CloseCode.NORMAL, "nothing more to ask")

    def _drop(self, member: _Member) -> None:
        if self._members.get(member.node_id) is member:
            del self._members[member.node_id]
        if member.quiet is not None:
            member.quiet.cancel()

    # Being asked.

    def reason(self, node_id: str, said: Mapping[str, Any] | None) -> Take | None:
        """Of the door: a member of one of the swarms here."""
        claim = said.get("member") if said is not None else None
        if not isinstance(claim, dict) or not self._proved(node_id, claim):
            return None
        if len(self._asking) >= MAX_ASKING:
            self._counts["members_refused"] += 1
            return self._refuse
        return self._take

    def _refuse(self, conn: int, node_id: str) -> None:
        self._connections.close(conn, CloseCode.LIMIT, f"{MAX_ASKING} members ask here already; ask another")

    def _proved(self, node_id: str, claim: Mapping[str, Any]) -> bool:
        topic, proof = claim.get("topic"), claim.get("proof")
        if not isinstance(topic, str) or not isinstance(proof, str):
            return False
        brought = proof.encode("utf-8", "replace")
        rights = (proof_of(id, node_id, self._me()).encode() for id in self._swarms.ids(topic))
        return any(hmac.compare_digest(brought, right) for right in rights)

    def _answer(self, conn: int, node_id: str, detail: Any) -> None:
        """A question of one that was let in, perhaps for another topic: proved each time, since members change."""
        wanted = range_of(detail)
        if not self._proved(node_id, detail):
            self._counts["members_unproved"] += 1
            self._connections.close(conn, CloseCode.NOT_ADMITTED, f"no member of the swarm of {wanted.topic}")
            return
        self._repairs.asked_by(Asker(lambda frames: self._connections.send(conn, frames, ext.TOPICS)), wanted)
        self._stay(conn, node_id)

    def _stay(self, conn: int, node_id: str) -> None:
        if (before := self._asking.get(conn)) is not None:
            before[1].cancel()
        end = asyncio.get_running_loop().call_later(
            2 * QUIET, self._connections.close, conn, CloseCode.NORMAL, "nothing was asked"
        )
        self._asking[conn] = node_id, end

    def peers(self, said: PeerList) -> None:
        """Who must not gossip with us any more must not ask either."""
        add, remove = set(said.add), set(said.remove)
        live = [(conn, node_id) for conn, (node_id, _) in self._asking.items()]
        live += [(conn, member.node_id) for conn, member in self._asked.items()]
        for conn, node_id in live:
            if node_id in remove or (said.full and node_id not in add):
                self._connections.close(conn, CloseCode.BANNED, "the hub says that this is no peer any more")

    # What the connections bring (broker.spoke.connections.Host).

    def opened(self, conn: int, node_id: str, token: int) -> None:
        if not token:
            self._counts["members_let_in"] += 1
            self._stay(conn, node_id)
            return
        member = self._dials.pop(token)
        if self._members.get(node_id) is not member:
            self._connections.close(conn, CloseCode.NORMAL, "nothing to ask any more")
            return
        member.conn, self._asked[conn] = conn, member
        questions = list(member.questions)
        member.questions.clear()
        claim = self._claim(questions[0].topic, member)
        self._connections.send(conn, [encode("hub.register", {"operations": [], "member": claim})])
        for wanted in questions:
            self._question(member, wanted)
        self._mind(member)

    def frames(self, conn: int, frames: list[bytes]) -> None:
        member, asking = self._asked.get(conn), self._asking.get(conn)
        try:
            for frame in frames:
                type, detail, _ = decode(frame)
                if type == "topic.repair" and asking is not None:
                    self._answer(conn, asking[0], detail)
                elif type == "topic.batch" and member is not None:
                    self._batch(member, detail)
                elif type == "topic.lost" and member is not None:
                    self._counts["members_lacked"] += 1
                    self._elsewhere(range_of(detail), member.node_id)
        except FrameError as error:
            self._connections.close(conn, error.close_code, str(error))

    def _batch(self, member: _Member, detail: Any) -> None:
        if (sequence := self._repairs.taken(detail)) is not None:
            self._mind(member)
            if (tried := self._tried.get(sequence)) is not None:
                tried.good = member.node_id

    def drained(self, conn: int) -> None:
        """What found no room is asked again."""

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        if (asking := self._asking.pop(conn, None)) is not None:
            asking[1].cancel()
        if (member := self._asked.pop(conn, None)) is not None:
            member.conn = None
            self._drop(member)

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self._failed(self._dials.pop(token))

    def _me(self) -> str:
        return self._link.endpoint.node_id if self._link.endpoint is not None else ""
