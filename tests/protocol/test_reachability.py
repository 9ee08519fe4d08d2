"""What a hub does about relays that fail, in virtual time: a model of relays decides how probes end."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.reachability import GONE, REBUILD_FIRST, Effect, Insert, Probe, Rebuild, Remove, Renew, Watch

A, B = "https://a.example", "https://b.example"
TURN = 0.25
NOTICED = 10.0
"""Seconds within which the hub is to be elsewhere."""
CONNECTS = 1.0
"""For an endpoint that was made anew to be connected to a relay."""
SENT = (0.0, 1.0, 3.0)
"""When a dial says so, as long as nobody answers."""
TOLD = 0.5
"""After which the endpoint says that a relay is gone."""


@dataclass
class Relays:
    """Relays as they are, and a hub's endpoint that is at home on the first one that is in its choice and there."""

    watch: Watch
    urls: tuple[str, ...]
    state: dict[str, str] = field(default_factory=dict)
    """``up``, ``down``, ``silent`` (takes what is sent, and no more), ``stuck`` (the hub's own connection is dead),
    ``deaf`` (lets no probe in), ``closed`` (lets this hub not in)."""
    out: set[str] = field(default_factory=set)
    now: float = 0.0
    home: str | None = None
    stuck: float = 0.0
    """Until then the endpoint takes nothing from any relay, unless it is made anew."""
    rebuilt: list[float] = field(default_factory=list)
    done: list[object] = field(default_factory=list)
    _ends: tuple[float, str, str] | None = None

    def turn(self) -> None:
        self.now += TURN
        if self._ends is not None and self.now >= self._ends[0]:
            _, kind, message = self._ends
            self._ends = None
            self._carry_out(self.watch.probed(self.now, kind, message))
        alive = [url for url in self.urls if url not in self.out and self.state.get(url, "up") != "down"]
        if self.home in self.out or self.home is None:
            self.home = alive[0] if alive else self.home
        trouble = "not admitted" if self.state.get(self.home or "") == "closed" else None
        self._carry_out(self.watch.look(self.now, self.home, trouble))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.turn()

    def dies(self, url: str, *, told: bool = True) -> None:
        """A relay, and it takes the endpoint along at once."""
        self.state[url], self.stuck = "down", self.now + GONE
        if told:
            self.run(TOLD)
            self.watch.lost(self.now, [url])

    def until_reachable(self) -> None:
        """Until the endpoint takes again what relays bring."""
        while self.stuck > self.now:
            self.turn()

    def after(self, effect: object, seconds: float) -> float:
        """The time until it is done."""
        began, count = self.now, len(self.done)
        while effect not in self.done[count:]:
            self.turn()
            assert self.now - began <= seconds, f"no {effect} in {seconds} s: {self.done[count:]}"
        return self.now - began

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Remove(url):
                    self.out.add(url)
                case Insert(url):
                    self.out.discard(url)
                case Renew(url) if self.state.get(url) == "stuck":
                    self.state[url] = "up"
                case Rebuild():
                    self.stuck = self.now + CONNECTS
                    self.rebuilt.append(self.now)
                case Probe(url, limit):
                    assert self._ends is None, "two probes at once"
                    self._ends = self._probe(url, limit)
            self.done.append(effect)

    def _probe(self, url: str, limit: float) -> tuple[float, str, str]:
        heard = [after for after in SENT if after < limit and self.now + after >= self.stuck]
        match self.state.get(url, "up"):
            case "up" if url == self.home and heard:
                return self.now + heard[0] + 0.01, "ok", ""
            case "down":
                return self.now + limit, "unreachable", "refused"
            case "silent":
                return self.now + limit + 2, "unreachable", "says nothing"
            case "deaf" | "closed":
                return self.now + limit, "refused", "not on the list"
            case _:
                return self.now + limit, "silent", "no answer"


def started(*urls: str) -> Relays:
    relays = Relays(Watch(urls, 0.0), urls)
    relays.run(5)
    return relays


def test_a_relay_that_brings_probes_through_is_reachable_and_left_alone() -> None:
    relays = started(A, B)
    relays.run(600)
    assert relays.watch.reachable is True
    assert {type(effect) for effect in relays.done} == {Probe}
    assert relays.watch.relays()[A] == (True, "")


def test_a_hub_moves_on_from_a_relay_that_is_silent_within_ten_seconds() -> None:
    for state in ("down", "silent"):
        relays = started(A, B)
        relays.state[A] = state
        assert relays.after(Remove(A), NOTICED) <= NOTICED - 1
        relays.run(3)
        assert relays.home == B
        assert relays.watch.reachable is True
        assert relays.watch.moves == 1


def test_a_connection_that_is_dead_is_made_anew_and_the_relay_kept() -> None:
    relays = started(A, B)
    relays.state[A] = "stuck"
    relays.after(Renew(A), NOTICED)
    relays.run(30)
    assert relays.watch.reachable is True
    assert (relays.home, relays.watch.moves, relays.watch.renewals) == (A, 0, 1)


def test_the_only_relay_is_asked_again_until_it_is_back_and_then_at_once() -> None:
    relays = started(A)
    relays.state[A] = "down"
    relays.run(60)
    assert relays.watch.reachable is False
    assert relays.watch.relays()[A] == (False, "refused")
    assert relays.out == set(), "the only relay is never left"
    relays.state[A] = "stuck"  # there again, and the endpoint still waits for its next try
    relays.after(Renew(A), NOTICED)
    relays.run(5)
    assert relays.watch.reachable is True


