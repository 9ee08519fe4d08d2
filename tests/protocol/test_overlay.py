"""The swarm of one topic as the hub sees it: nobody is left without a way to hear, and nobody who must not is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.protocol import overlay
from broker.protocol.overlay import (
    MOVE,
    OVERLAP,
    SETTLES,
    WANT_INTERVAL,
    Admit,
    Banned,
    Changed,
    Dismiss,
    Effect,
    Ended,
    Enter,
    Finished,
    Gone,
    Joined,
    Leave,
    NotJoined,
    Overlay,
    PutBack,
    Revoke,
    TakeOut,
    Tell,
    Tick,
    Wanted,
)

HUB = "hub"


def first(among: Sequence[str], most: int) -> list[str]:
    return list(among[:most])


def swarm(*members: int, joined: bool = True) -> Overlay:
    one = Overlay(HUB, 1, first)
    assert one.begin() == [Enter(1)]
    for peer in members:
        one.handle(Admit(peer, f"n{peer}", True), 0.0)
        if joined:
            assert one.handle(Joined(peer, 1), 0.0) == []
    return one


def test_somebody_settles_from_when_it_is_told_until_it_hears_the_swarm() -> None:
    one = swarm(1)
    assert (one.settles(0.0), one.listens) == (False, True)
    one.handle(Admit(2, "n2", True), 1.0)
    assert one.settles(1.0)
    one.handle(Joined(2, 1), 2.0)
    assert not one.settles(2.0)
    one.handle(NotJoined(2), 50.0)
    one.handle(Wanted(2), 50.0)
    assert one.settles(50.0), "it has lost the swarm, and is to hear it again"
    one.handle(Joined(2, 1), 51.0)
    one.handle(Banned(frozenset({"n1"}), 2), 60.0)
    assert one.settles(60.0), "another generation is another swarm"


def test_who_never_comes_to_hear_the_swarm_does_not_settle_for_ever() -> None:
    one = swarm(1, joined=False)
    assert not one.listens
    now = 0.0
    while one.settles(now):
        now += WANT_INTERVAL
        one.handle(Wanted(1), now)
        assert now < SETTLES + WANT_INTERVAL
    assert now >= SETTLES
    one.handle(Wanted(1), now + 100.0)
    assert not one.settles(now + 100.0)


def test_a_spoke_is_told_of_the_hub_first_and_of_few_that_are_joined() -> None:
    one = swarm(1, 2, 3, 4, 5, 6)
    one.handle(Admit(7, "n7", True), 1.0)
    (told,) = one.handle(Admit(8, "n8", False), 1.0)
    assert told == Tell(8, (HUB, "n1", "n2"))


def test_the_freshest_come_first_and_a_spoke_is_never_told_of_itself() -> None:
    one = swarm(1, 2, 3)
    one.handle(Joined(3, 1), 5.0)
    assert one.handle(Wanted(1), 9.0) == [Tell(1, (HUB, "n3", "n2"))]
    for moment in (0.2, 0.4):
        assert one.handle(Wanted(1), 9.0 + moment) == [], "not at any rate that it likes"
    one.handle(Tick(), 9.9)
    assert one.next_due() == 9.0 + WANT_INTERVAL
    assert one.handle(Tick(), 9.0 + WANT_INTERVAL) == [Tell(1, (HUB, "n3", "n2"))]


def test_the_stream_goes_on_for_a_moment_after_a_spoke_has_joined() -> None:
    one = swarm(1)
    assert one.next_due() == OVERLAP
    assert one.handle(Tick(), OVERLAP - 0.01) == []
    assert one.handle(Tick(), OVERLAP) == [TakeOut(1)]
    assert one.is_out(1)
    assert one.handle(NotJoined(1), 1.0) == [PutBack(1)]
    assert not one.is_out(1)
    assert one.handle(NotJoined(1), 1.0) == []


def test_a_publisher_that_reads_nothing_is_not_taken_out_of_anything() -> None:
    one = swarm()
    one.handle(Admit(1, "n1", False), 0.0)
    one.handle(Joined(1, 1), 0.0)
    assert one.handle(Tick(), 99.0) == []
    assert one.readers == 0
    one.handle(Admit(1, "n1", True), 99.0)
    assert one.handle(Tick(), 99.0 + OVERLAP) == [TakeOut(1)], "until it subscribes"


def test_who_was_not_told_of_this_generation_cannot_have_joined_it() -> None:
    one = swarm(1)
    assert one.handle(Joined(9, 1), 0.0) == [], "a stranger"
    assert one.handle(Joined(1, 7), 2.0) == [Tell(1, (HUB,))], "one that is elsewhere is told again"


def test_a_ban_raises_the_generation_and_the_others_move() -> None:
    one = swarm(1, 2, 3)
    one.handle(Tick(), OVERLAP)
    effects = one.handle(Banned(frozenset({"n2"}), 4), 1.0)
    assert effects[:2] == [PutBack(2), Dismiss(2)]
    assert Enter(4) in effects
    assert {effect.peer for effect in effects if isinstance(effect, Tell)} == {1, 3}
    assert not one.knew("n2")
    assert [one.is_out(1), one.is_out(3)] == [True, True], "they hear the old one until they hear the new one"
    assert one.handle(Joined(1, 4), 1.1) == []
    assert one.handle(Joined(3, 4), 1.2) == [Leave(1)], "all have moved"


def test_who_does_not_move_is_fed_by_stream_again() -> None:
    one = swarm(1, 2, 3)
    one.handle(Tick(), OVERLAP)
    one.handle(Banned(frozenset({"n3"}), 2), 1.0)
    one.handle(Joined(1, 2), 1.1)
    assert one.handle(Tick(), 1.0 + MOVE) == [PutBack(2), Leave(1)]
    assert one.is_out(1)


def test_a_ban_of_somebody_who_never_knew_costs_nothing() -> None:
    one = swarm(1, 2)
    assert one.handle(Banned(frozenset({"n9"}), 2), 1.0) == []
    assert one.generation == 1


def test_beyond_its_memory_everybody_counts_as_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "KNEW", 1)
    one = swarm(1, 2)
    assert one.knew("n9")
    assert Enter(2) in one.handle(Banned(frozenset({"n9"}), 2), 1.0)


def test_several_are_banned_at_once() -> None:
    one = swarm(1, 2, 3)
    effects = one.handle(Banned(frozenset({"n1", "n2"}), 2), 1.0)
    assert [effect for effect in effects if isinstance(effect, Enter)] == [Enter(2)]
    assert one.members() == [3]


def test_who_knew_a_generation_from_before_is_not_known() -> None:
    one = Overlay(HUB, 3, first, unsure=True)
    one.begin()
    assert Enter(4) in one.handle(Banned(frozenset({"n9"}), 4), 1.0)
    assert one.handle(Banned(frozenset({"n8"}), 5), 1.0) == []


def test_the_end_waits_for_those_who_leave() -> None:
    one = swarm(1, 2)
    one.handle(Tick(), OVERLAP)
    assert one.handle(Ended(), 1.0) == [Dismiss(1), Dismiss(2)]
    assert one.handle(Admit(3, "n3", True), 1.0) == [], "nobody joins what ends"
    assert one.handle(NotJoined(1), 1.1) == [PutBack(1)]
    assert one.handle(Tick(), 1.0 + MOVE) == [PutBack(2), Leave(1), Finished()]
    assert len(one) == 0


def test_who_knew_is_remembered_after_it_has_gone() -> None:
    one = swarm(1, 2)
    assert one.handle(Gone(2), 1.0) == []
    assert Enter(2) in one.handle(Banned(frozenset({"n2"}), 2), 2.0)


def test_new_lists_are_told_to_everybody() -> None:
    one = swarm(1, 2)
    assert one.handle(Changed(), 1.0) == [Tell(1, (HUB, "n2")), Tell(2, (HUB, "n1"))]


class Swarms(RuleBasedStateMachine):
    """Whatever happens, in any order: what the effects add up to is what the rules promise."""

    peers = st.integers(1, 6)

    @initialize(seed=st.randoms(use_true_random=False))
    def begin(self, seed: object) -> None:
        self.now = 0.0
        self.one = Overlay(HUB, 1, lambda among, most: seed.sample(among, min(most, len(among))))  # type: ignore[attr-defined]
        self.entered: set[int] = set()
        self.out: set[int] = set()
        self.said: dict[int, int] = {}
        self.told: dict[int, set[int]] = {}
        self.nodes: dict[int, str] = {}
        self.banned: set[str] = set()
        self.finished = False
        self.do(self.one.begin())

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.finished, "nothing comes after the end"
            match effect:
                case Enter(generation):
                    assert generation not in self.entered
                    self.entered.add(generation)
                case Leave(generation):
                    self.entered.remove(generation)
                case Tell(peer, bootstrap):
                    assert bootstrap[0] == HUB
                    assert len(set(bootstrap)) == len(bootstrap) <= 5
                    assert self.nodes[peer] not in bootstrap
                    assert not self.banned & {*bootstrap, self.nodes[peer]}
                    joined = {self.nodes[one] for one in self.one.joined()}
                    assert set(bootstrap[1:]) <= joined
                    self.told.setdefault(self.one.generation, set()).add(peer)
                case TakeOut(peer):
                    assert self.said.get(peer) == self.one.generation, "it said that it hears it"
                    assert peer not in self.out
                    self.out.add(peer)
                case PutBack(peer):
                    self.out.remove(peer)
                case Dismiss(peer):
                    if peer not in self.one:
                        self.out.discard(peer)
                        self.said.pop(peer, None)
                case Finished():
                    assert not self.out
                    assert not self.entered
                    self.finished = True

    def step(self, event: overlay.Event) -> None:
        self.do(self.one.handle(event, self.now))

    @rule(peer=peers, reads=st.booleans(), node=st.integers(1, 5))
    def admit(self, peer: int, reads: bool, node: int) -> None:
        name = self.nodes.get(peer, f"n{node}") if peer in self.one else f"n{node}"
        if name not in self.banned and not self.finished:
            self.nodes[peer] = name
            self.step(Admit(peer, name, reads))

    @rule(peer=peers, behind=st.integers(0, 2))
    def joined(self, peer: int, behind: int) -> None:
        generation = self.one.generation - behind
        if peer in self.one and generation > 0:
            if not behind and not self.one.ending:
                self.said[peer] = generation
            self.step(Joined(peer, generation))

    @rule(peer=peers)
    def not_joined(self, peer: int) -> None:
        self.said.pop(peer, None)
        self.step(NotJoined(peer))
        assert peer not in self.out

    @rule(peer=peers)
    def wanted(self, peer: int) -> None:
        self.step(Wanted(peer))

    @rule(peer=peers)
    def revoke(self, peer: int) -> None:
        self.step(Revoke(peer))
        assert peer not in self.out

    @rule(peer=peers)
    def gone(self, peer: int) -> None:
        self.out.discard(peer)  # its connection and all that was sent on it are gone
        self.said.pop(peer, None)
        self.step(Gone(peer))

    @rule(node=st.integers(1, 5), seconds=st.sampled_from([0.0, 1.0]))
    def ban(self, node: int, seconds: float) -> None:
        self.now += seconds
        name = f"n{node}"
        knew, before = self.one.knew(name), self.one.generation
        self.banned.add(name)
        self.step(Banned(frozenset({name}), before + 1))
        if not self.one.ending:
            assert self.one.generation == before + knew
        assert all(self.nodes[peer] != name for peer in self.one.members())

    @rule()
    def changed(self) -> None:
        self.step(Changed())

    @rule(seconds=st.sampled_from([0.1, OVERLAP, 3.0, MOVE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.step(Tick())
        due = self.one.next_due()
        assert due is None or due > self.now

    @precondition(lambda self: not self.one.ending)
    @rule(really=st.integers(0, 5))
    def end(self, really: int) -> None:
        if not really:
            self.step(Ended())

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "one"):
            return
        assert self.out == {peer for peer in range(1, 7) if self.one.is_out(peer)}
        assert len(self.entered) <= 2
        if not self.one.ending:
            assert self.one.generation in self.entered
        if self.one.ending and self.one.next_due() is None:
            assert self.finished, "an end has a deadline"


TestSwarms = Swarms.TestCase
TestSwarms.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
