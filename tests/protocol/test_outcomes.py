"""What a spoke remembers of calls that came directly: one that is asked again runs once, or nobody claims to know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import outcomes as module
from broker.protocol.outcomes import KEEP, MAX_LIVES, Found, Life, Outcomes


def opened(outcomes: Outcomes, connection: str = "c") -> Life:
    life = outcomes.open("ann", connection)
    assert life is not None
    return life


def answered(outcomes: Outcomes, life: Life, request_id: str, answer: bytes = b"x") -> None:
    assert outcomes.began(life, request_id)
    assert outcomes.ended(life, request_id, answer)
    outcomes.sent(life, request_id)


def test_each_of_the_four_answers() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1", b"done")
    outcomes.began(life, "2")
    assert outcomes.again("ann", "c", "1", 0) == b"done"
    assert outcomes.again("ann", "c", "2", 0) is Found.RUNNING
    assert outcomes.again("ann", "c", "3", 0) is Found.NEW
    assert outcomes.again("ann", "other", "1", 0) is Found.UNKNOWN
    assert outcomes.again("bob", "c", "1", 0) is Found.UNKNOWN, "another caller's calls are not to be had"


def test_after_the_first_question_the_connection_brings_nothing_more() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    assert outcomes.again("ann", "c", "1", 0) is Found.NEW
    assert not outcomes.began(life, "1"), "it was under way, and runs elsewhere by now"
    assert not outcomes.began(life, "2")


def test_a_request_id_is_run_once() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1")
    assert not outcomes.began(life, "1")
    outcomes.began(life, "2")
    assert not outcomes.began(life, "2")
    assert not outcomes.ended(life, "1", b"y")


def test_what_was_dropped_and_may_not_have_been_heard_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    for request_id in "1234":
        answered(outcomes, life, request_id)
    assert outcomes.again("ann", "c", "1", 1) is Found.UNKNOWN
    assert outcomes.again("ann", "c", "5", 1) is Found.UNKNOWN, "for all that is known it is one of those"
    assert outcomes.again("ann", "c", "3", 2) == b"x"
    assert outcomes.again("ann", "c", "5", 2) is Found.NEW, "it had heard all that was dropped"


def test_kept_bytes_are_bounded_over_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    outcomes = Outcomes()
    one, other = opened(outcomes, "one"), opened(outcomes, "other")
    answered(outcomes, one, "1", b"x" * 60)
    answered(outcomes, other, "1", b"y" * 60)
    assert outcomes.bytes == 60
    assert outcomes.again("ann", "one", "1", 0) is Found.UNKNOWN
    assert outcomes.again("ann", "other", "1", 0) == b"y" * 60
    outcomes.forget(other)
    assert outcomes.bytes == 0


def test_connections_are_remembered_for_a_while_and_are_so_many() -> None:
    outcomes = Outcomes()
    lives = [opened(outcomes, str(number)) for number in range(MAX_LIVES)]
    assert outcomes.open("ann", "one more") is None
    assert outcomes.open("ann", "0") is None
    outcomes.began(lives[0], "1")
    outcomes.over(lives[0], 10.0)
    assert outcomes.next_due() == 10.0 + KEEP
    assert outcomes.tick(10.0 + KEEP - 0.1) == []
    assert outcomes.tick(10.0 + KEEP) == [lives[0]]
    assert outcomes.again("ann", "0", "1", 0) is Found.UNKNOWN
    assert not outcomes.ended(lives[0], "1", b"late")
    assert outcomes.bytes == 0
    opened(outcomes, "one more")


class Calling(RuleBasedStateMachine):
    """A caller that follows the rules, a stream that is cut at any place in either direction, and calls asked again."""

    @initialize()
    def begin(self) -> None:
        self.outcomes = Outcomes()
        self.life = opened(self.outcomes)
        self.asked: list[str] = []
        """On their way to the one that answers."""
        self.answers: list[str] = []
        """On their way back."""
        self.open: set[str] = set()
        self.running: set[str] = set()
        self.ran: dict[str, int] = {}
        self.heard = 0
        self.over = False

    @precondition(lambda self: not self.over and len(self.open) < module.MAX_OUTCOMES)
    @rule()
    def ask(self) -> None:
        request_id = str(len(self.ran) + len(self.asked) + 1000 * len(self.open))
        while request_id in self.ran or request_id in self.asked or request_id in self.open:
            request_id += "x"
        self.asked.append(request_id)
        self.open.add(request_id)

    @rule()
    def nothing(self) -> None:
        """When all is said."""

    @precondition(lambda self: not self.over and self.asked)
    @rule()
    def arrive(self) -> None:
        self._begins(self.asked.pop(0))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(request_id)
        assert self.outcomes.ended(self.life, request_id, request_id.encode())
        if not self.over:
            self.outcomes.sent(self.life, request_id)
            self.answers.append(request_id)

    @precondition(lambda self: not self.over)
    @rule()
    def item_of_a_stream(self) -> None:
        self.outcomes.sent(self.life, "stream")
        self.answers.append("")

    @precondition(lambda self: not self.over and self.answers)
    @rule()
    def hear(self) -> None:
        self.open.discard(self.answers.pop(0))
        self.heard += 1

    @precondition(lambda self: not self.over)
    @rule()
    def cut(self) -> None:
        """What is under way is lost, except what comes after the question: it must not run."""
        self.over = True

    @precondition(lambda self: self.over and self.open)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(request_id)
        found = self.outcomes.again("ann", "c", request_id, self.heard)
        if found is Found.NEW:
            assert request_id not in self.ran
            self.ran[request_id] = 1
        elif found is Found.RUNNING:
            assert request_id in self.running
        else:
            assert found == request_id.encode(), "a caller that follows the rules is always told"

    @precondition(lambda self: self.over and self.asked)
    @rule()
    def arrive_late(self) -> None:
        self._begins(self.asked.pop(0))

    def _begins(self, request_id: str) -> None:
        if self.outcomes.began(self.life, request_id):
            self.ran[request_id] = self.ran.get(request_id, 0) + 1
            self.running.add(request_id)

    @invariant()
    def nothing_runs_twice(self) -> None:
        assert all(count == 1 for count in getattr(self, "ran", {}).values())
        assert len(self.life.kept if hasattr(self, "life") else ()) <= 2 * module.MAX_OUTCOMES


@pytest.mark.parametrize("bound", [2, 3])
def test_a_call_runs_once_wherever_the_connection_is_cut(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", bound)
    case: Any = Calling.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
    case("runTest").runTest()
