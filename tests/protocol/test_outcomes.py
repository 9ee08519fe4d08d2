"""What a spoke remembers of calls that came directly: one that is asked again runs once, a stream goes on where it was,
or nobody claims to know."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import outcomes as module
from broker.protocol.outcomes import BESIDE, KEEP, MAX_LIVES, Asked, Found, Life, Outcomes


def opened(outcomes: Outcomes, connection: str = "c") -> Life:
    life = outcomes.open("ann", connection)
    assert life is not None
    return life


def answered(outcomes: Outcomes, life: Life, request_id: str, answer: bytes = b"x") -> None:
    assert outcomes.began(life, request_id, "get")
    assert outcomes.ended(life, request_id, answer)
    outcomes.sent(life, request_id)


def streamed(outcomes: Outcomes, life: Life, request_id: str, items: str) -> Asked:
    assert outcomes.began(life, request_id, "watch", stream=True)
    asked = life.calls[request_id]
    for item in items:
        outcomes.item(asked, item.encode())
    return asked


def rest(outcomes: Outcomes, request_id: str, heard: int, operation: str = "get", connection: str = "c") -> Any:
    """What is given of a call that is asked again, as far as there is something."""
    found = outcomes.again("ann", connection, request_id, heard, operation)
    if isinstance(found, Found):
        return found
    given = []
    while isinstance(frame := outcomes.take(found), bytes):
        given.append(frame)
    return given if frame is None else frame


def test_each_of_the_answers() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1", b"done")
    outcomes.began(life, "2", "get")
    assert rest(outcomes, "1", 0, connection="other") is Found.UNKNOWN
    assert outcomes.again("bob", "c", "1", 0, "get") is Found.UNKNOWN, "another caller's calls are not to be had"
    assert rest(outcomes, "1", 0) == [b"done"]
    assert rest(outcomes, "2", 0) == [], "it runs"
    assert rest(outcomes, "3", 0) is Found.NEW
    assert [rest(outcomes, request_id, 0) for request_id in "123"] == [Found.UNKNOWN] * 3, "who was first goes on"


def test_after_the_first_question_the_connection_brings_nothing_more() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    assert rest(outcomes, "1", 0) is Found.NEW
    assert not outcomes.began(life, "1", "get"), "it was under way, and runs elsewhere by now"
    assert not outcomes.began(life, "2", "get")


def test_a_request_id_is_run_once() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1")
    assert not outcomes.began(life, "1", "get")
    outcomes.began(life, "2", "get")
    assert not outcomes.began(life, "2", "get")
    assert not outcomes.ended(life, "1", b"y")


def test_what_was_dropped_and_may_not_have_been_heard_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    for request_id in "1234":
        answered(outcomes, life, request_id)
    assert rest(outcomes, "1", 1) is Found.UNKNOWN
    assert rest(outcomes, "5", 1) is Found.UNKNOWN, "for all that is known it is one of those"
    assert rest(outcomes, "5", 5) is Found.UNKNOWN, "nobody has heard what was not sent"
    assert rest(outcomes, "3", 2) == [b"x"]
    assert rest(outcomes, "5", 2) is Found.NEW, "it had heard all that was dropped"


def test_who_asks_for_more_than_anybody_may_have_asked_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    for request_id in "12":
        answered(outcomes, life, request_id)
    assert [rest(outcomes, request_id, 2) for request_id in "345"] == [Found.NEW, Found.NEW, Found.UNKNOWN]
    assert len(life.calls) == 4


def test_a_word_about_a_call_that_has_its_answer_already_counts_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when somebody uses its requestId once more, for what no grant covers."""
    monkeypatch.setattr(module, "MAX_OUTCOMES", 2)
    outcomes = Outcomes()
    life = opened(outcomes)
    answered(outcomes, life, "1")
    outcomes.sent(life, "1")
    for request_id in "234":
        answered(outcomes, life, request_id)
    assert rest(outcomes, "4", 4) == [b"x"]


def test_kept_bytes_are_bounded_over_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100 + BESIDE)
    outcomes = Outcomes()
    one, other = opened(outcomes, "one"), opened(outcomes, "other")
    answered(outcomes, one, "1", b"x" * 60)
    answered(outcomes, other, "1", b"y" * 60)
    assert outcomes.bytes == 60 + BESIDE
    assert rest(outcomes, "1", 0, connection="one") is Found.UNKNOWN
    assert rest(outcomes, "1", 0, connection="other") == [b"y" * 60]
    assert outcomes.bytes == 0
    third = opened(outcomes, "third")
    answered(outcomes, third, "1", b"x" * 60)
    outcomes.forget(third)
    assert outcomes.bytes == 0


def test_of_a_stream_its_caller_gets_what_it_has_not_heard_and_what_comes_then() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "ab")
    answered(outcomes, life, "2")
    for item in "cd":
        outcomes.item(stream, item.encode())
    assert outcomes.again("ann", "c", "1", 4, "watch") is stream, "a, b, the answer and c"
    assert (outcomes.take(stream), outcomes.take(stream)) == (b"d", None)
    outcomes.item(stream, b"e")
    outcomes.ended(life, "1", b"end")
    assert [outcomes.take(stream) for _ in range(3)] == [b"e", b"end", None]


