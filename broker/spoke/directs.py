"""Direct connections with other spokes: how they come about and end, and which calls go there.

The side that asks the hub dials at once and the other one a moment later, so that each opens its NAT for the other; one
connection stays (introductions.py). When it ends, its calls go on by way of the hub.

Not here: what is said on a connection (direct.py), and with whom there may be one (peers.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from broker.errors import Closed, Refused, Unreachable
from broker.protocol.grants import BadGrant
from broker.protocol.registration import Registration
from broker.protocol.wire import CloseCode
from broker.spoke.calls import Calls
from broker.spoke.direct import DirectLink
from broker.spoke.door import Take
from broker.spoke.introductions import newer_stays
from broker.spoke.link import Link
from broker.spoke.operations import Offer
from broker.spoke.options import SpokeOptions
from broker.spoke.peers import DIAL_TIMEOUT, FIRST_AGAIN, Peer, Peers
from broker.spoke.resuming import Resuming

__all__ = ["Directs", "Neighbour"]

log = logging.getLogger("broker.spoke")

SAYS_HELLO: Final = 10.0
"""Seconds for a connection to bring its ``hub.register``."""
ANOTHER: Final = "another connection between these spokes stays"


class Neighbour(NamedTuple):
    """Another spoke to which there is a direct connection, and what can be called there."""

    node_id: str
    name: str | None
    operations: tuple[str, ...]


class Directs:
    """All of a spoke's. It is the host of their connections (broker.spoke.connections.Host)."""

    def __init__(
        self, link: Link, calls: Calls, offers: Mapping[str, Offer], options: Callable[[], SpokeOptions]
    ) -> None:
        self._link, self.calls, self.offers, self._options = link, calls, offers, options
        self.connections = link.others
        self.resuming = Resuming(offers)
        self.peers = Peers(link, calls, options, dial=self._dial, changed=self._note_ways)
        self.counts = self.peers.counts
        """Beside what peers count: calls ``answered`` and ``denied`` here."""
        self.name: Callable[[], str | None] = lambda: None
        self.on_ended: Callable[[str, str, float], None] = lambda _operation, _code, _seconds: None
        self._take: Take = link.others.taker(self)
        self._links: dict[int, DirectLink] = {}
        self._ways: dict[str, list[DirectLink]] = {}
        """By operation."""
        link.others.door.reasons.append(self._reason)

    # What the program wants.

    async def direct(self, spoke: str, timeout: float) -> Neighbour:
        """A connection with a spoke (its name or NodeId) from now on."""
        try:
            async with asyncio.timeout(timeout):
                peer = await self.peers.introduce(spoke, timeout)
                await self.peers.connected(peer)
        except TimeoutError:
            why = f"no direct connection with {spoke} within {timeout:g} s; calls go by way of the hub"
            raise Unreachable(why) from None
        self.peers.wants(peer)
        return _neighbour(peer)

    def part(self, spoke: str) -> None:
        """Ends the direct connection with a spoke (its name or NodeId), if there is one."""
        for peer in self.peers.find(spoke):
            self.peers.drop(peer, CloseCode.NORMAL, "not wanted any more")

    def neighbours(self) -> list[Neighbour]:
        return [_neighbour(peer) for peer in self.peers.by_id.values() if peer.usable]

    def way(self, operation: str, *, stream: bool = False) -> DirectLink | None:
        """The least busy connection with a spoke that offers it. Items come from a subscription, one answer from
        anything else; whoever wants it otherwise asks the hub."""
        links = self._ways.get(operation)
        if links is None:
            return None
        fit = [one for one in links if (one.operations[operation] == "subscription") is stream]
        return min(fit, key=lambda one: len(one.asked), default=None)

    def _note_ways(self) -> None:
        self._ways.clear()
        for peer in self.peers.by_id.values():
            if peer.usable and peer.link is not None:
                for operation in peer.link.operations:
                    self._ways.setdefault(operation, []).append(peer.link)

    # What connections ask, and tell.

    @property
    def draining(self) -> bool:
        return self.peers.stopping

    @property
    def max_frame_bytes(self) -> int:
        return self._options().max_frame_bytes

    def grant_for(self, node_id: str) -> dict[str, Any] | None:
        """Our own, for calls there."""
        peer = self.peers.by_id.get(node_id)
        return None if peer is None else peer.grant

    def changed(self, node_id: str) -> None:
        """Something else can be called there than before."""
        self._note_ways()
        if (peer := self.peers.by_id.get(node_id)) is not None:
            if peer.link is not None:
                peer.name = peer.link.name or peer.name
            self.peers.look(peer)
            peer.signal()

    def failed(self, node_id: str, message: str) -> None:
        """The other side complains, about our grant as a rule."""
        if (peer := self.peers.by_id.get(node_id)) is not None and not peer.usable:
            peer.failure = Refused(f"{peer} refuses: {message}", reason=message)
            peer.signal()

    # Connections.

    def _reason(self, node_id: str, said: Mapping[str, Any] | None) -> Take | None:
        """Of the door: it was introduced, or brings a grant: this spoke may have forgotten, and the hub be gone."""
        if node_id in self.peers.by_id:
            return self._take
        if said is None or said.get("grant") is None or not self._options().introduced or self.draining:
            return None
        try:
            claims = self.peers.read(said["grant"], caller=node_id)
        except BadGrant as error:
            self.counts[f"refused_{error.reason}"] += 1
            log.warning("%s shows a grant that does not count: %s", node_id[:10], error)
            return None
        return self._take if self.peers.came(node_id, claims) else None

    def _dial(self, peer: Peer) -> None:
        """Unless there is a connection, or will be."""
        if not self.peers.holds(peer) or peer.link is not None or peer.token or self._link.endpoint is None:
            return
        try:
            where = (peer.node_id, peer.addrs, peer.relays)
            peer.token = self.connections.dial(self, *where, timeout=DIAL_TIMEOUT)
        except (ValueError, Closed) as error:
            peer.failure = Unreachable(f"{peer} cannot be dialled: {error}")
            peer.signal()

    def opened(self, conn: int, node_id: str, token: int) -> None:
        peer, now, dialled = self.peers.by_id.get(node_id), asyncio.get_running_loop().time(), token != 0
        if peer is not None and token == peer.token:
            peer.token = 0
        older = None if peer is None else peer.link
        # Of a connection that is dialled the other side knows nothing as long as nothing is said on it.
        if peer is None or (dialled and older is not None and older.registered):
            self.connections.close(conn, CloseCode.NORMAL, ANOTHER)
            return
        if older is not None:
            ages = {"older": (older.dialled, older.since), "newer": (dialled, now)}
            if not newer_stays(self.peers.me, node_id, **ages):
                self.connections.close(conn, CloseCode.NORMAL, ANOTHER)
                return
        link = peer.link = self._links[conn] = DirectLink(self, conn, node_id, dialled=dialled, since=now)
        if older is not None:
            older.close(CloseCode.NORMAL, ANOTHER)
        link.tell()
        asyncio.get_running_loop().call_later(SAYS_HELLO, self._still_silent, link)

    def _still_silent(self, link: DirectLink) -> None:
        if not link.registered and not link.ended:
            link.close(CloseCode.NO_STREAM, "no hub.register in time")

    def frames(self, conn: int, frames: list[bytes]) -> None:
        if (link := self._links.get(conn)) is not None:
            link.frames(frames)

    def drained(self, conn: int) -> None:
        if (link := self._links.get(conn)) is not None:
            link.drained()

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        if (link := self._links.pop(conn, None)) is not None:
            live = not link.ended  # else this side ended it, and may have been introduced anew since
            self.link_ended(link, code, reason, gone=remote and code == CloseCode.GOING_AWAY)
            banned = live and remote and code == CloseCode.BANNED
            if banned and (peer := self.peers.by_id.get(link.node_id)) is not None:
                self.peers.drop(peer, CloseCode.BANNED, reason)  # it was told so by the hub

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        for peer in self.peers.by_id.values():
            if peer.token == token:
                peer.token = 0
                if kind == "refused":
                    peer.failure = Refused(f"{peer} refused: {message}", close_code=code or 0, reason=message)
                else:
                    peer.failure = Unreachable(f"{peer} did not answer: {message}; calls go by way of the hub")
                peer.signal()

    def link_ended(self, link: DirectLink, code: int | None, reason: str, *, gone: bool = False) -> None:
        """Its calls go by way of the hub. ``gone``: the other side has stopped, and will not ask for what it asked."""
        if link.ended:
            return
        link.end()
        if link.life is not None:
            self.resuming.over(link.life, link, for_good=gone)
        peer = self.peers.by_id.get(link.node_id)
        if peer is not None and peer.link is link:
            peer.link = None
            if not link.accepted:
                peer.failure = Refused(f"{peer} ended the connection: {reason}", close_code=code or 0, reason=reason)
            if peer.wanted and peer.asking is None:
                self.peers.ask_soon(peer, FIRST_AGAIN)
            peer.signal()
        self._note_ways()
        self.calls.way_lost(link, link.again if self.peers.introduces else None)

    # Life.

    def hub_up(self, hub: Registration, node_id: str) -> None:
        self.peers.hub_up(hub, node_id)

    def offers_changed(self) -> None:
        """This spoke offers something else than before, or nothing any more."""
        for link in list(self._links.values()):
            if link.registered and not link.ended:
                link.tell_changes()

    async def finish(self, timeout: float) -> int:
        """As `Answers.finish`, of all connections. Nobody is let in from now on."""
        self.peers.stopping = True
        self.offers_changed()
        return sum(await asyncio.gather(*(link.answers.finish(timeout) for link in self._links.values())))

    @property
    def running(self) -> int:
        return sum(link.answers.running for link in self._links.values())

    def close(self) -> None:
        self.peers.stopping = True
        for peer in list(self.peers.by_id.values()):
            self.peers.drop(peer, CloseCode.GOING_AWAY, "the spoke stops")
        self.resuming.close()


def _neighbour(peer: Peer) -> Neighbour:
    return Neighbour(peer.node_id, peer.name, tuple(peer.link.operations if peer.link is not None else ()))
