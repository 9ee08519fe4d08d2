"""One sequence of one author as one subscriber sees it: what is next, what is held back, what is missing, what is lost.

`sequence.Sequences` keeps one Tracker for each (topic, author, epoch) and answers its fast path itself.

Invariants, with ``next`` the first number not yet decided and ``top`` the newest number known to exist:
1. Each number of ``next..top`` is in exactly one place: held back, in a hole, or lost. ``holes[0].a == next`` if
   ``next <= top``; without a hole ``next == top + 1`` and nothing is held.
2. Numbers ``top+1..beyond`` are known to exist but found no room as a hole. They become one as soon as there is room,
   so ``beyond > top`` only while holes are open.
3. Each number of ``start..next-1`` was delivered, or lies in a lost range.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

__all__ = ["HELD_EVENTS", "HELD_TOTAL", "MAX_RANGES", "MAX_SEQ", "PATIENT", "Budget", "Hole", "Range", "Tracker"]

MAX_SEQ: Final = 2**53 - 1
"""The largest integer that JavaScript's JSON keeps exactly."""
HELD_EVENTS: Final = 16_384
"""One sequence: a second of a flood, in which a hole is seen and filled. What finds no room must come again."""
HELD_TOTAL: Final = 65_536
"""All sequences of a subscription together."""
MAX_RANGES: Final = 1_024
"""Holes, and lost ranges, of one sequence: some 100 KB each at the very worst."""
WAITS: Final = (1.0, 2.0, 4.0, 8.0, 14.0, 2.0)
"""Seconds after each question for a hole; after the last it is lost, if none of it came. That is asked shortly before
the end: who was asked may have got it meanwhile, from an author that came back."""
PAUSE: Final = 0.1
"""Seconds of silence after which the answer to a question counts as ended."""
PATIENT: Final = 1.0
"""Seconds before the first question for what a head announced: after a reconnect it is usually on its way already."""

Range = tuple[int, int]


class Budget:
    """How many events may still be held back, shared by the trackers of one subscription."""

    __slots__ = ("left",)

    def __init__(self, left: int = HELD_TOTAL) -> None:
        self.left = left


class Hole:
    """Missing numbers ``a..b``, asked for ``asks`` times, next to be acted on at ``due``. ``early``: what is in it is
    probably on its way by another path, and not missed before it has been asked for."""

    __slots__ = ("a", "asks", "b", "due", "early")

    def __init__(self, a: int, b: int, due: float, asks: int = 0, *, early: bool = False) -> None:
        self.a, self.b, self.due, self.asks, self.early = a, b, due, asks, early


