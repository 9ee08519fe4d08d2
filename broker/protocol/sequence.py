"""The subscriber's side of topics: puts events in order, sees what is missing, and says the truth about it.

Rules:
1. Per (topic, author, epoch) items leave in rising order, each once. Nothing is kept between authors.
2. A number leaves the state "missing" in exactly one way: delivered, or named lost. Lost is for ever: an event that
   comes after its number was given up is counted `late` and not delivered, since its successors may be out already.
3. In doubt the verdict is worse than the truth, never better. When a bound makes us forget, we forget in that
   direction: an event that cannot be held back was not received, lost ranges too many to keep are merged outward.
4. A sequence begins at the baseline (`head(baseline=True)`), where ``since`` said, or else at the first event seen.
   Once `resumed` was called an unknown author begins at 1: what it sent while we were away was ours to get.
5. An event is *repaired* iff it fills a hole that was known before it came. What the first heads announce to a
   subscriber that begins in the past (``since``) is no hole but still to come, unless it has to be asked for.
6. Where events come by more than one path (gossip: a topic with an entry in ``patience``) a gap is mostly one that
   closes by itself. It is a hole at once, as everywhere, is asked for when the topic's patience is over, and what fills
   it before then is not repaired. There the first event seen may not be the first one sent: a sequence that is `new`
   to its subscriber begins at 1.

Not here: the wire, and when to ask (`wanted` and `expire` do it, `next_due` names the time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from broker.protocol.place import Origin, Positions, Since, check_seq, origin, parse_since
from broker.protocol.tracker import HELD_TOTAL, MAX_SEQ, PATIENT, Budget, Range, Tracker
from broker.protocol.verdict import Repair, Summary, Verdict

__all__ = [
    "MAX_SEQ",
    "Origin",
    "Positions",
    "Repair",
    "SequenceLimits",
    "Sequences",
    "Since",
    "Summary",
    "Verdict",
    "origin",
    "parse_since",
]

TRACKERS: Final = 16_384
"""A thousand authors on sixteen topics; about 1 KB each while nothing is missing."""
REPAIRS: Final = 256
"""Questions of one `wanted`: one batch of small frames. The rest is due at once again."""
REMEMBERED: Final = 65_536
"""Sequences put away for lack of trackers, as a position alone. Beyond it they are forgotten; the verdict says so."""
POSITIONS_BYTES: Final = 512 * 1024
"""Half a frame. What is left out of a positions object is sent again by the hub and dropped here as a duplicate."""
T = TypeVar("T")
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLimits:
    trackers: int = TRACKERS
    remembered: int = REMEMBERED
    held_total: int = HELD_TOTAL


class Sequences(Generic[T]):
    """All sequences of one subscription. ``T`` is whatever the shell wants back in order.

    It is driven by events (`event`, `run`), what the hub says about them (`head`, `lost`), and time (`wanted`, `expire`
    at `next_due`). Topic, author, epoch and seq must come from `origin` or be checked alike. ``patience`` is the
    shell's table, which it may change: seconds by topic, none for topics that come by stream alone.
    """

    def __init__(
        self,
        since: Since = None,
        limits: SequenceLimits | None = None,
        now: float = 0.0,
        *,
        patience: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._limits, self._patience = limits or SequenceLimits(), patience
        self._trackers: dict[Key, Tracker] = {}
        self._budget = Budget(self._limits.held_total)
        self._open: dict[Key, Tracker] = {}
        self._changed: dict[Key, Tracker] = {}
        self._base: int | None = None
        self._resumed = isinstance(since, Mapping)
        self._put_away: dict[Key, tuple[int, bool]] = {}
        self._past = Summary(0, 0, 0, 0, 0, 0, 0, 0)
        if since == "start":
            self._base = 0
        elif isinstance(since, int):
            self._base = max(0, since - 1)
        elif since is not None:
            self._base = 0
            for topic, authors in since.items():
                for author, (epoch, seq) in authors.items():
                    self._begin((topic, author, epoch), seq + 1, now)

    def __len__(self) -> int:
        return len(self._trackers)

    # -- events

    def event(
        self, topic: str, author: str, epoch: str, seq: int, item: T, now: float, *, new: bool = False
    ) -> list[T]:
        """One event. Returns what can be delivered now: ``[item]``, or nothing for a duplicate and behind a hole.
        ``new``: nobody here had heard of this sequence when the subscription began, so all of it is the
        subscription's."""
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        if tracker is not None and seq == tracker.next and seq > tracker.top:
            tracker.next += 1
            tracker.top += 1
            tracker.received += 1
            tracker.touched = now
            return [item]
        check_seq(seq, 1)
        if tracker is None:
            tracker = self._first(key, seq, now, new=new)
        tracker.patience = self._patience.get(topic, 0.0)
        out: list[T] = tracker.take(seq, item, now)
        self._note(key, tracker)
        return out

    def run(
        self, topic: str, author: str, epoch: str, first_seq: int, items: Sequence[T], now: float, *, new: bool = False
    ) -> Sequence[T]:
        """Events ``first_seq``, ``first_seq + 1``, ... of one author: `event` for each, at the price of one."""
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        if not items:
            return []
        if tracker is None:
            check_seq(first_seq, 1)
            tracker = self._first(key, first_seq, now, new=new)
        end = first_seq + len(items)
        if tracker.next == tracker.top + 1 and first_seq <= tracker.next < end <= MAX_SEQ:
            again = tracker.next - first_seq
            for seq in range(first_seq, tracker.next):
                tracker.take(seq, None, now)
            tracker.next, tracker.top = end, end - 1
            tracker.received += len(items) - again
            tracker.touched = now
            return items[again:] if again else items
        out: list[T] = []
        for seq, item in enumerate(items, first_seq):
            out += self.event(topic, author, epoch, seq, item, now)
        return out

    def begin(self, topic: str, author: str, epoch: str, first_seq: int, now: float) -> None:
        """What came before ``first_seq`` is settled elsewhere. Nothing for a sequence that is known already."""
        check_seq(first_seq, 1)
        key = (topic, author, epoch)
        if key not in self._trackers:
            self._begin(key, first_seq, now)

    # -- what the hub says about them

    def announced(self, topic: str, author: str, epoch: str, seq: int, now: float, *, new: bool) -> None:
        """The swarm says that the author's newest number is ``seq``. What comes before it has been sent already, so it
        is asked for as a gap is. Of a sequence that is not `new`, and unknown, the hub's word is still to come."""
        check_seq(seq, 0)
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        if tracker is None:
            if not new and self._base is None:
                return
            tracker = self._begin(key, (self._base or 0) + 1, now, heard=seq + 1)
        patience = self._patience.get(topic, 0.0)
        tracker.announce(seq, now, now + patience, early=patience > 0)
        self._note(key, tracker)

    def head(self, topic: str, author: str, epoch: str, seq: int, now: float, *, baseline: bool = False) -> None:
        """The author's newest number is ``seq``. ``baseline``: said in answer to the first subscribe."""
        check_seq(seq, 0)
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        if tracker is not None:
            tracker.announce(seq, now, now + PATIENT)
        elif baseline and self._base is None:
            tracker = self._begin(key, seq + 1, now, heard=seq + 1)
        else:
            tracker = self._begin(key, (self._base or 0) + 1, now, heard=seq + 1)
            if self._base is not None and not self._resumed:
                tracker.catchup = max(seq, tracker.catchup)
            tracker.announce(seq, now, now + PATIENT)
        self._note(key, tracker)

    def lost(self, topic: str, author: str, epoch: str, a: int, b: int, now: float) -> list[T]:
        """Nobody has ``a..b`` any more. Returns the items that waited for it."""
        check_seq(a, 1)
        check_seq(b, a)
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        if tracker is None:
            tracker = self._first(key, a, now)
        out: list[T] = tracker.lose(a, b, now)
        self._note(key, tracker)
        return out

    def dropped(self, topic: str, author: str, epoch: str, seq: int) -> None:
        """An item that was given out here was thrown away before its user saw it: named lost."""
        key = (topic, author, epoch)
        if (tracker := self._trackers.get(key)) is not None:
            tracker.drop(seq)
            self._note(key, tracker)

    def left_out(self, topic: str, author: str, epoch: str, seq: int, now: float, *, new: bool = False) -> None:
        """An event came for which there is no room here: a hole, to be had again. Not to be passed over in silence: of
        an author not heard of before, the next event would begin the sequence."""
        check_seq(seq, 1)
        key = (topic, author, epoch)
        tracker = self._trackers.get(key) or self._first(key, seq, now, new=new)
        tracker.refuse(seq, now)
        self._note(key, tracker)

    # -- connection and time

    def resumed(self, now: float, *, anew: bool = True) -> None:
        """Call at every reconnect, before the hub's answers to the new subscribe (with `positions`) are handled; not
        ``anew`` at a new subscribe over the same connection, where questions were heard: if that happens again and
        again, what nobody has is lost all the same."""
        self._resumed = True
        if self._base is None:
            self._base = 0
        for tracker in self._open.values():
            tracker.patient(now + PATIENT, anew=anew)

    def positions(self, max_bytes: int = POSITIONS_BYTES) -> dict[str, dict[str, tuple[str, int]]]:
        """The ``since`` object: how far each author is settled. The oldest epoch with a hole speaks for its author."""
        chosen: dict[tuple[str, str], tuple[str, Tracker]] = {}
        for (topic, author, epoch), tracker in self._trackers.items():
            known = chosen.get((topic, author))
            if known is None or not known[1].holes:
                chosen[topic, author] = (epoch, tracker)
        found: dict[str, dict[str, tuple[str, int]]] = {}
        for (topic, author), (epoch, tracker) in chosen.items():
            max_bytes -= len(author) + len(epoch) + 32 + (0 if topic in found else len(topic) + 8)
            if max_bytes < 0:
                break
            found.setdefault(topic, {})[author] = (epoch, tracker.next - 1)
        return found

    def wanted(self, now: float, *, on: bool = False) -> list[Repair]:
        """The holes to ask for now: a gap when its topic's patience is over (in a stream: at once), an announced one
        after a second, then at growing intervals. ``on``: without an end, where nobody is asked who could know that a
        thing is lost, and `expire` is not called."""
        repairs: list[Repair] = []
        for key, tracker in self._open.items():
            room = REPAIRS - len(repairs)
            if not room:
                break
            repairs += (Repair(*key, a, b) for a, b in tracker.ask(now, room, on=on))
        return repairs

    def expire(self, now: float) -> list[T]:
        """Give up holes that were asked for in vain: they are lost. Returns the items that waited for them."""
        out: list[T] = []
        for key, tracker in list(self._open.items()):
            out += tracker.expire(now)
            self._note(key, tracker)
        return out

    def next_due(self) -> float | None:
        """When `wanted` and `expire` have something to do."""
        return min((due for one in self._open.values() if (due := one.due()) is not None), default=None)

    # -- the truth

    def verdict(self, topic: str, author: str, epoch: str) -> Verdict | None:
        key = (topic, author, epoch)
        tracker = self._trackers.get(key)
        return None if tracker is None else _verdict(key, tracker)

    def verdicts(self) -> list[Verdict]:
        return [_verdict(key, tracker) for key, tracker in self._trackers.items()]

    def changed(self) -> list[Verdict]:
        """The verdicts whose word is another than when this was last called."""
        found: list[Verdict] = []
        for key, tracker in self._changed.items():
            verdict = _verdict(key, tracker)
            if verdict.word != tracker.told:
                tracker.told = verdict.word
                found.append(verdict)
        self._changed.clear()
        return found

    def summary(self) -> Summary:
        sums = self._past
        for tracker in self._trackers.values():
            sums = _sum(sums, tracker)
        return sums

    # -- trackers

    def _first(self, key: Key, seq: int, now: float, *, new: bool = False) -> Tracker:
        """A sequence of which the number ``seq`` is the first that is heard."""
        start = (1 if new else seq) if self._base is None else self._base + 1
        return self._begin(key, start, now, heard=seq)

    def _begin(self, key: Key, start: int, now: float, *, heard: int = 1) -> Tracker:
        if len(self._trackers) >= self._limits.trackers:
            self._make_room()
        sure = True
        if (known := self._put_away.pop(key, None)) is not None:
            start, sure = known
        elif self._past.forgotten and heard > 1:
            # It may be one of the forgotten: what came before may be out already, so it is not asked for again.
            start, sure = max(start, heard), False
        tracker = self._trackers[key] = Tracker(start, self._budget, now)
        tracker.unsure = not sure
        self._changed[key] = tracker
        return tracker

    def _make_room(self) -> None:
        """A sixteenth goes at once, so that sorting is rare. Whole ones first, the longest idle first."""
        order = sorted(self._trackers, key=lambda key: (key in self._open, self._trackers[key].touched))
        for key in order[: max(1, len(order) // 16)]:
            tracker = self._trackers.pop(key)
            self._open.pop(key, None)
            self._changed.pop(key, None)
            self._budget.left += len(tracker.held)
            self._past = _sum(self._past, tracker, past=True)
            self._put_away[key] = (tracker.next, not (tracker.lost or tracker.unsure))
        while len(self._put_away) > self._limits.remembered:
            del self._put_away[next(iter(self._put_away))]
            self._past = self._past._replace(forgotten=self._past.forgotten + 1)

    def _note(self, key: Key, tracker: Tracker) -> None:
        self._changed[key] = tracker
        if tracker.holes:
            self._open[key] = tracker
        else:
            self._open.pop(key, None)


def _verdict(key: Key, tracker: Tracker) -> Verdict:
    topic, author, epoch = key
    return Verdict(
        topic=topic,
        author=author,
        epoch=epoch,
        start=tracker.start,
        known=max(tracker.top, tracker.beyond),
        received=tracker.received,
        duplicates=tracker.duplicates,
        repaired=tracker.repaired,
        late=tracker.late,
        lost=tuple(tracker.lost),
        missing=tracker.missing(),
        merged=tracker.merged,
        unsure=tracker.unsure,
    )


def _sum(sums: Summary, tracker: Tracker, *, past: bool = False) -> Summary:
    """``sums`` and one tracker. Of one put away only what is settled counts: the rest comes, or is lost, anew."""
    return Summary(
        sequences=sums.sequences + (not past),
        received=sums.received + tracker.received - (len(tracker.held) if past else 0),
        duplicates=sums.duplicates + tracker.duplicates,
        repaired=sums.repaired + tracker.repaired,
        late=sums.late + tracker.late,
        lost=sums.lost + _size(tracker.lost) - tracker.merged,
        missing=sums.missing + (0 if past else _size(tracker.missing())),
        forgotten=sums.forgotten,
    )


def _size(ranges: list[Range] | tuple[Range, ...]) -> int:
    return sum(b - a + 1 for a, b in ranges)
