"""How long the readers of a ring may hold it up: rule 4 of ring.py.

Each reader has a patience of its own; all together have four of them per capacity of events, the same speed that one
reader must keep to hold the ring for ever. Not here: who holds it up, and what becomes of one whose patience is spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from broker.protocol.cursor import Cursor
from broker.protocol.routing import Peer

__all__ = ["HOLDS", "Patience"]

HOLDS: Final = 4
_MOMENT: Final = 1e-6
"""Seconds: sums of floats fall short of a deadline by less."""


class Patience:
    """The clock of one ring. ``per`` is its capacity in events."""

    __slots__ = ("_mark", "_per", "_since", "_spent")

    def __init__(self, per: int) -> None:
        self._per = per
        self._spent = 0.0
        self._since: float | None = None
        self._mark = 0

    def count(
        self, holders: Mapping[Peer, Cursor], readers: Mapping[Peer, Cursor], next_index: int, now: float
    ) -> list[Peer]:
        """Time has passed in which ``holders`` held the ring up, or nobody did. Returns who has spent its patience."""
        if next_index - self._mark >= self._per:
            self._mark, self._spent = next_index, 0.0
        if not holders and self._since is None:
            return []
        for peer, one in readers.items():
            if peer not in holders:
                one.since = None
        if not holders:
            self._since = None
            return []
        self._spent += 0.0 if self._since is None else now - self._since
        self._since = now
        for one in holders.values():
            one.spent += 0.0 if one.since is None else now - one.since
            one.since = now
        over = self._spent + _MOMENT >= _budget(holders.values())
        return [peer for peer, one in holders.items() if over or one.spent + _MOMENT >= one.options.patience]

    def due(self, holders: Iterable[Cursor]) -> float:
        """When the first of them will have spent its patience; 0 when that has yet to be counted."""
        holders = list(holders)
        left = _budget(holders) - self._spent
        dues = [one.since + min(left, one.options.patience - one.spent) for one in holders if one.since is not None]
        return min(dues) if dues and len(dues) == len(holders) else 0.0


def _budget(holders: Iterable[Cursor]) -> float:
    return HOLDS * max((one.options.patience for one in holders), default=0.0)
