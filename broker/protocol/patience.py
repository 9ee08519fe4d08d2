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

    __slots__ = ("_budget", "_mark", "_per", "_since", "_spent")

    def __init__(self, per: int) -> None:
        self._per = per
        self._spent = self._budget = 0.0
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
        self._budget = _budget(holders.values())
        over = self._spent + _MOMENT >= self._budget
        return [peer for peer, one in holders.items() if over or one.spent + _MOMENT >= one.options.patience]

    def passes(self, one: Cursor, over: int, now: float) -> bool:
        """One reader is about to move, or has moved: if it needs what comes before the place ``over``, its time until
        now is counted, and that of all together, in one step however many there are. True: `count` has to be asked,
        since somebody may have spent its patience, or has just begun to."""
        if one.index >= over or not one.blocks:
            one.since = None
            return False
        if self._since is None or one.since is None:
            return True
        self._spent += now - self._since
        one.spent += now - one.since
        self._since = one.since = now
        return self._spent + _MOMENT >= self._budget or one.spent + _MOMENT >= one.options.patience

    def due(self, holders: Iterable[Cursor]) -> float:
        """When the first of them will have spent its patience; 0 when that has yet to be counted."""
        holders = list(holders)
        dues = [one.since + one.options.patience - one.spent for one in holders if one.since is not None]
        if self._since is None or not dues or len(dues) < len(holders):
            return 0.0
        return min(self._since + _budget(holders) - self._spent, *dues)


def _budget(holders: Iterable[Cursor]) -> float:
    return HOLDS * max((one.options.patience for one in holders), default=0.0)
