"""Machines that tell the judge what goes in and out: the pure ones, recorded where a shell uses them.

A subscription's `Sequences` (a hub has one too, for a topic over gossip, which is not recorded), an author's
`Publication`, a hub's `Ring`. Each does what its base does. Not here: what follows from it (checker.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from broker.protocol.cursor import Batch, Outcome, Span
from broker.protocol.publication import Publication, Resume
from broker.protocol.ring import Ring
from broker.protocol.routing import Peer
from broker.protocol.sequence import Sequences
from tests.sim.checker import Checker, Event, Key, Reading
from tests.sim.world import Failure, World

__all__ = ["recorders"]


def recorders(world: World, checker: Checker) -> dict[str, type[Any]]:
    """By the name under which shells know the machine."""

    class OfSubscription(RecordedSequences):
        judge = checker

    class OfHub(RecordedRing):
        judge, process = checker, staticmethod(lambda: world.current.name if world.current is not None else "")

    class OfAuthor(RecordedPublication):
        judge = checker

    return {"Sequences": OfSubscription, "Ring": OfHub, "Publication": OfAuthor}


class RecordedSequences(Sequences[Any]):
    judge: Checker
    reading: Reading | None = None
    answerable: Callable[[], Iterable[tuple[Key, int]]] = staticmethod(tuple)
    """What the hub that was asked could have answered for."""
    _inside = False

    def event(self, topic: str, author: str, epoch: str, seq: int, item: Any, now: float, **more: Any) -> list[Any]:
        if self.reading is not None and not self._inside:
            self.judge.arrived(self.reading, (topic, author, epoch), seq)
        return super().event(topic, author, epoch, seq, item, now, **more)

    def run(
        self, topic: str, author: str, epoch: str, first_seq: int, items: Sequence[Any], now: float, **more: Any
    ) -> Sequence[Any]:
        if self.reading is not None:
            for seq in range(first_seq, first_seq + len(items)):
                self.judge.arrived(self.reading, (topic, author, epoch), seq)
        self._inside = True
        try:
            return super().run(topic, author, epoch, first_seq, items, now, **more)
        finally:
            self._inside = False

    def head(self, topic: str, author: str, epoch: str, seq: int, now: float, **more: Any) -> None:
        super().head(topic, author, epoch, seq, now, **more)
        self._told((topic, author, epoch), seq)

    def announced(self, topic: str, author: str, epoch: str, seq: int, now: float, **more: Any) -> None:
        super().announced(topic, author, epoch, seq, now, **more)
        if self.verdict(topic, author, epoch) is not None:
            self._told((topic, author, epoch), seq)

    def left_out(self, topic: str, author: str, epoch: str, seq: int, now: float, **more: Any) -> None:
        super().left_out(topic, author, epoch, seq, now, **more)
        self._told((topic, author, epoch), seq)

    def lost(self, topic: str, author: str, epoch: str, a: int, b: int, now: float) -> list[Any]:
        if self.reading is not None:
            self.judge.told_lost(self.reading, (topic, author, epoch), a, b)
        else:
            self.judge.given_up((topic, author, epoch), range(a, b + 1))
        return super().lost(topic, author, epoch, a, b, now)

    def dropped(self, topic: str, author: str, epoch: str, seq: int) -> None:
        if self.reading is not None:
            self.judge.drops(self.reading, Event(topic, author, epoch, seq, None))
        super().dropped(topic, author, epoch, seq)

    def expire(self, now: float) -> list[Any]:
        before = self.summary().lost if self._open else 0
        ready = super().expire(now)
        if self.summary().lost != before:
            if self.reading is not None:
                self.judge.expired(self.reading, self.answerable())
            else:
                for one in self.verdicts():
                    for a, b in one.lost:
                        self.judge.given_up((one.topic, one.author, one.epoch), range(a, b + 1))
        return ready

    def _told(self, key: Key, seq: int) -> None:
        if self.reading is not None:
            self.judge.told_head(self.reading, key, seq)


class RecordedPublication(Publication):
    judge: Checker

    def publish(self, detail: Any, *args: Any, **more: Any) -> bytes:
        seq, frame = self.next_seq, super().publish(detail, *args, **more)
        self.judge.published((self.topic, self.author, self.epoch), seq, detail)
        return frame

    def ack(self, seq: int) -> int:
        before = self.acked
        settled = super().ack(seq)
        if settled:
            self.judge.acknowledged((self.topic, self.author, self.epoch), self.acked, before)
        return settled

    def resume(self, acked_seq: int) -> Resume:
        found = super().resume(acked_seq)
        self.check()
        return found

    def _make_room(self) -> None:
        first = self.first
        super()._make_room()
        self.judge.given_up((self.topic, self.author, self.epoch), range(max(first, self.acked + 1), self.first))

    def check(self) -> None:
        limits = self._limits
        if len(self._frames) > limits.unacked_events + limits.retained_events + 1:
            raise Failure(f"the publication of {self.topic} holds {len(self._frames)} events")


class RecordedRing(Ring):
    judge: Checker
    process: Callable[[], str]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.log: dict[tuple[str, str, int], int] = {}
        self.topic = ""

    def append(self, author: str, epoch: str, seq: int, frame: bytes) -> Outcome:
        at = self.next_index
        outcome = super().append(author, epoch, seq, frame)
        if outcome is Outcome.ACCEPTED:
            self._took(author, epoch, seq, frame, at)
        return outcome

    def extend(self, author: str, epoch: str, first_seq: int, frames: list[bytes]) -> int:
        new = super().extend(author, epoch, first_seq, frames)
        rest = range(len(frames) - new + 1, len(frames))  # the first that was new came by `append`
        for at in rest:
            self._took(author, epoch, first_seq + at, frames[at], self.next_index - len(frames) + at)
        return new

    def _took(self, author: str, epoch: str, seq: int, frame: bytes, at: int) -> None:
        self.topic = self.topic or orjson.loads(frame)["type"]
        self.log[author, epoch, seq] = at
        self.judge.accepted(self.process(), self.topic, author, epoch, seq)

    def range(self, author: str, epoch: str, a: int, b: int, max_events: int = 10_000) -> Span:
        found = super().range(author, epoch, a, b, max_events)
        for first, last in found.missing:
            self._is_gone(author, epoch, first, last)
        return found

    def read(self, reader: Peer, max_events: int, max_bytes: int, now: float) -> Batch:
        found = super().read(reader, max_events, max_bytes, now)
        for author, epoch, a, b in found.lost:
            self._is_gone(author, epoch, a, b)
        return found

    def _is_gone(self, author: str, epoch: str, a: int, b: int) -> None:
        """What is named lost must not be here."""
        still = [seq for seq in range(a, b + 1) if self.log.get((author, epoch, seq), -1) >= self.first_index]
        if still:
            raise Failure(f"{self.process()} names {self.topic} {a}..{b} lost, and has {still[:5]}")

    def check(self) -> None:
        events, size = 2 * self._capacity_events, 2 * self._capacity_bytes
        if len(self) > max(1, events) or (self.bytes > size and len(self) > 1):
            held = f"{len(self)} events, {self.bytes} B"
            raise Failure(f"the ring of {self.topic} holds {held}; its bounds are {events}, {size}")
