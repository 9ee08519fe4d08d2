"""The judge of a run: its own record of what was published, taken, delivered and said, against what the machines claim.

The record is made where things enter and leave the machines, never from their state. It knows:

* each event: published, taken by a hub, acknowledged to its author;
* for each subscription: what arrived, what its program read, what was named lost, what was due to it.

A broken promise raises `Failure` at once where it can be seen at once (order, twice, a false verdict, an
acknowledgement for what no hub has), else at the end (`judge`). Not here: calls (asks.py), and what happens in a run
(runner.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.protocol.routing import matches
from broker.protocol.sequence import Sequences, Since, Verdict
from broker.protocol.tracker import WAITS
from tests.sim.world import Failure, World

__all__ = ["Checker", "Event", "Key", "Knowledge", "Reading", "lost_numbers"]

LATE = 1.05
"""Clocks are a hundredth off, and a shell acts a moment after it is due."""
BAN = 1.0
"""Seconds in which everybody knows of a ban, beside the way of the message."""
Key = tuple[str, str, str]
"""Topic, author, epoch."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a program gets."""

    topic: str
    author: str
    epoch: str
    seq: int
    detail: Any

    @property
    def key(self) -> Key:
        return self.topic, self.author, self.epoch


class Knowledge(Protocol):
    """Who is left at the end, and what they could have told."""

    def author_lives(self, key: Key) -> bool: ...
    def hub_knows(self, key: Key, seq: int) -> bool: ...


