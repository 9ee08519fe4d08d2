"""What a subscription can say of itself: verdicts, their sum, and the questions that it asks the hub.

Not here: how it comes to them (sequence.py, tracker.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from broker.protocol.tracker import Range

__all__ = ["Repair", "Summary", "Verdict"]

_WORDS: Final = 8
"""Lost ranges spelled out in a verdict's word; the others are in its fields."""


class Repair(NamedTuple):
    """A hole to ask for, both ends included."""

    topic: str
    author: str
    epoch: str
    a: int
    b: int

    def to_json(self) -> dict[str, Any]:
        """The detail of ``topic.repair`` (and, in the hub's mouth, ``topic.lost``)."""
        return {"topic": self.topic, "author": self.author, "epoch": self.epoch, "from": self.a, "to": self.b}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one sequence, from ``start`` up to ``known``, the newest number heard of.

    ``received`` events came (and are delivered, or held back behind a hole). ``lost`` and ``missing`` are ranges, both
    ends included. ``merged`` numbers inside ``lost`` did arrive: there were too many ranges to keep them apart.
    ``late`` events came after they had been given up.
    """

    topic: str
    author: str
    epoch: str
    start: int
    known: int
    received: int
    duplicates: int
    repaired: int
    late: int
    lost: tuple[Range, ...]
    missing: tuple[Range, ...]
    merged: int = 0
    unsure: bool = False

    @property
    def word(self) -> str:
        """``pending`` while something is missing, else ``lost([a,b],..)``, ``unknown``, ``repaired(n)``, ``complete``.

        ``unknown``: this sequence had been forgotten for lack of room, so nobody can say what came before.
        """
        if self.missing:
            return "pending"
        if self.lost:
            more = f",...{len(self.lost) - _WORDS} more" if len(self.lost) > _WORDS else ""
            return f"lost({','.join(f'[{a},{b}]' for a, b in self.lost[:_WORDS])}{more})"
        if self.unsure:
            return "unknown"
        return f"repaired({self.repaired})" if self.repaired else "complete"

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"verdict": self.word}


class Summary(NamedTuple):
    """Sums over all sequences of a subscription. ``forgotten``: sequences of which nothing is known any more."""

    sequences: int
    received: int
    duplicates: int
    repaired: int
    late: int
    lost: int
    missing: int
    forgotten: int

    @property
    def word(self) -> str:
        if self.missing:
            return "pending"
        if self.lost:
            return f"lost({self.lost})"
        if self.forgotten:
            return "unknown"
        return f"repaired({self.repaired})" if self.repaired else "complete"
