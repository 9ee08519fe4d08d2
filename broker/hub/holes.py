"""What the hub lacks of a topic that travels by gossip, and whom it asks for it.

A hole is asked of its author while that is connected, else of members in turn, who answer with the signed batches they
keep. What as many as `DENIALS` members do not have, and the author will not come back to give, is lost. After a restart
members also report what they have heard; that is not signed, so nothing follows from it but a question to who reported
it. Not here: order and patience (protocol/sequence.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from broker.protocol.ring import MAX_AUTHORS

__all__ = ["Holes"]

DENIALS: Final = 3
"""Members that say they do not have a range, or all there are, before it is lost."""
REFILL_EVENTS: Final = 4_096
"""Asked of a member at a time; a quarter of what can be held back (protocol/tracker.py)."""
REFILL_PAUSE: Final = 0.3
"""Seconds without progress after which the rest is asked for again."""
AUTHOR_PAUSE: Final = 1.0
"""Seconds between looks whether a sequence's author is back."""
REFILL_ASKS: Final = 3
"""Questions in vain after which a member's word is worth nothing."""

T = TypeVar("T")
Key = tuple[str, str]
Ask = Callable[[int, dict[str, Any]], None]


class _Refill:
    __slots__ = ("asks", "at", "peer", "to", "top")

    def __init__(self, peer: int, to: int) -> None:
        self.peer, self.to = peer, to
        self.top = -1
        self.asks = 0
        self.at = 0.0


class Holes:
    """One topic's. ``ask(peer, detail)`` sends ``topic.repair``."""

    def __init__(self, topic: str, ask: Ask) -> None:
        self._topic, self._ask = topic, ask
        self._turns: dict[Key, int] = {}
        self._asked: dict[Key, None] = {}
        """Sequences of which a member was asked: only their batches are taken from members."""
        self._denied: dict[Key, tuple[int, int, set[int]]] = {}
        self._refills: dict[Key, _Refill] = {}

    def ask(
        self,
        key: Key,
        first: int,
        last: int,
        author: int | None,
        members: Sequence[int],
        hubs: Sequence[int] = (),
    ) -> bool:
        """A hole is due. False when nobody is there to be asked."""
        if author is not None:
            self._question(author, key, first, last)
            return True
        if not members and not hubs:
            return False
        turn = self._turns.get(key, 0)
        _bounded(self._turns)[key] = turn + 1
        if hubs:  # most likely it is in their rings
            self._question(hubs[turn % len(hubs)], key, first, last)
        if members and (turn % 2 or not hubs):
            self._question(members[turn % len(members)], key, first, last)
        return True

    def was_asked(self, key: Key) -> bool:
        return key in self._asked

    def denied(
        self, key: Key, peer: int, first: int, last: int, enough: Callable[[set[int]], bool]
    ) -> tuple[int, int] | None:
        """A peer does not have a range. Returns what is lost for that, if those who said so are ``enough``."""
        a, b, peers = self._denied.get(key, (first, last, set()))
        a, b = max(a, first), min(b, last)
        if a > b:
            a, b, peers = first, last, set()
        peers.add(peer)
        if enough(peers):
            self._denied.pop(key, None)
            return a, b
        _bounded(self._denied)[key] = (a, b, peers)
        return None

    # What members report after a restart of the hub.

    def reported(self, key: Key, peer: int, seq: int, top: int, now: float) -> None:
        """A member says that it has heard up to ``seq``; ``top`` is what the hub has."""
        known = self._refills.get(key)
        if seq <= top or (known is not None and known.to >= seq):
            return
        one = _bounded(self._refills)[key] = _Refill(peer, seq)
        one.at = now - REFILL_PAUSE

    def wait(self, key: Key, now: float) -> None:
        """Its author may yet be back, and has all of it."""
        self._refills[key].at = now + AUTHOR_PAUSE - REFILL_PAUSE

    def forget(self, key: Key) -> None:
        """Its author is back."""
        self._refills.pop(key, None)

    def refill(self, key: Key, top: int, now: float) -> None:
        """Asks on, if it is time: ``top`` is what the hub has by now."""
        one = self._refills.get(key)
        if one is None:
            return
        if top >= one.to:
            del self._refills[key]
            return
        if top > one.top:
            progress, one.top, one.asks = one.top >= 0, top, 0
            if progress and now < one.at + REFILL_PAUSE:
                one.at = now  # its answer is still coming
                return
        elif now < one.at + REFILL_PAUSE:
            return
        if one.asks >= REFILL_ASKS:
            del self._refills[key]
            return
        one.asks, one.at = one.asks + 1, now
        self._question(one.peer, key, top + 1, min(one.to, top + REFILL_EVENTS))

    def refilling(self) -> list[Key]:
        return list(self._refills)

    def next_due(self) -> float | None:
        return min((one.at + REFILL_PAUSE for one in self._refills.values()), default=None)

    def gone(self, peer: int) -> None:
        """A member's connection ended."""
        for key in [key for key, one in self._refills.items() if one.peer == peer]:
            del self._refills[key]

    def _question(self, peer: int, key: Key, first: int, last: int) -> None:
        _bounded(self._asked)[key] = None
        author, epoch = key
        self._ask(peer, {"topic": self._topic, "author": author, "epoch": epoch, "from": first, "to": last})


def _bounded(known: dict[Key, T]) -> dict[Key, T]:
    """Room for one more: the oldest goes."""
    if len(known) >= MAX_AUTHORS:
        del known[next(iter(known))]
    return known