def test_items_are_kept_until_their_caller_gives_credit_for_them() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "abcd")
    for no_credit in (None, "3", 0, -1, True, 1.0):
        outcomes.credited(life, "1", no_credit)
    outcomes.credited(life, "2", 2)
    assert len(stream.frames) == 4
    outcomes.credited(life, "1", 3)
    assert outcomes.bytes == 1 + BESIDE
    outcomes.credited(life, "1", 10**30)
    assert (outcomes.bytes, stream.confirmed) == (0, 4), "credit for more than was sent says nothing"
    outcomes.item(stream, b"e")
    outcomes.ended(life, "1", b"end")
    outcomes.credited(life, "1", 1)
    outcomes.credited(life, "1", 1)
    assert rest(outcomes, "1", 3, "watch") is Found.UNKNOWN, "d was not heard, though there was credit for it"
    assert rest(outcomes, "1", 5, "watch") == [b"end"], "for the end there is none"


def test_who_asks_for_a_stream_by_another_name_or_has_heard_what_was_not_sent_gets_nothing_of_it() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    streamed(outcomes, life, "1", "abcd")
    assert rest(outcomes, "1", 0, "get") is Found.UNKNOWN, "whether it may call that was asked, and not of watch"
    assert rest(outcomes, "1", 5, "watch") is Found.UNKNOWN
    assert outcomes.again("bob", "c", "1", 0, "watch") is Found.UNKNOWN
    assert rest(outcomes, "1", 3, "watch", connection="other") is Found.UNKNOWN
    assert rest(outcomes, "1", 3, "watch") == [b"d"]


def test_a_stream_that_was_aborted_keeps_nothing() -> None:
    outcomes = Outcomes()
    life = opened(outcomes)
    stream = streamed(outcomes, life, "1", "abcd")
    outcomes.drop(life, "1")
    assert (outcomes.bytes, outcomes.ended(life, "1", b"end"), stream.frames) == (0, False, [])


def test_items_too_are_bounded_over_all_connections_and_what_is_missing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4 * (1 + BESIDE))
    outcomes = Outcomes()
    one, other = opened(outcomes, "one"), opened(outcomes, "other")
    old = streamed(outcomes, one, "1", "abc")
    new = streamed(outcomes, other, "1", "abc")
    assert (len(old.frames), len(new.frames)) == (2, 2), "the one that is still longer gives way up to a share"
    assert rest(outcomes, "1", 0, "watch", connection="one") is Found.UNKNOWN
    assert outcomes.again("ann", "one", "1", 1, "watch") is old
    assert outcomes.take(old) == b"b"
    for number in range(3):
        answered(outcomes, other, str(2 + number))
    assert outcomes.take(old) is Found.UNKNOWN, "c is gone, and what comes after it would be a lie"
    outcomes.item(old, b"d")
    assert outcomes.take(old) is Found.UNKNOWN
    outcomes.drop(one, "1")
    outcomes.forget(other)
    assert outcomes.bytes == 0


def test_a_large_stream_does_not_take_the_room_of_others_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10 * (1 + BESIDE))
    outcomes = Outcomes()
    life, other = opened(outcomes), opened(outcomes, "other")
    quiet = streamed(outcomes, other, "1", "ab")
    for request_id in "234":
        answered(outcomes, other, request_id)
    large = streamed(outcomes, life, "1", "abcdefghijklmnopqrstuvwxyz")
    assert ([frame for _, frame in large.frames], len(quiet.frames)) == ([b"v", b"w", b"x", b"y", b"z"], 2)
    for request_id in "5678":
        answered(outcomes, other, request_id)
    assert (len(large.frames), len(quiet.frames)) == (5, 0), "what is small takes the room of what is old"
    assert [rest(outcomes, request_id, 0, connection="other") for request_id in "2345678"] == [
        *[Found.UNKNOWN] * 2,
        *[[b"x"]] * 5,
    ]
    assert rest(outcomes, "1", 21, "watch") == [b"v", b"w", b"x", b"y", b"z"]


def test_connections_are_remembered_for_a_while_and_are_so_many() -> None:
    outcomes = Outcomes()
    lives = [opened(outcomes, str(number)) for number in range(MAX_LIVES)]
    assert outcomes.open("ann", "one more") is None
    assert outcomes.open("ann", "0") is None
    outcomes.began(lives[0], "1", "get")
    taken = streamed(outcomes, lives[0], "2", "ab")
    streamed(outcomes, lives[0], "3", "ab")
    assert outcomes.again("ann", "0", "2", 1, "watch") is taken
    outcomes.over(lives[0], 10.0)
    assert outcomes.next_due() == 10.0 + KEEP
    assert outcomes.tick(10.0 + KEEP - 0.1) == []
    assert outcomes.tick(10.0 + KEEP) == [lives[0]]
    assert rest(outcomes, "1", 0, connection="0") is Found.UNKNOWN
    assert not outcomes.ended(lives[0], "1", b"late")
    assert (outcomes.take(taken), outcomes.bytes) == (b"b", 0), "who has asked by then goes on"
    outcomes.item(taken, b"c")
    assert outcomes.ended(lives[0], "2", b"end")
    assert (outcomes.take(taken), outcomes.take(taken), outcomes.bytes) == (b"c", b"end", 0)
    opened(outcomes, "one more")


WINDOW = 5


class Calling(RuleBasedStateMachine):
    """A caller that follows the rules, a connection that is cut at any place in either direction, and calls and streams
    asked again."""

    @initialize()
    def begin(self) -> None:
        self.outcomes = Outcomes()
        self.life = opened(self.outcomes)
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

    @precondition(lambda self: not self.over and len(self.open) < module.MAX_OUTCOMES)
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

    @precondition(lambda self: any(one[0] == "s" and self.credit[one] for one in self.running))
    @rule(data=st.data(), n=st.integers(1, 4))
    def items(self, data: st.DataObject, n: int) -> None:
        request_id = data.draw(st.sampled_from(sorted(x for x in self.running if x[0] == "s" and self.credit[x])))
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