class Tracker:
    """See the module. Numbers given in are integers from 1 to MAX_SEQ: the caller checks."""

    __slots__ = (
        "beyond",
        "budget",
        "catchup",
        "duplicates",
        "forgotten",
        "held",
        "holes",
        "late",
        "lost",
        "merged",
        "next",
        "patience",
        "received",
        "repaired",
        "start",
        "told",
        "top",
        "touched",
        "unsure",
    )

    def __init__(self, start: int, budget: Budget, now: float) -> None:
        self.start = self.next = start
        self.top = self.beyond = self.catchup = start - 1
        self.held: dict[int, Any] = {}
        self.holes: list[Hole] = []
        self.lost: list[Range] = []
        self.received = self.duplicates = self.repaired = self.late = self.forgotten = self.merged = 0
        self.budget = budget
        self.patience = 0.0
        """Seconds before the first question for a gap: none where order is kept on the way, as in a stream."""
        self.touched = now
        self.unsure = False
        self.told = ""

    # -- what comes in

    def take(self, seq: int, item: Any, now: float) -> list[Any]:
        """An event. Returns the items that can be delivered now, in order."""
        self.touched = now
        if seq < self.next or seq in self.held:
            self._again(seq)
            return []
        if seq > self.top:
            return self._newer(seq, item, now)
        place = self._hole_of(seq)
        if place is None:
            self.late += 1
            return []
        if seq != self.next and not self._can_hold(place, seq):
            self.forgotten += 1
            return []
        hole = self.holes[place]
        if hole.asks or (seq > self.catchup and not hole.early):
            self.repaired += 1
        self.received += 1
        self._cut(place, seq, seq, now)
        self._promote(now)
        if seq != self.next:
            self._hold(seq, item)
            return []
        self.next = seq + 1
        return [item, *self._release()]

    def _again(self, seq: int) -> None:
        if seq >= self.start and covers(self.lost, seq):
            self.late += 1
        else:
            self.duplicates += 1

    def _newer(self, seq: int, item: Any, now: float) -> list[Any]:
        if seq == self.next:
            self.next, self.top = seq + 1, seq
            self.received += 1
            return [item]
        gap = seq > self.top + 1
        if not self._room() or (gap and len(self.holes) >= MAX_RANGES):
            self.forgotten += 1
            self.announce(seq, now, now)
            return []
        if gap:
            self.announce(seq - 1, now, now + self.patience, early=self.patience > 0)
        self.repaired += seq <= self.beyond
        self.received += 1
        self.top = seq
        self._hold(seq, item)
        return []

    def announce(self, seq: int, now: float, due: float, *, early: bool = False) -> None:
        """Numbers up to ``seq`` are known to exist."""
        if seq <= self.top:
            return
        last = self.holes[-1] if self.holes else None
        if last is not None and last.b == self.top and not last.asks:
            last.b = self.top = seq
            last.due = min(last.due, due)
            last.early = last.early and early
        elif len(self.holes) < MAX_RANGES:
            self.holes.append(Hole(self.top + 1, seq, due, early=early))
            self.top = seq
        self.beyond = max(self.beyond, seq)

    def refuse(self, seq: int, now: float) -> None:
        """It came and found no room. So it can be had, and questions for it were not in vain."""
        self.announce(seq, now, now + PATIENT)
        if (place := self._hole_of(seq)) is not None:
            hole = self.holes[place]
            hole.asks, hole.due = min(hole.asks, 1), now + PATIENT

    def lose(self, a: int, b: int, now: float) -> list[Any]:
        """Nobody has ``a..b`` any more. What of it was received, stays received. Returns items that can go now."""
        a = max(a, self.next)
        if a > b:
            return []
        self.announce(b, now, now)
        if b > self.top:
            b = self.top
        place = max(0, bisect_right(self.holes, a, key=_start) - 1)
        while place < len(self.holes) and self.holes[place].a <= b:
            hole = self.holes[place]
            first, last = max(a, hole.a), min(b, hole.b)
            inside = hole.a < first and last < hole.b
            if first > last or (inside and len(self.holes) >= MAX_RANGES):
                place += 1
                continue
            before = len(self.holes)
            self._cut(place, first, last, now, progress=False)
            add_range(self.lost, first, last)
            place += 1 + len(self.holes) - before
        self._promote(now)
        return self._release()

    def drop(self, seq: int) -> None:
        """An item that was given out did not reach the user after all: it counts as lost."""
        if not self.start <= seq < self.next:
            return
        if covers(self.lost, seq):
            if not self.merged:
                return
            self.merged -= 1
        else:
            add_range(self.lost, seq, seq)
            self._fold()
        self.received -= 1

    # -- holes

    def _hole_of(self, seq: int) -> int | None:
        place = bisect_right(self.holes, seq, key=_start) - 1
        return place if place >= 0 and seq <= self.holes[place].b else None

    def _cut(self, place: int, first: int, last: int, now: float, *, progress: bool = True) -> None:
        """Take ``first..last`` out of a hole that covers it; splitting it if it lies inside."""
        hole = self.holes[place]
        if progress:
            # It is being filled: whoever sends it needs no second question yet. An answer may be a part of what was
            # asked for, though: then a short silence is its end.
            hole.asks, hole.due = (1, now + PAUSE) if hole.asks else (0, now + (self.patience or PATIENT))
        if hole.a == first and hole.b == last:
            del self.holes[place]
        elif hole.a == first:
            hole.a = last + 1
        elif hole.b == last:
            hole.b = first - 1
        else:
            self.holes.insert(place + 1, Hole(last + 1, hole.b, hole.due, hole.asks, early=hole.early))
            hole.b = first - 1

    def _promote(self, now: float) -> None:
        if self.beyond > self.top and len(self.holes) < MAX_RANGES:
            self.announce(self.beyond, now, now)

    def due(self) -> float | None:
        return min((hole.due for hole in self.holes), default=None)

    def ask(self, now: float, most: int, *, on: bool = False) -> list[Range]:
        """The holes to ask for now; each is due again later. ``on``: also those that were asked for often enough."""
        asked: list[Range] = []
        for hole in self.holes:
            if len(asked) >= most:
                break
            if hole.due <= now and (on or hole.asks < len(WAITS)):
                hole.due = now + (WAITS[hole.asks] if hole.asks < len(WAITS) else max(WAITS))
                hole.asks = min(hole.asks + 1, len(WAITS))
                asked.append((hole.a, hole.b))
        return asked

    def expire(self, now: float) -> list[Any]:
        """Holes that were asked for often enough are lost. Returns items that can go now."""
        spent = [(hole.a, hole.b) for hole in self.holes if hole.due <= now and hole.asks >= len(WAITS)]
        released: list[Any] = []
        for a, b in spent:
            released += self.lose(a, b, now)
        return released

    def patient(self, due: float, *, anew: bool) -> None:
        """What is missing is probably on its way. ``anew``: over a new connection, so that questions count anew."""
        for hole in self.holes:
            hole.asks, hole.due, hole.early = (0, due, False) if anew else (hole.asks, max(hole.due, due), False)

    def missing(self) -> tuple[Range, ...]:
        found = [(hole.a, hole.b) for hole in self.holes]
        if self.beyond > self.top:
            found.append((self.top + 1, self.beyond))
        return tuple(found)

    # -- held back

    def _room(self) -> bool:
        return len(self.held) < HELD_EVENTS and self.budget.left > 0

    def _can_hold(self, place: int, seq: int) -> bool:
        hole = self.holes[place]
        return self._room() and (seq in (hole.a, hole.b) or len(self.holes) < MAX_RANGES)

    def _hold(self, seq: int, item: Any) -> None:
        self.held[seq] = item
        self.budget.left -= 1

    def _release(self) -> list[Any]:
        out: list[Any] = []
        held = self.held
        while self.next <= self.top:
            if self.next in held:
                out.append(held.pop(self.next))
                self.next += 1
            elif covers(self.lost, self.next):
                self.next = self.lost[bisect_right(self.lost, self.next, key=_first) - 1][1] + 1
            else:
                break
        self.budget.left += len(out)
        self._fold()
        return out

    def _fold(self) -> None:
        """Keep the settled lost ranges few: the two with the least between them become one, delivered events included.

        Ranges ahead of ``next`` stay exact, since they decide what is delivered; held events keep them apart, so their
        number is bounded too.
        """
        lost = self.lost
        while len(lost) > MAX_RANGES:
            settled = bisect_right(lost, self.next - 1, key=_last)
            if settled <= MAX_RANGES:
                return
            gaps = (lost[at + 1][0] - lost[at][1] for at in range(settled - 1))
            gap, at = min((gap, at) for at, gap in enumerate(gaps))
            lost[at : at + 2] = [(lost[at][0], lost[at + 1][1])]
            self.merged += gap - 1


def _start(hole: Hole) -> int:
    return hole.a


def _first(span: Range) -> int:
    return span[0]


def _last(span: Range) -> int:
    return span[1]


def covers(ranges: list[Range], seq: int) -> bool:
    """Whether a sorted list of ranges has ``seq``."""
    place = bisect_right(ranges, seq, key=_first) - 1
    return place >= 0 and seq <= ranges[place][1]


def add_range(ranges: list[Range], a: int, b: int) -> None:
    """Add ``a..b`` to a sorted list of ranges that neither overlap nor touch, keeping it so."""
    low = bisect_right(ranges, a - 2, key=_last)
    high = bisect_right(ranges, b + 1, key=_first)
    if low < high:
        a, b = min(a, ranges[low][0]), max(b, ranges[high - 1][1])
    ranges[low:high] = [(a, b)]