def test_of_two_relays_that_have_failed_the_one_that_comes_back_is_found() -> None:
    relays = started(A, B)
    relays.state |= {A: "down", B: "down"}
    relays.run(120)
    assert relays.watch.reachable is False
    relays.state[A] = "up"
    relays.run(40)
    assert relays.watch.reachable is True
    assert relays.home == A


def test_a_relay_that_failed_comes_back_into_the_choice_later_each_time() -> None:
    relays = started(A, B)
    relays.state[A] = "down"
    relays.after(Remove(A), NOTICED)
    first = relays.after(Insert(A), 40)
    relays.state[A], relays.home = "silent", A  # alive enough to be chosen
    relays.after(Remove(A), 20)
    assert relays.after(Insert(A), 80) >= 2 * first - 1


def test_a_relay_that_lets_no_probe_in_is_not_known_to_be_anything() -> None:
    relays = started(A, B)
    relays.state[A] = "deaf"
    relays.run(60)
    assert relays.watch.relays()[A][0] is None
    assert relays.out == set()


def test_a_hub_that_is_not_admitted_goes_to_the_other_relay() -> None:
    relays = started(A, B)
    relays.state[A] = "closed"
    relays.after(Remove(A), 15)
    assert relays.watch.relays()[A] == (False, "not admitted")


def test_a_probe_whose_end_is_never_told_does_not_end_the_watch() -> None:
    watch = Watch((A,), 0.0)
    assert watch.look(1.0, A) == [Probe(A, 4.0)]
    assert watch.look(5.0, A) == []
    watch.look(30.0, A)
    assert watch.reachable is False
    assert watch.look(31.0, A) == [Probe(A, 4.0)]
    assert watch.probed(31.5, "ok", "") == []
    assert watch.probed(31.5, "ok", "") == [], "an answer that nobody waits for"


def test_a_relay_that_dies_and_takes_the_endpoint_along_costs_ten_seconds_at_most() -> None:
    for told in (True, False):
        for phase in range(8):  # a probe may have begun just now
            relays = started(A, B)
            relays.run(phase * TURN)
            died = relays.now
            relays.dies(A, told=told)
            relays.until_reachable()
            assert relays.now - died <= NOTICED
            relays.run(3)
            assert relays.watch.relays()[B] == (True, "")
            relays.run(600)
            assert (len(relays.rebuilt), relays.watch.rebuilds, relays.watch.renewals) == (1, 1, 0)


def test_an_endpoint_that_is_stuck_on_another_relay_than_its_home_is_made_anew_as_soon() -> None:
    relays = started(A, B)
    died = relays.now
    relays.dies(B)
    relays.until_reachable()
    assert relays.now - died <= NOTICED
    relays.run(10)
    assert (relays.home, relays.watch.moves, relays.watch.rebuilds) == (A, 0, 1)
    assert relays.watch.reachable is True


def test_an_endpoint_is_made_anew_when_a_new_connection_did_not_help() -> None:
    for urls in ((A,), (A, B)):
        relays = started(*urls)
        relays.stuck = relays.now + 600
        relays.after(Renew(A), NOTICED)
        relays.after(Rebuild(), NOTICED)
        relays.run(10)
        assert (relays.watch.reachable, relays.watch.moves) == (True, 0)


def test_relays_that_are_away_are_no_reason_to_make_the_endpoint_anew() -> None:
    for state in ("down", "silent", "closed", "deaf"):
        relays = started(A, B)
        relays.state |= {A: state, B: state}
        relays.watch.lost(relays.now, [A, B, "https://never.heard.of"])
        relays.run(600)
        assert relays.rebuilt == []


def test_one_probe_that_is_lost_is_no_reason_unless_another_relay_is_gone() -> None:
    relays = started(A, B)
    relays.dies(B)
    relays.stuck = 0.0
    relays.run(GONE + 1)  # long ago
    relays.stuck = relays.now + 3
    relays.run(30)
    assert (relays.rebuilt, relays.watch.renewals, relays.watch.reachable) == ([], 0, True)


def test_a_relay_that_swallows_everything_makes_the_endpoint_anew_less_and_less_often() -> None:
    for urls in ((A,), (A, B)):
        relays = started(*urls)
        relays.state |= dict.fromkeys(urls, "swallows")
        relays.run(3_600)
        between = [later - sooner for sooner, later in pairwise(relays.rebuilt)]
        assert len(between) >= 3
        assert between[0] >= REBUILD_FIRST
        assert all(later >= sooner for sooner, later in pairwise(between[:3]))
        assert len(between) <= 10


STATES = st.sampled_from(["up", "down", "silent", "stuck"])


@given(st.lists(st.tuples(st.sampled_from([A, B]), STATES, st.booleans(), st.floats(1, 60)), max_size=12))
def test_whatever_relays_do_a_hub_is_reachable_soon_after_one_is_well(
    changes: list[tuple[str, str, bool, float]],
) -> None:
    relays = started(A, B)
    for url, state, sticks, seconds in changes:
        relays.state[url] = state
        if state == "down" and sticks:
            relays.dies(url)
        relays.run(seconds)
        assert relays.out != {A, B}, "no relay is left to choose"
    relays.state |= {A: "up", B: "up"}
    # An endpoint that was stuck just after it had been made anew is left to itself.
    relays.run(40 + max(0.0, relays.stuck - relays.now))
    assert relays.watch.reachable is True
    assert all(later - sooner >= REBUILD_FIRST for sooner, later in pairwise(relays.rebuilt))
