"""The hub's call table with any JSON, and against a model that does everything at once.

Not here: examples (test_calls.py and its sisters).
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.errors import FrameError
from broker.protocol.calls import HUB, CallLimits, CallTable, Complain, Effect, Ended, Send
from tests.protocol.talk import ANN, BOB, CARL, NOW_MS, Talk, offering

# Any JSON

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
values = json | st.sampled_from(["get", "watch", "put", "hub.ls", "1", "w", "r", *(f"leg-{n}" for n in range(1, 9))])
keys = ["operationId", "input", "parentRequestId", "deadline", "timeoutMs", "identity", "all", "stream", "credit", "n"]
keys += ["output", "code", "message", "details", "reason", "from", "missing"]
details = json | st.builds(
    lambda rest, request_id: {**rest, "requestId": request_id},
    st.dictionaries(st.sampled_from(keys), values),
    values,
)
VERBS = ["requested", "responded", "completed", "aborted", "error", "credit"]


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from([HUB, ANN, BOB, CARL]), details), max_size=8))
def test_any_json_gives_effects_or_one_frame_error(said: list[tuple[str, int, Any]]) -> None:
    talk = Talk(slack=2)
    talk.join(HUB, "hub.ls")
    talk.join(ANN, "get")
    talk.join(BOB, "get", "put", "watch")
    talk.asks(ANN, "1", "get")
    talk.asks(ANN, "w", "watch", credit=2)
    talk.asks(BOB, "r", "get", all=True)
    codes: set[int] = set()
    for verb, peer, detail in said:
        try:
            if verb == "requested":
                talk.table.requested(peer, {}, detail, talk.now, NOW_MS)
            else:
                getattr(talk.table, verb)(peer, detail, talk.now)
        except FrameError as error:
            codes.add(error.close_code)
    assert codes <= {24}
    for peer in (ANN, BOB, HUB):
        talk.table.gone(peer, talk.now)
    assert talk.empty()
    assert talk.table.next_deadline() is None
    assert talk.table.operations() == []


# Everything at once


class Model:
    """One call, as somebody who reads all messages sees it."""

    def __init__(self, caller: int, request_id: str, *, streaming: bool, roll: bool, parent: str | None):
        self.caller, self.request_id, self.streaming, self.roll = caller, request_id, streaming, roll
        self.parent = parent
        self.open: dict[str, int] = {}
        self.credit: int | None = None


class Everything(RuleBasedStateMachine):
    """Several peers do what they like. The model reads along and knows what must hold."""

    peers = st.sampled_from([HUB, ANN, BOB, CARL])
    limits = CallLimits(in_flight_per_peer=6, in_flight=12, slack=2, window=3, max_window=5)

    def __init__(self) -> None:
        super().__init__()
        self.table = CallTable(self.limits, leg_prefix="leg-")
        self.now = 0.0
        self.here: set[int] = {HUB}
        self.calls: dict[tuple[int, str], Model] = {}
        self.legs: dict[str, Model] = {}
        """Of open legs."""
        self.ever: list[str] = ["leg-0", "1"]
        self.aborted: set[str] = set()

    # What peers do

    @rule(peer=peers, ids=st.sets(st.sampled_from(["get", "put", "watch", "hub.ls"])))
    def register(self, peer: int, ids: set[str]) -> None:
        self.here.add(peer)
        self.table.register(peer, f"id-{peer}", None, offering(*sorted(ids)))

    @rule(
        peer=peers,
        request_id=st.sampled_from("12345"),
        operation=st.sampled_from(["get", "put", "watch", "hub.ls"]),
        more=st.fixed_dictionaries(
            {},
            optional={
                "timeoutMs": st.sampled_from([-1, 1, 500, 2_000, "x", 10**400]),
                "deadline": st.sampled_from([NOW_MS - 1, NOW_MS + 700, True]),
                "all": st.booleans(),
                "stream": st.booleans(),
                "credit": st.integers(-1, 9),
            },
        ),
        parent=st.none() | st.integers(0, 30),
    )
    def request(self, peer: int, request_id: str, operation: str, more: dict[str, Any], parent: int | None) -> None:
        if peer not in self.here:
            return
        detail = {"requestId": request_id, "operationId": operation, "identity": "forged", **more}
        if parent is not None:
            asked = [leg for leg, call in self.legs.items() if call.open[leg] == peer]
            likely = asked if asked and parent % 4 else self.ever
            detail["parentRequestId"] = likely[-1 - parent % len(likely)]
        before = self.calls.get((peer, request_id))
        effects = self.table.requested(peer, {"stamp": peer}, detail, self.now, NOW_MS)
        if before is not None:
            assert [type(effect) for effect in effects] == [Complain]
        elif isinstance(effects[-1], Ended):
            assert [type(effect) for effect in effects] == [Send, Ended]
            self.refused(peer, request_id, effects[0])
        else:
            self.accepted(peer, detail, effects)

    def refused(self, peer: int, request_id: str, send: Effect) -> None:
        assert isinstance(send, Send)
        assert (send.peer, send.type, send.detail["requestId"]) == (peer, "call.error", request_id)

    def accepted(self, peer: int, detail: dict[str, Any], effects: list[Effect]) -> None:
        """One or more legs, and nothing else."""
        streaming = detail.get("stream", detail["operationId"] == "watch") and not detail.get("all")
        parent = detail.get("parentRequestId")
        assert parent not in self.aborted
        if parent is not None and not (parent in self.legs and self.legs[parent].open[parent] == peer):
            parent = None
        call = Model(peer, detail["requestId"], streaming=streaming, roll=detail.get("all", False), parent=parent)
        self.calls[peer, call.request_id] = call
        assert effects
        assert call.roll or len(effects) == 1
        for send in effects:
            assert isinstance(send, Send)
            assert (send.type, send.detail["identity"]) == ("call.requested", {"stamp": peer})
            assert send.peer in self.here
            leg = send.detail["requestId"]
            assert leg not in self.ever
            self.ever.append(leg)
            call.open[leg] = send.peer
            self.legs[leg] = call
            if detail["operationId"] == "watch":
                call.credit = send.detail["credit"]
                assert 0 <= call.credit <= self.limits.max_window

    @rule(peer=peers, which=st.integers(0, 30), verb=st.sampled_from(VERBS[1:5]), output=st.integers())
    def answer(self, peer: int, which: int, verb: str, output: int) -> None:
        """Somebody answers a leg: often the one who was asked."""
        leg = self.ever[-1 - which % len(self.ever)]
        call = self.legs.get(leg)
        if call is not None and which % 3:
            peer = call.open[leg]
        stray = self.table.stray
        detail = {"requestId": leg, "output": output, "code": "X", "message": "m", "reason": "r"}
        effects: list[Effect] = getattr(self.table, verb)(peer, detail, self.now)
        own_call = verb == "aborted" and (peer, leg) in self.calls
        if own_call:
            self.read(effects, gave_up=(peer, leg))
        elif call is None or call.open.get(leg) != peer:
            assert effects == []
            assert self.table.stray == stray + 1
        else:
            self.answered(call, leg, verb, effects)

    def answered(self, call: Model, leg: str, verb: str, effects: list[Effect]) -> None:
        goes_on = verb == "responded" and call.streaming and call.credit is not None
        if goes_on:
            assert call.credit is not None
            call.credit -= 1
            assert call.credit >= -self.limits.slack - 1
        else:
            del call.open[leg]
            del self.legs[leg]
            # One that took its only answer from a subscription is told to stop.
            if verb == "responded" and call.credit is not None and not call.roll:
                call.open[leg] = next(e.peer for e in effects if isinstance(e, Send) and e.type == "call.aborted")
                self.legs[leg] = call
            else:
                self.orphan(leg)
        assert effects or call.roll
        self.read(effects)

    def orphan(self, leg: str) -> None:
        for call in self.calls.values():
            if call.parent == leg:
                call.parent = None

    @rule(peer=peers, request_id=st.sampled_from("12345"))
    def give_up(self, peer: int, request_id: str) -> None:
        stray, known = self.table.stray, (peer, request_id) in self.calls
        self.read(self.table.aborted(peer, {"requestId": request_id}, self.now), gave_up=(peer, request_id))
        assert self.table.stray == stray + (not known)

    @rule(peer=peers, request_id=st.sampled_from("12345"), n=st.sampled_from([1, 2, 50, 10**30, 0, -3, "x", True]))
    def credit(self, peer: int, request_id: str, n: Any) -> None:
        call = self.calls.get((peer, request_id))
        effects = self.table.credit(peer, {"requestId": request_id, "n": n}, self.now)
        if call is None:
            assert effects == []
        elif type(n) is not int or n < 1:
            assert any(isinstance(effect, Ended) and effect.code == "VALIDATION_ERROR" for effect in effects)
        self.read(effects)

    @rule(peer=peers)
    def leave(self, peer: int) -> None:
        effects = self.table.gone(peer, self.now)
        self.here.discard(peer)
        if peer == HUB:
            self.here.add(HUB)
        for call in [call for call in self.calls.values() if call.caller == peer]:
            del self.calls[peer, call.request_id]
            self.closed(call, effects, left=peer)
        for leg, call in list(self.legs.items()):
            if call.open.get(leg) == peer:
                del call.open[leg], self.legs[leg]
                self.orphan(leg)
        self.read(effects, left=peer)

    @rule(dt=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0, 31.0]))
    def wait(self, dt: float) -> None:
        due = self.table.next_deadline()
        if due is not None and due > self.now:
            assert self.table.tick(self.now) == []
        self.now += dt
        effects = self.table.tick(self.now)
        assert bool(effects) == (due is not None and due <= self.now)
        self.read(effects)
        after = self.table.next_deadline()
        assert after is None or after > self.now

    @precondition(lambda self: self.table.next_deadline() is not None)
    @rule()
    def wait_for_the_next(self) -> None:
        due = self.table.next_deadline()
        assert due is not None
        self.now = max(self.now, due)
        effects = self.table.tick(self.now)
        assert any(isinstance(effect, Ended) for effect in effects)
        self.read(effects)

    @rule(which=st.integers(0, 30), full=st.booleans())
    def undeliverable(self, which: int, full: bool) -> None:
        leg = self.ever[-1 - which % len(self.ever)]
        call = self.legs.get(leg)
        if call is None or call.open[leg] not in self.here:
            return
        send = Send(call.open[leg], "call.requested", {"requestId": leg})
        effects = self.table.undeliverable(send, "full", self.now, retryable=full)
        del call.open[leg], self.legs[leg]
        self.orphan(leg)
        self.read(effects)

    # What the model reads in the effects

    def read(self, effects: list[Effect], gave_up: tuple[int, str] | None = None, left: int | None = None) -> None:
        """Every terminal message ends a call that is open, and every end is told once."""
        ends = sum(isinstance(effect, Ended) for effect in effects)
        if left is not None:
            ends -= self.ended_by_leaving
        if gave_up in self.calls:
            assert gave_up is not None
            ends -= 1
            self.closed(self.calls.pop(gave_up), effects)
        for effect in effects:
            if isinstance(effect, Send):
                assert effect.peer in self.here
                assert effect.peer != left
                ends -= self.message(effect, effects)
        assert ends == 0
        self.ended_by_leaving = 0

    ended_by_leaving = 0

    def message(self, send: Send, effects: list[Effect]) -> bool:
        """Whether it was the last word to a caller."""
        id = send.detail["requestId"]
        if send.type == "call.aborted":
            assert id in self.aborted  # closed() saw it
            return False
        if send.type == "call.credit":
            call = self.legs[id]
            assert call.credit is not None
            call.credit += send.detail["n"]
            assert call.credit <= self.limits.max_window
            return False
        call = self.calls[send.peer, id]
        if send.type == "call.responded":
            assert ("from" in send.detail) == call.roll
            last = not call.streaming and not call.roll
        else:
            assert send.type in ("call.completed", "call.error")
            assert send.type == "call.error" or call.streaming or call.roll
            last = True
        if last:
            del self.calls[send.peer, id]
            self.closed(call, effects)
        return last

    def closed(self, call: Model, effects: list[Effect], left: int | None = None) -> None:
        """Whoever was still asked is told to stop."""
        self.ended_by_leaving += left is not None
        for leg, peer in call.open.items():
            del self.legs[leg]
            told = [e for e in effects if isinstance(e, Send) and (e.peer, e.type) == (peer, "call.aborted")]
            assert (leg in [send.detail["requestId"] for send in told]) == (peer != left)
            self.aborted.add(leg)
            if peer == left:
                self.orphan(leg)
                self.aborted.discard(leg)
        call.open = {}

    # What always holds

    @invariant()
    def agree(self) -> None:
        assert len(self.table) == len(self.calls)
        assert self.table._legs == len(self.legs) <= self.limits.in_flight
        for peer in self.here:
            assert self.table.in_flight(peer) == sum(call.open.get(leg) == peer for leg, call in self.legs.items())
        assert all(call.open for call in self.calls.values())
        assert {id(call) for call in self.legs.values()} == {id(call) for call in self.calls.values()}

    @invariant()
    def no_child_of_an_aborted_call_lives(self) -> None:
        assert not any(call.parent in self.aborted for call in self.calls.values())

    def teardown(self) -> None:
        for peer in (ANN, BOB, CARL, HUB):
            self.leave(peer)
        assert len(self.table) == self.table._legs == 0
        assert self.table.next_deadline() is None
        assert self.table.operations() == []
        assert not any(spoke.calls or spoke.legs for spoke in self.table._peers.values())


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
