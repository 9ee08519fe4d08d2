"""When a connection counts as stuck, in virtual time: paths are the packets that have come over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.stall import TURN, Stall

PATIENCE = 6.0


@dataclass
class Paths:
    """A direct path and one by relay, that bring a packet every third of the patience while they are alive."""

    stall: Stall = field(default_factory=lambda: Stall(PATIENCE))
    alive: set[str] = field(default_factory=lambda: {"0", "1"})
    relays: frozenset[str] = frozenset({"0"})
    now: float = 100.0
    counts: dict[str, int] = field(default_factory=lambda: {"0": 1, "1": 1})
    done: list[tuple[float, str]] = field(default_factory=list)
    answers: bool = False
    room: bool = True

    def run(self, seconds: float, *, turn: float = TURN) -> list[str]:
        """What it does meanwhile."""
        began, before = self.now, len(self.done)
        while self.now < began + seconds:
            for path in self.alive & self.counts.keys():
                self.counts[path] += int((self.now + turn) / (PATIENCE / 3)) > int(self.now / (PATIENCE / 3))
            self.now += turn
            paths = [(path, path in self.relays, count) for path, count in self.counts.items()]
            if (effect := self.stall.look(self.now, paths)) is not None:
                self.done.append((self.now, effect))
                if effect == "ask":
                    self.stall.asked(self.room)
                    if self.room and self.answers:
                        self.stall.answered()
        return [effect for _, effect in self.done[before:]]


def test_nothing_is_asked_while_all_paths_speak() -> None:
    paths = Paths()
    assert paths.run(600) == []


def test_who_gets_no_answer_while_a_relay_is_silent_leaves_within_its_patience_and_a_third() -> None:
    paths = Paths()
    paths.run(10)
    paths.alive.discard("0")
    silent = paths.now
    assert paths.run(10)[:2] == ["ask", "leave"]
    (asked, _), (left, _) = paths.done[:2]
    assert PATIENCE / 2 - PATIENCE / 3 <= asked - silent <= PATIENCE / 2 + TURN
    assert left - asked == pytest.approx(PATIENCE / 2, abs=TURN)


def test_who_is_answered_stays_and_asks_again_only_after_its_patience() -> None:
    paths = Paths(answers=True)
    paths.run(10)
    paths.alive.discard("0")
    done = paths.run(30)
    assert set(done) == {"ask"}
    asked = [when for when, _ in paths.done]
    assert all(after - before >= PATIENCE for before, after in pairwise(asked))
    del paths.counts["0"]  # QUIC has given it up
    assert paths.run(60) == []


def after_the_question() -> Paths:
    """The one by relay is silent, and the question has just been asked."""
    paths = Paths()
    paths.run(10)
    paths.alive.discard("0")
    while paths.run(TURN) != ["ask"]:
        pass
    return paths


def test_a_question_that_had_no_room_is_asked_again_and_is_not_unanswered() -> None:
    paths = Paths(room=False)
    paths.run(10)
    paths.alive.discard("0")
    assert set(paths.run(PATIENCE)) == {"ask"}, "and no leave after half of it"
    paths.room = True
    before = len(paths.done)
    assert paths.run(PATIENCE)[:2] == ["ask", "leave"]
    (asked, _), (left, _) = paths.done[before : before + 2]
    assert left - asked == pytest.approx(PATIENCE / 2, abs=TURN), "as long as if there had been room at once"


def test_where_there_is_no_room_for_all_of_the_patience_nothing_comes_through_either() -> None:
    paths = Paths(room=False)
    paths.run(10)
    paths.alive.discard("0")
    paths.run(20)
    first, left = paths.done[0], next(done for done in paths.done if done[1] == "leave")
    assert left[0] - first[0] == pytest.approx(PATIENCE, abs=TURN)


def test_a_relay_that_speaks_again_takes_the_question_back() -> None:
    paths = after_the_question()
    paths.alive.add("0")
    assert paths.run(60) == []


@pytest.mark.parametrize("silent", [{"0", "1"}, {"1"}])
def test_a_connection_without_any_path_and_a_silent_direct_path_are_quics_own_matter(silent: set[str]) -> None:
    paths = Paths()
    paths.run(10)
    paths.alive -= silent
    assert "leave" not in paths.run(60)


def test_the_only_path_is_quics_own_matter() -> None:
    paths = Paths(counts={"0": 1})
    paths.run(10)
    paths.alive.clear()
    assert paths.run(60) == []


def test_time_in_which_all_is_silent_does_not_count_against_the_answer() -> None:
    """A network that is away for a while: what is asked may be answered when it is back."""
    paths = after_the_question()
    paths.alive.discard("1")
    assert paths.run(60) == []


@given(st.floats(PATIENCE, 3600))
def test_a_program_that_was_held_up_does_not_take_it_for_silence(pause: float) -> None:
    paths = Paths()
    paths.run(10)
    paths.now += pause
    assert paths.run(30) == []
