"""A spoke in the swarm of one topic: when it says that it hears it, when it takes that back, and what it does alone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.protocol.announcing import Announcing
from broker.protocol.membership import (
    ALONE,
    ASK_EVERY,
    LAG_EVERY,
    MOVE,
    RESTLESS,
    SETTLED,
    SILENT,
    UNBEATEN,
    Beat,
    Effect,
    Heard,
    HubDown,
    HubUp,
    Join,
    JoinPeers,
    Lagged,
    Leave,
    Membership,
    Neighbour,
    NoSwarm,
    Subscribe,
    TellHub,
    Tick,
    Told,
    ToldToLeave,
    Want,
)

HUB = "hub"


def told(id: str = "x", generation: int = 1, *bootstrap: str) -> Told:
    return Told(id, generation, bootstrap or (HUB, "a"), (HUB,))


def ids(machine: Membership) -> tuple[str, ...]:
    return machine.ids


def joined() -> Membership:
    machine = Membership(lambda: 0.0)
    machine.handle(HubUp(), 0.0)
    machine.handle(told(), 0.0)
    machine.handle(Neighbour("x", HUB, True), 0.0)
    beats(machine, "x", 0.0)
    assert machine.joined
    return machine


def beats(machine: Membership, id: str, now: float) -> list[Effect]:
    """As many as it takes; what came of the last."""
    for _ in range(SETTLED - 1):
        assert machine.handle(Beat(id), now) == []
    return machine.handle(Beat(id), now)


def test_told_to_join_it_joins_and_says_so_once_it_hears() -> None:
    machine = Membership(lambda: 0.0)
    assert machine.handle(HubUp(), 0.0) == []
    assert machine.handle(told(), 0.0) == [Join("x", (HUB, "a"))]
    assert machine.handle(Neighbour("x", "a", True), 0.1) == [], "a neighbour that may be as alone as we are"
    assert ids(machine) == ()
    assert machine.handle(Heard("x"), 0.2) == [], "others may be heard, and the tree not be there yet"
    assert beats(machine, "x", 0.2) == [TellHub(1, True, 1)]
    assert machine.handle(Heard("x"), 0.3) == []
    assert ids(machine) == ("x",)


def test_a_new_neighbour_bends_the_tree_so_heartbeats_count_anew() -> None:
    machine = Membership(lambda: 0.0)
    machine.handle(HubUp(), 0.0)
    machine.handle(told(), 0.0)
    for second in range(4):
        assert machine.handle(Neighbour("x", f"n{second}", True), float(second)) == []
        for _ in range(SETTLED - 1):
            assert machine.handle(Beat("x"), float(second)) == []
    assert machine.handle(Beat("x"), 3.5) == [TellHub(1, True, 4)]
    assert machine.handle(Neighbour("x", "late", True), 3.6) == [], "what is heard once goes on being heard"
    assert machine.joined


def test_a_swarm_that_many_join_is_heard_in_the_end() -> None:
    machine = Membership(lambda: 0.0)
    machine.handle(HubUp(), 0.0)
    machine.handle(told(), 0.0)
    for beat in range(SETTLED):
        assert not machine.joined
        machine.handle(Neighbour("x", f"n{beat}", True), RESTLESS + beat)
        machine.handle(Beat("x"), RESTLESS + beat)
    assert machine.joined


def test_that_it_was_overrun_is_said_once_a_wave_and_only_of_what_it_hears() -> None:
    machine = joined()
    assert machine.handle(Lagged("x"), 1.0) == [TellHub(1, True, 1, lagged=True)]
    assert machine.handle(Lagged("x"), 1.0 + LAG_EVERY / 2) == []
    assert machine.handle(Lagged("y"), 2.0) == []
    assert machine.handle(Lagged("x"), 2.0) == [TellHub(1, True, 1, lagged=True)]
    machine.handle(HubDown(), 3.0)
    assert machine.handle(Lagged("x"), 4.0) == []
    deaf = Membership(lambda: 0.0)
    deaf.handle(HubUp(), 0.0)
    deaf.handle(told(), 0.0)
    assert deaf.handle(Lagged("x"), 1.0) == []


def test_silence_is_said_before_it_subscribes_again_and_hearing_ends_it() -> None:
    machine = joined()
    assert machine.next_due() == SILENT
    assert machine.handle(Tick(), SILENT - 0.01) == []
    assert machine.handle(Tick(), SILENT) == [TellHub(1, False, 1, want=True), Subscribe()]
    assert machine.handle(Tick(), SILENT + ASK_EVERY - 0.01) == []
    assert machine.handle(Tick(), SILENT + ASK_EVERY) == [TellHub(1, False, 1, want=True)]
    assert machine.handle(told(), 8.0) == [JoinPeers("x", (HUB, "a"))]
    assert beats(machine, "x", 8.1) == [TellHub(1, True, 1)], "what it heard before does not count"


def test_who_hears_the_swarm_joins_no_more_peers_but_a_hub_that_came_back() -> None:
    """Each join moves the neighbours of others: a new author would shake the whole swarm."""
    machine = joined()
    assert machine.handle(told(), 1.0) == []
    machine.handle(HubDown(), 2.0)
    machine.handle(HubUp(), 3.0)
    assert machine.handle(told(), 3.1) == [JoinPeers("x", (HUB, "a"))]
    assert machine.handle(told(), 3.2) == []
    machine.handle(Neighbour("x", HUB, False), 4.0)
    assert machine.neighbours == 0
    assert machine.handle(told(), 4.1) == [JoinPeers("x", (HUB, "a"))]


def test_what_others_say_does_not_prove_that_the_hub_is_heard() -> None:
    machine = joined()
    for second in range(1, 7):
        machine.handle(Heard("x"), float(second))
        assert machine.handle(Tick(), float(second)) == []
    assert machine.next_due() == UNBEATEN
    assert machine.handle(Tick(), UNBEATEN) == [TellHub(1, False, 1, want=True), Subscribe()]


def test_without_neighbours_it_does_not_publish_and_soon_says_so() -> None:
    machine = joined()
    assert machine.handle(Neighbour("x", HUB, False), 1.0) == []
    assert ids(machine) == ()
    assert machine.next_due() == 1.0 + ALONE
    assert machine.handle(Tick(), 1.0 + ALONE) == [TellHub(1, False, 0, want=True), Subscribe()]


def test_a_neighbour_that_is_replaced_in_time_is_not_missed() -> None:
    machine = joined()
    machine.handle(Neighbour("x", HUB, False), 1.0)
    machine.handle(Neighbour("x", "b", True), 1.5)
    assert machine.handle(Tick(), 1.0 + ALONE) == []
    assert ids(machine) == ("x",)


def test_a_new_generation_is_joined_before_the_old_one_is_left() -> None:
    machine = joined()
    assert machine.handle(told("y", 2), 1.0) == [Join("y", (HUB, "a"))]
    assert ids(machine) == ("x",)
    machine.handle(Neighbour("y", "a", True), 1.1)
    assert ids(machine) == ("x", "y"), "who has moved already would not hear the old one"
    assert beats(machine, "y", 1.2) == [TellHub(2, True, 1), Leave("x")]
    assert ids(machine) == ("y",)


def test_a_new_generation_that_is_not_heard_in_time_leaves_it_to_the_stream() -> None:
    machine = joined()
    machine.handle(told("y", 2), 1.0)
    machine.handle(Beat("x"), 1.0)
    assert machine.next_due() == 1.0 + MOVE
    assert machine.handle(Tick(), 1.0 + MOVE) == [TellHub(2, False, 0, want=True), Subscribe(), Leave("x")]
    machine.handle(Neighbour("y", HUB, True), 5.0)
    assert beats(machine, "y", 5.1) == [TellHub(2, True, 1)]
    assert ids(machine) == ("y",)


def test_what_is_fed_by_stream_already_does_not_subscribe_again() -> None:
    machine = joined()
    machine.handle(told("y", 2), SILENT - 1)
    machine.handle(Tick(), SILENT)
    assert machine.handle(Tick(), SILENT - 1 + MOVE) == [TellHub(2, False, 0, want=True), Leave("x")]


def test_told_to_leave_it_says_so_subscribes_and_then_leaves() -> None:
    machine = joined()
    assert machine.handle(ToldToLeave(), 1.0) == [TellHub(1, False, 1), Subscribe(), Leave("x")]
    assert machine.idle
    assert machine.next_due() is None
    assert machine.handle(ToldToLeave(), 1.0) == [TellHub(0, False, 0)], "the hub may wait for the answer"


def test_a_program_that_wants_a_swarm_asks_until_it_is_told() -> None:
    machine = Membership(lambda: 0.5)
    assert machine.handle(Want(), 0.0) == []
    assert machine.handle(HubUp(), 1.0) == [TellHub(0, False, 0, want=True)]
    assert machine.handle(Want(), 1.1) == []
    assert machine.next_due() == 1.0 + ASK_EVERY * 1.25
    assert machine.handle(Tick(), 1.0 + ASK_EVERY * 1.25) == [TellHub(0, False, 0, want=True)]
    machine.handle(NoSwarm(), 4.0)
    assert (machine.idle, machine.next_due()) == (True, None)


def test_while_the_hub_is_away_the_swarm_goes_on_and_helps_itself() -> None:
    machine = joined()
    machine.handle(Neighbour("x", "b", True), 0.5)
    machine.handle(HubDown(), 1.0)
    assert machine.handle(Tick(), 100.0) == []
    assert ids(machine) == ("x",)
    machine.handle(Neighbour("x", HUB, False), 101.0)
    machine.handle(Neighbour("x", "b", False), 101.0)
    assert ids(machine) == ()
    due = machine.next_due()
    assert due == 101.0 + ALONE
    assert machine.handle(Tick(), due) == [JoinPeers("x", ("a", HUB, "b"))]
    assert machine.next_due() == due + ASK_EVERY
    machine.handle(Neighbour("x", "b", True), 103.0)
    assert ids(machine) == ("x",)
    assert machine.handle(HubUp(), 200.0) == [TellHub(1, True, 1)]
    assert machine.next_due() == 200.0 + SILENT


def test_silence_that_was_the_hubs_end_does_not_end_the_swarm() -> None:
    """A hub that was killed is silent before its connection is known to be gone."""
    machine = joined()
    machine.handle(Neighbour("x", "a", True), 1.0)
    machine.handle(Tick(), SILENT)
    assert ids(machine) == ()
    machine.handle(HubDown(), SILENT + 1)
    assert ids(machine) == ("x",)
    machine.handle(Heard("x"), SILENT + 2)
    assert machine.handle(HubUp(), 20.0) == [TellHub(1, True, 2)]


def test_a_hub_that_comes_back_to_a_lonely_spoke_is_asked() -> None:
    machine = joined()
    machine.handle(HubDown(), 1.0)
    machine.handle(Neighbour("x", HUB, False), 1.0)
    assert machine.handle(HubUp(), 9.0) == [TellHub(1, False, 0, want=True)]


def test_heads_come_soon_and_then_rarely() -> None:
    schedule, told_at, now = Announcing(), list[float](), 0.0
    assert not schedule.tick(1e9)
    schedule.published(100.0)
    while now < 140.0:
        assert schedule.due is not None
        now = schedule.due
        assert not schedule.tick(now - 0.01)
        assert schedule.tick(now)
        told_at.append(now - 100.0)
    assert told_at[:6] == [1.0, 2.0, 4.0, 8.0, 18.0, 28.0]
    schedule.published(now)
    assert schedule.due == now + 1.0


class AgainstAHub(RuleBasedStateMachine):
    """Whatever happens in whatever order, against what the hub and the extension know."""

    @initialize()
    def begin(self) -> None:
        self.machine = Membership(lambda: 0.5)
        self.now = 0.0
        self.up = False
        self.hub_says_out = False
        """What this spoke's hub believes: it is fed by the swarm alone."""
        self.inside: set[str] = set()
        self.peers: dict[str, set[str]] = {}
        self.beats: dict[str, int] = {}
        """Heartbeats since the swarm was joined."""
        self.heard: set[str] = set()
        self.by_word: set[str] = set()
        """Swarms that had a neighbour and were heard while the hub was away: then a word is enough."""
        self.asked = -100.0

    def apply(self, effects: list[Effect]) -> None:
        was_out, subscribed = self.hub_says_out, False
        for effect in effects:
            match effect:
                case Join(id):
                    assert id not in self.inside
                    self.inside.add(id)
                    self.peers[id] = set()
                    self.beats[id] = 0
                case JoinPeers(id):
                    assert id in self.inside
                case Leave(id):
                    self.inside.remove(id)
                    self.heard.discard(id)
                    self.by_word.discard(id)
                case TellHub():
                    assert self.up, "nothing is said to a hub that is away"
                    assert not subscribed, "it is said before the new subscription"
                    assert not (effect.joined and effect.want)
                    if effect.joined:
                        heard = (id for id in self.inside if self.beats[id] >= SETTLED or id in self.by_word)
                        assert any(self.peers[id] for id in heard)
                    self.hub_says_out = effect.joined
                case Subscribe():
                    assert not self.hub_says_out
                    subscribed = True
        if self.up:
            assert self.hub_says_out == self.machine.joined
            assert subscribed == (was_out and not self.hub_says_out), "nobody feeds it, or it is fed twice"

    def look(self, id: str) -> None:
        if not self.up and self.peers[id] and id in self.heard:
            self.by_word.add(id)

    @rule(id=st.sampled_from("xyz"), generation=st.integers(1, 3))
    def told(self, id: str, generation: int) -> None:
        if self.up:
            self.apply(self.machine.handle(told(id, generation), self.now))

    @rule()
    def leave(self) -> None:
        if self.up:
            self.apply(self.machine.handle(ToldToLeave(), self.now))

    @rule(data=st.data(), peer=st.sampled_from([HUB, "a", "b"]), up=st.booleans())
    def neighbour(self, data: st.DataObject, peer: str, up: bool) -> None:
        if self.inside:
            id = data.draw(st.sampled_from(sorted(self.inside)))
            (self.peers[id].add if up else self.peers[id].discard)(peer)
            self.look(id)
            self.apply(self.machine.handle(Neighbour(id, peer, up), self.now))

    @rule(data=st.data(), beat=st.booleans())
    def hear(self, data: st.DataObject, beat: bool) -> None:
        if self.inside:
            id = data.draw(st.sampled_from(sorted(self.inside)))
            self.beats[id] += beat
            self.heard.add(id)
            self.look(id)
            self.apply(self.machine.handle(Beat(id) if beat else Heard(id), self.now))

    @rule()
    def want(self) -> None:
        self.apply(self.machine.handle(Want(), self.now))

    @rule()
    def refused(self) -> None:
        if self.up:
            self.apply(self.machine.handle(NoSwarm(), self.now))

    @rule()
    def hub(self) -> None:
        self.up = not self.up
        self.hub_says_out = False
        effects = self.machine.handle(HubUp() if self.up else HubDown(), self.now)
        # The subscriptions were made with the connection, so there is nothing to make again.
        assert Subscribe() not in effects
        self.apply(effects)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 6.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(40):
            due = self.machine.next_due()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            effects = self.machine.handle(Tick(), self.now)
            assert effects, "a tick that is due has something to do"
            self.apply(effects)
        else:
            raise AssertionError("it ticks without end")
        self.now = end

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "machine"):
            return
        assert len(self.inside) <= 2
        assert set(self.machine.ids) <= self.inside
        assert all(self.peers[id] for id in self.machine.ids)
        assert self.machine.idle == (not self.inside and not self.machine.wanted)
        assert not self.machine.joined or self.inside


TestAgainstAHub = AgainstAHub.TestCase
TestAgainstAHub.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
