"""A sequence against sets of numbers, whatever arrives in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import tracker as tracker_module
from broker.protocol.sequence import Sequences, Verdict

T, A, E = "t", "a" * 64, "0" * 16


def verdict(seqs: Sequences[int]) -> Verdict:
    found = seqs.verdict(T, A, E)
    assert found is not None
    return found


class Against(RuleBasedStateMachine):
    """One author in any order, with loss, heads, drops and questions, against sets of numbers."""

    held: int
    ranges: int

    @initialize(held=st.sampled_from([1, 3, 50]), ranges=st.sampled_from([1, 2, 50]), start=st.integers(0, 3))
    def begin(self, held: int, ranges: int, start: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tracker_module, "HELD_EVENTS", held)
        self.patch.setattr(tracker_module, "MAX_RANGES", ranges)
        self.exact = ranges == 50
        self.now = 0.0
        self.seqs: Sequences[int] = Sequences()
        self.seqs.head(T, A, E, start, 0.0, baseline=True)
        self.start = start + 1
        self.out: list[int] = []
        self.dropped: set[int] = set()
        self.told_lost: set[int] = set()
        self.known = start
        self.repaired = 0

    def teardown(self) -> None:
        self.patch.undo()

    def missing(self) -> set[int]:
        return {seq for a, b in verdict(self.seqs).missing for seq in range(a, b + 1)}

    def deliver(self, items: Sequence[int]) -> None:
        self.out += items

    @rule(seq=st.integers(1, 40))
    def event(self, seq: int) -> None:
        self.known = max(self.known, seq)
        before = self.missing()
        self.deliver(self.seqs.event(T, A, E, seq, seq, self.now))
        self.repaired += len((before - self.missing()) & {seq})

    @rule(seq=st.integers(1, 40), count=st.integers(1, 10))
    def run(self, seq: int, count: int) -> None:
        self.known = max(self.known, seq + count - 1)
        before, numbers = self.missing(), range(seq, seq + count)
        self.deliver(self.seqs.run(T, A, E, seq, list(numbers), self.now))
        self.repaired += len((before - self.missing()).intersection(numbers))

    @rule(seq=st.integers(1, 45))
    def left_out(self, seq: int) -> None:
        self.known = max(self.known, seq)
        self.seqs.left_out(T, A, E, seq, self.now)

    @rule(seq=st.integers(0, 50))
    def head(self, seq: int) -> None:
        self.known = max(self.known, seq)
        self.seqs.head(T, A, E, seq, self.now)

    @rule(a=st.integers(1, 45), count=st.integers(1, 8))
    def lost(self, a: int, count: int) -> None:
        self.known = max(self.known, a + count - 1)
        self.told_lost.update(range(a, a + count))
        self.deliver(self.seqs.lost(T, A, E, a, a + count - 1, self.now))

    @precondition(lambda self: set(self.out) - self.dropped)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(set(self.out) - self.dropped)))
        self.seqs.dropped(T, A, E, seq)
        self.dropped.add(seq)

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        before = self.missing()
        self.deliver(self.seqs.expire(self.now))
        after = self.missing()
        self.told_lost |= before - after
        for repair in self.seqs.wanted(self.now):
            assert set(range(repair.a, repair.b + 1)) <= after

    @rule()
    def answered(self) -> None:
        """The hub answers every question: what it is asked for arrives."""
        for repair in self.seqs.wanted(self.now):
            for seq in range(repair.a, repair.b + 1):
                self.event(seq)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "seqs"):
            return
        found = verdict(self.seqs)
        missing = self.missing()
        assert found.repaired == self.repaired
        lost = {n for a, b in found.lost for n in range(a, b + 1)}
        assert self.out == sorted(set(self.out)), "in order, no doubles"
        assert found.known == max(self.known, self.start - 1)
        everything = set(range(self.start, found.known + 1))
        tracker = self.seqs._trackers[T, A, E]
        held = set(tracker.held)
        delivered = set(self.out) - self.dropped
        assert delivered | held | missing | lost == everything
        assert not delivered & missing
        assert not held & (missing | lost | delivered)
        assert not missing & lost
        assert self.dropped <= lost
        assert len(lost & delivered) == found.merged
        assert lost <= self.told_lost | self.dropped | (lost & delivered)
        assert found.received == len(delivered) + len(held)
        assert self.seqs._budget.left == 65_536 - len(held)
        assert (found.word in ("complete", f"repaired({found.repaired})")) == (not missing and not lost)
        assert (found.word == "complete") == (not missing and not lost and not found.repaired)
        assert len(tracker.holes) <= tracker_module.MAX_RANGES
        assert len(held) <= tracker_module.HELD_EVENTS
        # Each range ahead of the first hole is followed by a hole, or by something held.
        assert len(tracker.lost) <= 2 * tracker_module.MAX_RANGES + tracker_module.HELD_EVENTS + 1
        at = self.seqs.positions()[T][A][1] + 1
        assert all(seq >= at for seq in missing | held)
        assert at in missing or at == found.known + 1
        assert (self.seqs.next_due() is None) == (not missing)


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
