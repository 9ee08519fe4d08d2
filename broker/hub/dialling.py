"""Whom the hub dials: spokes that only listen, and the realm's other hubs. There is a connection to each, or one is on
its way, for as long as the hub runs: who goes away is dialled again, with full jitter.

Of one NodeId there is one connection of ours, however often it is named; what is told of it later counts beside what
the address book knows. Not here: what a connection is for once it is there (router.py, realm_links.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from typing import Any, Final

from broker.address_book import AddressBook
from broker.errors import TicketError, Unreachable
from broker.hub.router import Router
from broker.protocol.ticket import Ticket
from broker.protocol.wire import CloseCode

__all__ = ["Dialling"]

log = logging.getLogger("broker.hub")

BACKOFF_FIRST: Final = 0.2
BACKOFF_MOST: Final = 30.0
HURRIED: Final = 3.0
"""The same for another hub of the realm: overlays that were split with their hubs merge when these meet again."""
MOST_ATTEMPTS: Final = 16
"""2**16 is far over any bound; keeps the number small."""
MOST_DIALLED: Final = 1_000
"""NodeIds that a hub dials: as many as its address book holds."""

_NODE_ID: Final = re.compile(r"[0-9a-fA-F]{64}")


class _Dialled:
    """One NodeId that is to be connected."""

    __slots__ = ("attempts", "conn", "failure", "place", "timer", "token")

    def __init__(self, place: Ticket) -> None:
        self.place = place
        self.token = 0
        """Of the attempt that counts."""
        self.attempts = 0
        self.conn: int | None = None
        """The connection that came of it, once the peer has registered."""
        self.failure: str | None = None
        self.timer: asyncio.TimerHandle | None = None


class Dialling:
    """Of one hub. ``findable``: there is a relay or a lookup service, so a bare NodeId may be found."""

    def __init__(
        self, router: Router, book: AddressBook, *, relays: tuple[str, ...] = (), lookup: bool = False
    ) -> None:
        self._router, self.book = router, book
        self._relays, self._lookup = relays, lookup
        self._dialled: dict[str, _Dialled] = {}
        self._tokens: dict[int, str] = {}
        self._stopped = False
        router.on_dialled = self._came_to
        router.secret_of_dial = self._secret

    # What is decided.

    def place_of(self, whom: str | Ticket) -> Ticket:
        """The ticket that this is, or what is known of this NodeId. TicketError when it is neither; Unreachable when
        nothing is known."""
        if isinstance(whom, Ticket):
            return whom
        if not _NODE_ID.fullmatch(whom.strip()):
            return Ticket.decode(whom)
        node_id = whom.strip().lower()
        if (known := self.book.find(node_id)) is not None:
            return known
        if self._relays or self._lookup:
            return Ticket(node_id)
        raise Unreachable(
            f"nobody here knows where {node_id[:10]}… is: it is not in the address book, and this hub has neither a "
            "relay nor a lookup service\ngive its ticket, which `broker serve --listen` prints"
        )

    def keep(self, place: Ticket) -> None:
        """From now on there is a connection to it. TicketError when that cannot be dialled."""
        if self._stopped:
            return
        if place.node_id == self._router.endpoint.node_id:
            raise TicketError("a hub does not dial itself: this ticket is its own")
        dialled = self._dialled.get(place.node_id)
        if dialled is None:
            if len(self._dialled) >= MOST_DIALLED:
                raise TicketError(f"this hub dials {MOST_DIALLED} NodeIds already; take one off with hub.undial")
            dialled = self._dialled[place.node_id] = _Dialled(place)
        before, dialled.place = self._places(dialled.place), place
        under_way = dialled.timer is None and dialled.token in self._tokens
        if dialled.conn is None and not (under_way and self._places(place) == before):
            self._attempt(dialled)
        self.book.learn(place)

    def end(self, node_id: str) -> bool:
        """It is dialled no more, and the connection that came of it ends. False: it was not dialled."""
        self.book.keep(node_id, False)
        if (dialled := self._dialled.pop(node_id, None)) is None:
            return False
        self._cancel(dialled)
        self._tokens = {token: whose for token, whose in self._tokens.items() if whose != node_id}
        if dialled.conn is not None:
            self._router.close(dialled.conn, CloseCode.NORMAL, "this hub dials it no more")
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Whom it dials, and what has come of it."""
        return [
            {
                "node_id": node_id,
                "connected": one.conn is not None,
                "attempts": one.attempts,
                "failure": None if one.conn is not None else one.failure,
                "addrs": list(self._places(one.place)[0]),
            }
            for node_id, one in self._dialled.items()
        ]

    def stop(self) -> None:
        """Dials nobody any more, and writes down what it knows."""
        self._stopped = True
        for dialled in self._dialled.values():
            self._cancel(dialled)
        self.book.save()

    # What comes of it.

    def _secret(self, token: int) -> str | None:
        """What a spoke that was dialled with this token is told, so that it lets the hub in."""
        node_id = self._tokens.get(token)
        if node_id is None:
            return None
        known = self.book.find(node_id)
        return self._dialled[node_id].place.secret or (None if known is None else known.secret)

    def _came_to(self, token: int, failure: str | None, conn: int | None) -> None:
        """A dialled peer is there (None), or is not (any more)."""
        dialled = self._dialled.get(self._tokens.get(token, ""))
        if dialled is None:
            return
        if failure is None:
            self._cancel(dialled)
            dialled.attempts, dialled.failure, dialled.token, dialled.conn = 0, None, token, conn
            self._seen(dialled)
            return
        del self._tokens[token]
        if token != dialled.token:
            return  # a later attempt counts
        dialled.conn, dialled.failure = None, failure
        attempts = dialled.attempts
        dialled.attempts = min(attempts + 1, MOST_ATTEMPTS)
        delay = random.uniform(0, min(BACKOFF_FIRST * 2**attempts, self._most(dialled)))
        log.info("dialling %s again in %.1f s: %s", dialled.place.node_id[:10], delay, failure)
        self._later(delay, dialled)

    def _seen(self, dialled: _Dialled) -> None:
        """Where it answered is where it will be looked for first."""
        stats = self._router.endpoint.stats(dialled.conn) if dialled.conn is not None else None
        if stats is not None and stats.path == "direct" and stats.remote_addr:
            self.book.learn(Ticket(dialled.place.node_id, (stats.remote_addr,)))

    # Inside.

    def _attempt(self, dialled: _Dialled) -> None:
        self._cancel(dialled)
        addrs, relays = self._places(dialled.place)
        token = random.getrandbits(62)
        try:
            self._router.endpoint.dial(token, dialled.place.node_id, list(addrs), list(relays))
        except ValueError as error:
            self._dialled.pop(dialled.place.node_id, None)
            raise TicketError(f"{dialled.place.node_id[:10]}… cannot be dialled: {error}") from None
        dialled.token = token
        self._tokens[token] = dialled.place.node_id

    def _places(self, place: Ticket) -> tuple[tuple[str, ...], tuple[str, ...]]:
        known = self.book.find(place.node_id) or place
        addrs = tuple(dict.fromkeys((*place.addrs, *known.addrs)))
        return addrs, place.relays or known.relays or self._relays

    def _later(self, delay: float, dialled: _Dialled) -> None:
        self._cancel(dialled)
        if not self._stopped:
            dialled.timer = asyncio.get_running_loop().call_later(delay, self._again, dialled)

    def _again(self, dialled: _Dialled) -> None:
        if self._router.links.connected(dialled.place.node_id):  # it has dialled us meanwhile, as another hub does
            self._later(self._most(dialled), dialled)
        else:
            self._attempt(dialled)

    def _most(self, dialled: _Dialled) -> float:
        """Seconds between two attempts, at most."""
        return HURRIED if self._router.links.is_hub(dialled.place.node_id) else BACKOFF_MOST

    def _cancel(self, dialled: _Dialled) -> None:
        if dialled.timer is not None:
            dialled.timer.cancel()
            dialled.timer = None
