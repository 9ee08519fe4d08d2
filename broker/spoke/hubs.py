"""The hubs that a spoke knows: its ticket's, the realm's others as they are told, and where each was last.

Not here: which of them is dialled, and when (link.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

from broker.address_book import AddressBook
from broker.errors import TicketError
from broker.protocol.registration import Registration
from broker.protocol.ticket import Ticket

__all__ = ["KnownHubs"]

MAX_HUBS: Final = 16
"""Of a realm, as a spoke remembers them."""


class KnownHubs:
    """``book``: the file of the addresses (None: they are remembered while the process runs)."""

    def __init__(self, book: Path | None) -> None:
        self._book = AddressBook(book)
        self._hubs: dict[str, Ticket] = {}
        """The ticket's own first."""

    def __len__(self) -> int:
        return len(self._hubs)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._hubs

    def given(self, ticket: Ticket) -> None:
        """The spoke's own ticket."""
        self._hubs = {one.node_id: one for one in (ticket, *ticket.others)}

    def invite_for(self, node_id: str) -> str | None:
        """The secret of the ticket, for the hub that it names."""
        return self._hubs[node_id].secret if node_id == next(iter(self._hubs), None) else None

    def nth(self, turn: int) -> Ticket:
        """One after the other, each with all addresses that it may have."""
        given = list(self._hubs.values())[turn % len(self._hubs)]
        known = self._book.find(given.node_id) or given
        addrs = tuple(dict.fromkeys((*known.addrs, *given.addrs)))
        # A hub tells of one relay, its home. When that one fails it is at another of its ticket's.
        relays = tuple(dict.fromkeys((*known.relays, *given.relays)))
        return Ticket(given.node_id, addrs, relays)

    def realm(self, detail: Any) -> None:
        """The hub tells where the realm's other hubs are."""
        places = detail.get("hubs") if isinstance(detail, dict) else None
        for place in (places if isinstance(places, list) else [])[:MAX_HUBS]:
            with contextlib.suppress(TicketError):  # another version's idea of a place
                one = Ticket.at(place)
                first = next(iter(self._hubs), None)
                if one.node_id != first and (one.node_id in self._hubs or len(self._hubs) < MAX_HUBS):
                    self._hubs[one.node_id] = one

    def registered(self, node_id: str, said: Registration, seen: str | None) -> None:
        """A hub tells where it is; ``seen`` is the address at which it has answered."""
        addrs = tuple(dict.fromkeys((*([seen] if seen else ()), *said.addrs)))
        if node_id in self._hubs and (addrs or said.relays):
            with contextlib.suppress(TicketError):
                self._book.learn(Ticket(node_id, addrs, said.relays))

    def save(self) -> None:
        self._book.save()
