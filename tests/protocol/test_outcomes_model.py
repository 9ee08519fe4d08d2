"""Calls and streams over a connection that is cut at any place in either direction, and asked for again: each runs
once, and every item comes once and in order, or its caller is told that nobody knows.

Not here: examples (test_outcomes.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import outcomes as module
from broker.protocol.outcomes import BESIDE, Asked, Found, Outcomes

WINDOW = 5


class Calling(RuleBasedStateMachine):
    """A caller that follows the rules, and the memory of the one that answers."""

    @initialize()
    def begin(self) -> None:
        self.outcomes = Outcomes()
        life = self.outcomes.open("ann", "c")
        assert life is not None
        self.life = life
        self.asked: list[str] = []
        """On their way to the one that answers. Streams begin with an s."""
        self.answers: list[tuple[str, bytes]] = []
        """On their way back."""
        self.open: set[str] = set()
        self.running: set[str] = set()
        self.ran: dict[str, int] = {}
        self.made: dict[str, int] = {}
        """Items of streams, and their credit."""
        self.credit: dict[str, int] = {}
        self.got: dict[str, list[bytes]] = {}
        self.owed: dict[str, int] = {}
        """Items that came and no credit was given for."""
        self.following: dict[str, Asked] = {}
        self.heard = 0
        self.over = False

    def may_ask(self) -> bool:
        return len(self.open) < module.MAX_OUTCOMES

    def making(self) -> list[str]:
        """Streams that have credit."""
        return [one for one in self.running if one[0] == "s" and self.credit[one]]

    @precondition(lambda self: not self.over and self.may_ask())
    @rule(stream=st.booleans())
    def ask(self, stream: bool) -> None:
        request_id = f"{'s' if stream else 'c'}{len(self.got)}"
        self.asked.append(request_id)
        self.open.add(request_id)
        self.got[request_id] = []
        self.credit[request_id], self.owed[request_id], self.made[request_id] = WINDOW, 0, 0

    @rule()
    def nothing(self) -> None:
        """When all is said."""

    @precondition(lambda self: not self.over and self.asked)
    @rule()
    def arrive(self) -> None:
        self._begins(self.asked.pop(0))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A call has its answer, or a stream its end."""
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(request_id)
        assert self.outcomes.ended(self.life, request_id, b"end")
        if not self.over:
            self.outcomes.sent(self.life, request_id)
            self.answers.append((request_id, b"end"))

    @precondition(lambda self: self.making())
    @rule(data=st.data(), n=st.integers(1, 4))
    def items(self, data: st.DataObject, n: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.making())))
        for _ in range(min(n, self.credit[request_id])):
            item = b"%d" % self.made[request_id]
            self.made[request_id] += 1
            self.credit[request_id] -= 1
            self.outcomes.item(self.life.calls[request_id], item)
            if not self.over:
                self.answers.append((request_id, item))

    @precondition(lambda self: not self.over)
    @rule()
    def denied(self) -> None:
        self.outcomes.sent(self.life, None)
        self.answers.append(("", b""))

    @precondition(lambda self: not self.over and self.answers)
    @rule(n=st.integers(1, 4))
    def hear(self, n: int) -> None:
        for request_id, answer in self.answers[:n]:
            self.heard += 1
            if request_id:
                self._hears(request_id, answer)
        del self.answers[:n]

    @precondition(lambda self: not self.over and any(self.owed.values()))
    @rule(data=st.data())
    def give_credit(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(one for one, owed in self.owed.items() if owed)))
        n = data.draw(st.integers(1, self.owed[request_id]))
        self.owed[request_id] -= n
        self.credit[request_id] += n
        self.outcomes.credited(self.life, request_id, n)

    @precondition(lambda self: not self.over)
    @rule()
    def cut(self) -> None:
        """What is under way is lost, except what comes after the question: it must not run."""
        self.over = True
        self.credit = dict.fromkeys(self.credit, 0)

    @precondition(lambda self: self.over and self.open - set(self.following))
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open - set(self.following))))
        operation = "watch" if request_id[0] == "s" else "get"
        found = self.outcomes.again("ann", "c", request_id, self.heard, operation)
        if found is Found.NEW:
            assert request_id not in self.ran
            self.ran[request_id] = 1
            self.open.remove(request_id)
        elif isinstance(found, Asked):
            self.following[request_id] = found
        else:
            self._unknown(request_id)

    @precondition(lambda self: self.following)
    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.following)))
        asked = self.following[request_id]
        match self.outcomes.take(asked):
            case None:
                assert request_id in self.running, "nobody waits for ever"
                self.credit[request_id] = 1
            case Found.UNKNOWN:
                self._unknown(request_id)
            case answer:
                assert isinstance(answer, bytes)
                self._hears(request_id, answer)
        if request_id not in self.open:
            del self.following[request_id]
            self.running.discard(request_id)
            self.outcomes.drop(self.life, request_id)

    @precondition(lambda self: self.over and self.asked)
    @rule()
    def arrive_late(self) -> None:
        self._begins(self.asked.pop(0))

    def _begins(self, request_id: str) -> None:
        stream = request_id[0] == "s"
        if self.outcomes.began(self.life, request_id, "watch" if stream else "get", stream=stream):
            self.ran[request_id] = self.ran.get(request_id, 0) + 1
            self.running.add(request_id)

    def _hears(self, request_id: str, answer: bytes) -> None:
        assert request_id in self.open, "nothing comes after the end"
        if answer == b"end":
            self.open.discard(request_id)
            assert len(self.got[request_id]) == self.made[request_id], "nothing is missing at the end"
            return
        assert answer == b"%d" % len(self.got[request_id]), "each comes once, in order"
        self.got[request_id].append(answer)
        self.owed[request_id] += 1

    def _unknown(self, request_id: str) -> None:
        assert module.MAX_BYTES < 1_000, "a caller that follows the rules is always told, while there is room"
        self.open.discard(request_id)

    @invariant()
    def nothing_runs_twice_and_little_is_kept(self) -> None:
        assert all(count == 1 for count in getattr(self, "ran", {}).values())
        if hasattr(self, "life"):
            assert len(self.life.order) <= module.MAX_OUTCOMES
            assert len(self.life.calls) <= 2 * module.MAX_OUTCOMES
            for asked in self.life.calls.values():
                assert asked.bytes == sum(len(frame) + BESIDE for _, frame in asked.frames)
                assert len(asked.frames) <= WINDOW + 1
            assert sum(asked.bytes for asked in self.life.calls.values()) == self.outcomes.bytes <= module.MAX_BYTES

    def teardown(self) -> None:
        """Whoever asks comes to an end, and nothing stays."""
        self.over = True
        for request_id in sorted(self.open):
            asked: Any = self.following.get(request_id)
            if asked is None:
                operation = "watch" if request_id[0] == "s" else "get"
                asked = self.outcomes.again("ann", "c", request_id, self.heard, operation)
            if asked is Found.NEW:
                assert request_id not in self.ran
                continue
            if asked is Found.UNKNOWN:
                self._unknown(request_id)
                continue
            if request_id in self.running:
                self.outcomes.ended(self.life, request_id, b"end")
            while isinstance(answer := self.outcomes.take(asked), bytes):
                self._hears(request_id, answer)
            if answer is Found.UNKNOWN:
                self._unknown(request_id)
            assert request_id not in self.open
            self.outcomes.drop(self.life, request_id)
        self.outcomes.forget(self.life)
        assert self.outcomes.bytes == 0


@pytest.mark.parametrize("most_bytes", [1_000_000, 4 * BESIDE])
@pytest.mark.parametrize("bound", [2, 3])
def test_a_call_runs_once_and_a_stream_goes_on_wherever_the_connection_is_cut(
    monkeypatch: pytest.MonkeyPatch, bound: int, most_bytes: int
) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", bound)
    monkeypatch.setattr(module, "MAX_BYTES", most_bytes)
    case: Any = Calling.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
    case("runTest").runTest()