@dataclass(eq=False)
class Reading:
    """One subscription of one process, as the judge sees it."""

    name: str
    patterns: tuple[str, ...]
    since: Since
    policy: str
    sequences: Sequences[Event]
    heard: bool = False
    """A hub has taken its subscribe: what a hub takes from now on is due."""
    over: bool = False
    """It ended before the run did: nothing is due any more."""
    arrivals: int = 0
    arrived: dict[Key, set[int]] = field(default_factory=dict)
    read: dict[Key, list[int]] = field(default_factory=dict)
    dropped: dict[Key, set[int]] = field(default_factory=dict)
    told_lost: dict[Key, set[int]] = field(default_factory=dict)
    expired: dict[Key, set[int]] = field(default_factory=dict)
    vain: dict[Key, set[int]] = field(default_factory=dict)
    """Of those, what no hub had when it was last asked for."""
    told: dict[Key, int] = field(default_factory=dict)
    """The newest number it was told of."""
    due: set[tuple[Key, int]] = field(default_factory=set)

    @property
    def host(self) -> str:
        return self.name.partition("/")[0].partition("r")[0]

    def covers(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in self.patterns)

    def first(self, key: Key) -> int:
        """The first number that it asked for."""
        if isinstance(self.since, Mapping):
            epoch, seq = self.since.get(key[0], {}).get(key[1], ("", 0))
            return seq + 1 if epoch == key[2] else 1
        return self.since if isinstance(self.since, int) else 1

    def forgotten(self) -> int:
        """Arrivals for which there was no room behind a hole: the only ones of which no counter tells."""
        return sum(tracker.forgotten for tracker in self.sequences._trackers.values())


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.newest: dict[Key, int] = {}
        self.content: dict[tuple[Key, int], Any] = {}
        self.published_at: dict[tuple[Key, int], float] = {}
        self.banned_at: dict[str, float] = {}
        """By host; only where nothing keeps the news from spreading."""
        self.taken: dict[Key, dict[int, float]] = {}
        """When a hub first had them."""
        self.taken_by: dict[str, int] = {}
        """Events, by the hub's process."""
        self.acked: dict[Key, int] = {}
        self.gone: dict[Key, set[int]] = {}
        """What was lost before any hub had it: it went into a swarm while no hub was there, and its author threw it
        away, or the hub asked for it in vain."""
        self.readings: list[Reading] = []
        self.by_tag: dict[tuple[str, str], Reading] = {}
        self.excused = False
        """Something stood still for long: a question may have been asked in vain."""
        self.counts: dict[str, int] = {}

    def count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

    # -- events

    def published(self, key: Key, seq: int, detail: Any) -> None:
        if seq != self.newest.get(key, 0) + 1:
            raise Failure(f"{_name(key)}: number {seq} was given after {self.newest.get(key, 0)}")
        self.newest[key] = seq
        self.content[key, seq] = detail
        self.published_at[key, seq] = self.world.now
        self.count("published")

    def accepted(self, hub: str, topic: str, author: str, epoch: str, seq: int) -> None:
        """A hub took an event that was new to it."""
        key = (topic, author, epoch)
        if seq > self.newest.get(key, 0):
            raise Failure(f"{hub} took {_name(key)} {seq}, which was never published")
        self.taken_by[hub] = self.taken_by.get(hub, 0) + 1
        taken = self.taken.setdefault(key, {})
        self.count("taken")
        if seq in taken:
            return
        taken[seq] = self.world.now
        for one in self.readings:
            if one.heard and not one.over and one.covers(topic) and seq >= one.first(key):
                one.due.add((key, seq))

    def acknowledged(self, key: Key, seq: int, before: int) -> None:
        """An author counts ``before + 1 .. seq`` as being with the hub."""
        missing = set(range(before + 1, seq + 1)) - self.taken.get(key, {}).keys() - self.gone.get(key, set())
        if missing:
            raise Failure(f"{_name(key)}: acknowledged up to {seq}, and no hub ever had {sorted(missing)[:5]}")
        self.acked[key] = max(seq, self.acked.get(key, 0))

    def given_up(self, key: Key, numbers: Iterable[int]) -> None:
        self.gone.setdefault(key, set()).update(numbers)

    # -- subscriptions

    def begins(self, reading: Reading) -> Reading:
        self.readings.append(reading)
        spoke, _, tag = reading.name.partition("/")
        self.by_tag[spoke, tag] = reading
        return reading

    def heard(self, spoke: str, tag: str) -> None:
        """A hub has taken the subscribe of a spoke's process."""
        if (one := self.by_tag.get((spoke, tag))) is not None:
            one.heard = True

    def arrived(self, one: Reading, key: Key, seq: int) -> None:
        """An event was handed to its sequences."""
        if (banned := self.banned_at.get(one.host)) is not None and self.published_at[key, seq] > banned + BAN:
            raise Failure(f"{one.name} was banned at {banned:.3f} s and gets {_name(key)} {seq}, published later")
        one.arrivals += 1
        one.arrived.setdefault(key, set()).add(seq)
        one.told[key] = max(seq, one.told.get(key, 0))

    def told_head(self, one: Reading, key: Key, seq: int) -> None:
        one.told[key] = max(seq, one.told.get(key, 0))

    def told_lost(self, one: Reading, key: Key, a: int, b: int) -> None:
        one.told_lost.setdefault(key, set()).update(range(a, b + 1))
        one.told[key] = max(b, one.told.get(key, 0))

    def expired(self, one: Reading, knows: Iterable[tuple[Key, int]]) -> None:
        """Some holes were given up since nobody answered. ``knows``: how far the hub knows that it asked. Of what no
        hub had when it was last asked for there was no answer but the same, lost."""
        asked = self.world.now - WAITS[-1] * LATE
        knows = set(knows)
        for key, lost in lost_numbers(one.sequences.verdicts()).items():
            said = one.told_lost.get(key, set()) | one.dropped.get(key, set()) | one.expired.get(key, set())
            new = lost - said - one.arrived.get(key, set())
            one.expired.setdefault(key, set()).update(new)
            taken = self.taken.get(key, {})
            in_time = {seq for seq in new if taken.get(seq, asked) < asked}
            one.vain.setdefault(key, set()).update(new - in_time)
            wrong = sorted(seq for seq in in_time if (key, seq) in knows)
            if wrong and not self.excused:
                raise Failure(f"{one.name}: gave up {_name(key)} {wrong[:5]}, for which its hub had an answer")

    def reads(self, one: Reading, event: Event) -> None:
        """Its program has an event."""
        read = one.read.setdefault(event.key, [])
        if read and event.seq <= read[-1]:
            what = "again" if event.seq in read else "late"
            raise Failure(f"{one.name}: {_name(event.key)} {event.seq} {what}, after {read[-1]}")
        if event.seq not in one.arrived.get(event.key, ()):
            raise Failure(f"{one.name}: {_name(event.key)} {event.seq} was delivered and never came")
        if self.content[event.key, event.seq] != event.detail:
            raise Failure(f"{one.name}: {_name(event.key)} {event.seq} has another content than was published")
        read.append(event.seq)

    def drops(self, one: Reading, event: Event) -> None:
        one.dropped.setdefault(event.key, set()).add(event.seq)

    def look(self, one: Reading) -> None:
        """Whether its verdicts are true now."""
        for verdict in one.sequences.verdicts():
            self._true(one, verdict)

    def _true(self, one: Reading, verdict: Verdict) -> None:
        key = (verdict.topic, verdict.author, verdict.epoch)
        told = one.told.get(key, 0)
        if verdict.known < told:
            raise Failure(f"{one.name}: {_name(key)} knows of {verdict.known} and was told of {told}")
        if verdict.known > max(self.newest.get(key, 0), verdict.start - 1):
            raise Failure(f"{one.name}: {_name(key)} knows of {verdict.known}, which was never published")
        word = verdict.word
        if word != "complete" and not word.startswith("repaired"):
            return
        arrived = one.arrived.get(key, set())
        missing = [seq for seq in range(verdict.start, verdict.known + 1) if seq not in arrived]
        if missing:
            raise Failure(f"{one.name}: {_name(key)} is called {word}, and {missing[:5]} never came")
        self.count("verdicts held")

    # -- the end

    def judge(self, knowledge: Knowledge) -> None:
        for one in self.readings:
            self.look(one)
            if not one.over:
                self._settled(one)
                self._delivered(one, knowledge)
                self._counted(one)

    def _settled(self, one: Reading) -> None:
        verdicts = {(v.topic, v.author, v.epoch): v for v in one.sequences.verdicts()}
        for key in one.read:
            if key not in verdicts:
                raise Failure(f"{one.name}: read {_name(key)} and has no verdict on it")
        for key, verdict in verdicts.items():
            lost, read = _numbers(verdict), set(one.read.get(key, ()))
            whole = set(range(verdict.start, verdict.known + 1))
            if verdict.missing:
                raise Failure(f"{one.name}: {_name(key)} is still missing {verdict.missing[:5]} at the end")
            if wrong := sorted(lost & read):
                raise Failure(f"{one.name}: {_name(key)} {wrong[:5]} are lost and were delivered")
            if wrong := sorted(whole - lost - read):
                raise Failure(f"{one.name}: {_name(key)} {wrong[:5]} are neither delivered nor named lost")
            said = one.told_lost.get(key, set()) | one.dropped.get(key, set()) | one.expired.get(key, set())
            if wrong := sorted(lost - said):
                raise Failure(f"{one.name}: {_name(key)} {wrong[:5]} are named lost, and nobody had said so")

    def _delivered(self, one: Reading, knowledge: Knowledge) -> None:
        """What a hub took while it was subscribed is known to its verdict, unless nobody is left who knows of it."""
        verdicts = {(v.topic, v.author, v.epoch): v for v in one.sequences.verdicts()}
        for key, seq in one.due:
            verdict = verdicts.get(key)
            if verdict is not None and seq < verdict.start:
                raise Failure(f"{one.name}: {_name(key)} {seq} was due, its verdict begins at {verdict.start}")
            if verdict is not None and seq <= verdict.known:
                continue
            if knowledge.author_lives(key) or knowledge.hub_knows(key, seq):
                known = verdict.known if verdict is not None else "nothing"
                raise Failure(f"{one.name}: {_name(key)} {seq} was due, and it knows of {known}")

    def _counted(self, one: Reading) -> None:
        """What the machines count is what was counted here."""
        verdicts = one.sequences.verdicts()
        for verdict in verdicts:
            key = (verdict.topic, verdict.author, verdict.epoch)
            read = len(one.read.get(key, ()))
            if verdict.received != read:
                raise Failure(f"{one.name}: {_name(key)} counts {verdict.received} received, its program read {read}")
        summary = one.sequences.summary()
        dropped = sum(map(len, one.dropped.values()))
        settled = summary.received + dropped + summary.duplicates + summary.late
        if settled + one.forgotten() != one.arrivals:
            raise Failure(f"{one.name}: counts {summary} and {dropped} dropped, and {one.arrivals} arrived")
        lost = sum(len(_numbers(verdict)) - verdict.merged for verdict in verdicts)
        if summary.lost != lost or summary.received != sum(map(len, one.read.values())):
            raise Failure(f"{one.name}: counts {summary.lost} lost, its verdicts name {lost}")
        self.count("delivered", summary.received)
        self.count("repaired", summary.repaired)
        self.count("lost", summary.lost)
        self.count("duplicates", summary.duplicates)


def _numbers(verdict: Verdict) -> set[int]:
    return {seq for a, b in verdict.lost for seq in range(a, b + 1)}


def lost_numbers(verdicts: list[Verdict]) -> dict[Key, set[int]]:
    return {(v.topic, v.author, v.epoch): _numbers(v) for v in verdicts if v.lost}


def _name(key: Key) -> str:
    topic, author, epoch = key
    return f"{topic} of s{int(author, 16)} (epoch {epoch[:4]})"
