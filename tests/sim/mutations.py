"""Bugs put into the machines on purpose, each as one changed method: what the simulator must find (test_mutations.py).

Not here: bugs of the simulator's own shells. Each function takes pytest's MonkeyPatch and changes one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest

from broker.hub.forwards import Heads
from broker.hub.realm_links import RealmLinks
from broker.protocol.announcing import Announcing
from broker.protocol.answering import Answering
from broker.protocol.caller import Caller
from broker.protocol.calls import CallTable
from broker.protocol.cursor import Head, Outcome, Span
from broker.protocol.membership import Membership
from broker.protocol.publication import Publication, Resume
from broker.protocol.ring import Ring
from broker.protocol.sequence import Sequences
from broker.protocol.tracker import Tracker

__all__ = ["MUTATIONS"]

Patch = Callable[[pytest.MonkeyPatch], None]


def the_ring_forgets_a_number(patch: pytest.MonkeyPatch) -> None:
    append = Ring.append

    def forgetful(self: Ring, author: str, epoch: str, seq: int, frame: bytes) -> Outcome:
        if seq % 7 == 3 and seq > self.newest(author, epoch):
            self._sources.get((author, epoch), self._admit(author, epoch, seq)).newest = seq
            return Outcome.DUPLICATE
        return append(self, author, epoch, seq, frame)

    patch.setattr(Ring, "append", forgetful)


def the_tracker_does_not_hold_back(patch: pytest.MonkeyPatch) -> None:
    take = Tracker.take

    def eager(self: Tracker, seq: int, item: Any, now: float) -> list[Any]:
        out = take(self, seq, item, now)
        return out or ([self.held[seq]] if seq in self.held else [])

    patch.setattr(Tracker, "take", eager)


def acknowledged_before_the_ring_has_it(patch: pytest.MonkeyPatch) -> None:
    newly = Ring.newly_ackable

    def early(self: Ring) -> list[Head]:
        return [head for one in newly(self) for head in (one._replace(seq=one.seq + 1), one)]

    patch.setattr(Ring, "newly_ackable", early)


def duplicates_by_content(patch: pytest.MonkeyPatch) -> None:
    append = Ring.append

    def by_content(self: Ring, author: str, epoch: str, seq: int, frame: bytes) -> Outcome:
        if len(self):
            last = self.next_index - 1
            if orjson.loads(self._entries.frame(last))["detail"] == orjson.loads(frame)["detail"]:
                source, _ = self._entries.of(last)
                self._sources[source.author, source.epoch].newest = seq
                return Outcome.DUPLICATE
        return append(self, author, epoch, seq, frame)

    patch.setattr(Ring, "append", by_content)


def a_lost_range_is_not_told(patch: pytest.MonkeyPatch) -> None:
    find = Ring.range

    def silent(self: Ring, author: str, epoch: str, a: int, b: int, max_events: int = 10_000) -> Span:
        return Span(find(self, author, epoch, a, b, max_events).frames, [])

    patch.setattr(Ring, "range", silent)


def what_is_still_there_is_named_lost(patch: pytest.MonkeyPatch) -> None:
    find = Ring.range

    def lazy(self: Ring, author: str, epoch: str, a: int, b: int, max_events: int = 10_000) -> Span:
        frames, missing = find(self, author, epoch, a, b, max_events)
        return Span(frames[:-1], [*missing, (b, b)]) if frames else Span(frames, missing)

    patch.setattr(Ring, "range", lazy)


def heads_are_not_heard(patch: pytest.MonkeyPatch) -> None:
    """A verdict would be complete though the last events are missing. What comes after a hole still shows it."""
    head = Sequences.head

    def deaf(
        self: Sequences[Any], topic: str, author: str, epoch: str, seq: int, now: float, *, baseline: bool = False
    ) -> None:
        if baseline or (topic, author, epoch) not in self._trackers:
            head(self, topic, author, epoch, seq, now, baseline=baseline)

    patch.setattr(Sequences, "head", deaf)


def a_hole_is_no_longer_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tracker, "missing", lambda self: ())


def duplicates_are_counted_as_received(patch: pytest.MonkeyPatch) -> None:
    def again(self: Tracker, seq: int) -> None:
        self.received += 1

    patch.setattr(Tracker, "_again", again)


def the_ring_grows_without_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("broker.protocol.ring.GROWTH", 1_000)


def acknowledged_events_are_sent_again_as_new(patch: pytest.MonkeyPatch) -> None:
    resume = Publication.resume

    def from_the_middle(self: Publication, acked_seq: int) -> Resume:
        found = resume(self, acked_seq)
        return found._replace(frames=found.frames[len(found.frames) // 2 :])

    patch.setattr(Publication, "resume", from_the_middle)


def duplicates_are_delivered(patch: pytest.MonkeyPatch) -> None:
    take = Tracker.take

    def again(self: Tracker, seq: int, item: Any, now: float) -> list[Any]:
        return take(self, seq, item, now) or ([item] if seq < self.next else [])

    patch.setattr(Tracker, "take", again)


def a_call_is_answered_twice(patch: pytest.MonkeyPatch) -> None:
    def last(self: Caller, call: Any) -> None:
        if call.many:
            call.live = False
            del self._calls[call.request_id]

    patch.setattr(Caller, "_end", last)


def who_is_gone_keeps_its_calls(patch: pytest.MonkeyPatch) -> None:
    gone = CallTable.gone

    def lazy(self: CallTable, peer: int, now: float) -> Any:
        if (spoke := self._peers.get(peer)) is not None and spoke.legs:
            return []
        return gone(self, peer, now)

    patch.setattr(CallTable, "gone", lazy)


def streams_send_without_credit(patch: pytest.MonkeyPatch) -> None:
    init = Answering.__init__

    def uncredited(self: Answering, **options: Any) -> None:
        init(self, **options)
        self.credited = False

    patch.setattr(Answering, "__init__", uncredited)


def anybody_may_answer(patch: pytest.MonkeyPatch) -> None:
    """Answers are given to another call of the same caller."""
    on = Caller.on

    def crossed(self: Caller, type: str, detail: Any, now: float) -> Any:
        others: Iterable[str] = [id for id in self._calls if id != detail.get("requestId")]
        other = next(iter(others), None)
        return on(self, type, {**detail, "requestId": other} if other and type == "call.responded" else detail, now)

    patch.setattr(Caller, "on", crossed)


def silence_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """A spoke that is cut off from its swarm goes on believing that it hears it."""

    def deaf(self: Membership, now: float) -> list[Any]:
        if (swarm := self._now) is not None:
            swarm.heard_at, swarm.beat_at, swarm.alone_since = now, now, None
        return []

    patch.setattr(Membership, "_deaf", deaf)


def nobody_tells_the_end_of_a_sequence(patch: pytest.MonkeyPatch) -> None:
    """A last event that gossip lost is seen by nothing else."""
    patch.setattr(Announcing, "published", lambda self, now: None)
    patch.setattr(Heads, "moved", lambda self, key, seq, now, *, gossips: None)


def what_the_swarm_announces_is_not_heard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequences, "announced", lambda self, topic, author, epoch, seq, now, *, new: None)


def another_hubs_ring_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    """Only where there are two hubs: what a hub missed while it was away stays missing there."""
    patch.setattr(RealmLinks, "event", lambda self, session, message, frame: None)


MUTATIONS: dict[str, Patch] = {
    one.__name__: one
    for one in (
        the_ring_forgets_a_number,
        the_tracker_does_not_hold_back,
        acknowledged_before_the_ring_has_it,
        duplicates_by_content,
        a_lost_range_is_not_told,
        what_is_still_there_is_named_lost,
        heads_are_not_heard,
        a_hole_is_no_longer_missing,
        duplicates_are_counted_as_received,
        the_ring_grows_without_bound,
        acknowledged_events_are_sent_again_as_new,
        duplicates_are_delivered,
        a_call_is_answered_twice,
        who_is_gone_keeps_its_calls,
        streams_send_without_credit,
        anybody_may_answer,
        silence_is_not_noticed,
        nobody_tells_the_end_of_a_sequence,
        what_the_swarm_announces_is_not_heard,
        another_hubs_ring_is_not_asked,
    )
}
