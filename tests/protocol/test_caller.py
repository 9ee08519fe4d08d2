"""A spoke's outgoing calls by example and with any JSON; then both ends of a stream joined by a hub in memory."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.errors import ExecutionFailed, FrameError
from broker.protocol import answering as asked
from broker.protocol import calls as hub
from broker.protocol.answering import Answering
from broker.protocol.caller import (
    GRACE,
    MAX_CALLS,
    SLACK,
    Caller,
    Effect,
    Error,
    Failed,
    Finished,
    Item,
    Member,
    Resolved,
    Send,
)
from broker.protocol.calls import CallLimits, CallTable
from broker.protocol.codec import decode, encode
from broker.protocol.registration import Operation, Registration


def on(caller: Caller, type: str, request_id: str, **more: Any) -> list[Effect]:
    return caller.on(type, {"requestId": request_id, **more}, 0.0)


@pytest.fixture
def caller() -> Caller:
    return Caller()


# What is sent


def test_a_call(caller: Caller) -> None:
    assert caller.start("1", "get", {"a": 1}, 10.0, 2.5, parent="leg-7") == {
        "requestId": "1",
        "operationId": "get",
        "input": {"a": 1},
        "stream": False,
        "timeoutMs": 2_500,
        "parentRequestId": "leg-7",
    }
    assert (len(caller), "1" in caller) == (1, True)
    assert on(caller, "call.responded", "1", output=5) == [Resolved("1", 5)]
    assert (len(caller), caller.next_deadline()) == (0, None)


def test_a_stream_and_a_roll_call(caller: Caller) -> None:
    stream = caller.start("1", "watch", None, 0.0, stream=True, window=8)
    assert stream == {"requestId": "1", "operationId": "watch", "input": None, "stream": True, "credit": 8}
    assert caller.next_deadline() is None
    roll = caller.start("2", "get", None, 0.0, 1, all=True)
    assert roll == {"requestId": "2", "operationId": "get", "input": None, "all": True, "timeoutMs": 1_000}


def test_misuse_is_a_value_error_and_changes_nothing(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    for request_id in ("1", "", "x" * 129):
        with pytest.raises(ValueError, match="request id"):
            caller.start(request_id, "get", None, 0.0)
    with pytest.raises(ValueError, match="a roll-call is not a stream"):
        caller.start("2", "get", None, 0.0, all=True, stream=True)
    with pytest.raises(ValueError, match="window"):
        caller.start("2", "get", None, 0.0, stream=True, window=0)
    with pytest.raises(ValueError, match="NaN"):
        caller.start("2", "get", None, 0.0, float("nan"))
    assert len(caller) == 1


@pytest.mark.parametrize(("timeout", "sent"), [(-5, 1), (0, 1), (0.0004, 1), (1.5, 1_500), (1e300, 3_600_000)])
def test_a_timeout_is_kept_within_reason(caller: Caller, timeout: float, sent: int) -> None:
    assert caller.start("1", "get", None, 0.0, timeout)["timeoutMs"] == sent
    assert caller.next_deadline() == sent / 1_000 + GRACE


def test_a_caller_is_bounded(caller: Caller) -> None:
    for n in range(MAX_CALLS):
        assert not caller.full
        caller.start(str(n), "get", None, 0.0)
    assert caller.full
    with pytest.raises(ExecutionFailed, match="1024 calls are in flight") as caught:
        caller.start("x", "get", None, 0.0)
    assert caught.value.retryable
    on(caller, "call.responded", "7")
    assert caller.start("x", "get", None, 0.0)["requestId"] == "x"


# How it ends


def test_each_call_ends_once(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert on(caller, "call.error", "1", code="ACCESS_DENIED", message="no", details=[1]) == [
        Failed("1", "ACCESS_DENIED", "no", [1])
    ]
    for type in ("call.responded", "call.completed", "call.error", "call.aborted", "call.else"):
        assert on(caller, type, "1") == []
    assert caller.stray == 5
    assert caller.give_up("1") == []
    assert caller.consumed("1") == []


def test_malformed_errors_are_errors(caller: Caller) -> None:
    malformed: list[dict[str, Any]] = [{}, {"code": 5, "message": []}, {"code": "", "message": None}]
    for n, more in enumerate(malformed):
        caller.start(str(n), "get", None, 0.0)
        assert on(caller, "call.error", str(n), **more) == [
            Failed(str(n), "UNKNOWN_ERROR", "the call failed without a message", None)
        ]


def test_a_peer_may_abort(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    caller.start("2", "get", None, 0.0)
    assert on(caller, "call.aborted", "1", reason="going") == [Failed("1", "ABORTED", "going", None)]
    assert on(caller, "call.aborted", "2", reason=5) == [Failed("2", "ABORTED", "aborted", None)]


def test_a_call_that_completes_has_no_answer(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert on(caller, "call.completed", "1") == [Failed("1", "EXECUTION_ERROR", "get ended without an answer", None)]


def test_giving_up(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    assert caller.give_up("1", "bored") == [Send("call.aborted", {"requestId": "1", "reason": "bored"})]
    assert caller.give_up("1") == []
    assert on(caller, "call.responded", "1") == []
    assert caller.next_deadline() is None


def test_a_silent_hub(caller: Caller) -> None:
    caller.start("1", "get", None, 100.0, 5)
    assert caller.next_deadline() == 105.0 + GRACE
    assert caller.tick(105.0) == []
    failed, abort = caller.tick(105.0 + GRACE)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.details) == ("TIMEOUT", {"retryable": True})
    assert abort == Send("call.aborted", {"requestId": "1", "reason": "deadline"})
    assert caller.tick(999.0) == []


def test_a_lost_connection(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0)
    caller.start("2", "watch", None, 0.0, stream=True)
    assert caller.lost("gone") == [
        Failed("1", "EXECUTION_ERROR", "get: gone", {"retryable": True}),
        Failed("2", "EXECUTION_ERROR", "watch: gone", {"retryable": True}),
    ]
    assert (len(caller), caller.lost()) == (0, [])


# Streams and roll-calls


def test_credit_is_given_back_by_halves(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=4)
    for n in range(4):
        assert on(caller, "call.responded", "1", output=n) == [Item("1", n)]
    assert caller.consumed("1") == []
    assert caller.consumed("1") == [Send("call.credit", {"requestId": "1", "n": 2})]
    assert caller.consumed("1", 99) == [Send("call.credit", {"requestId": "1", "n": 2})]
    assert caller.consumed("1", 5) == []
    assert on(caller, "call.completed", "1") == [Finished("1", [])]


def test_a_window_of_one(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=1)
    on(caller, "call.responded", "1")
    assert caller.consumed("1") == [Send("call.credit", {"requestId": "1", "n": 1})]


def test_a_flood_ends_the_stream(caller: Caller) -> None:
    caller.start("1", "watch", None, 0.0, stream=True, window=4)
    for n in range(4 + SLACK):
        assert on(caller, "call.responded", "1", output=n) == [Item("1", n)]
    message = "watch: more items than its window lets wait"
    assert on(caller, "call.responded", "1") == [
        Failed("1", "EXECUTION_ERROR", message, None),
        Send("call.aborted", {"requestId": "1", "reason": message}),
    ]


def test_a_roll_call_says_who(caller: Caller) -> None:
    caller.start("1", "get", None, 0.0, all=True)
    ann = {"id": "id-ann", "name": "ann"}
    assert on(caller, "call.responded", "1", output=5, **{"from": ann}) == [Item("1", 5, Member("id-ann", "ann"))]
    failed = {"code": "X", "message": "y"}
    assert on(caller, "call.responded", "1", error=failed, **{"from": {"id": "b", "name": 5}}) == [
        Item("1", None, Member("b", None), Error("X", "y", None))
    ]
    assert caller.consumed("1", 5) == []
    for sender in (None, 5, {}, {"id": 5}):
        assert on(caller, "call.responded", "1", output=5, **{"from": sender}) == []
    assert caller.stray == 4
    assert on(caller, "call.completed", "1", missing=[ann, 5, {}, {"id": "c"}]) == [
        Finished("1", [Member("id-ann", "ann"), Member("c", None)])
    ]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
likely = json | st.sampled_from(["1", "2", "3", "a"])
keys = ["output", "code", "message", "details", "reason", "from", "error", "missing", "n", "id", "name"]
parts = likely | st.dictionaries(st.sampled_from(keys), likely)
details = json | st.builds(
    lambda rest, id: {**rest, "requestId": id}, st.dictionaries(st.sampled_from(keys), parts), likely
)
types = st.sampled_from(["call.responded", "call.completed", "call.error", "call.aborted", "call.credit", "call.x"])


@given(st.lists(st.tuples(types, details), max_size=6))
def test_any_json_gives_effects_or_one_frame_error(said: list[tuple[str, Any]]) -> None:
    caller = Caller()
    caller.start("1", "get", None, 0.0)
    caller.start("2", "watch", None, 0.0, stream=True)
    caller.start("3", "get", None, 0.0, all=True)
    last: list[str] = []
    codes: set[int] = set()
    for type, detail in said:
        try:
            effects = caller.on(type, detail, 0.0)
        except FrameError as error:
            codes.add(error.close_code)
        else:
            last += [effect.request_id for effect in effects if isinstance(effect, (Resolved, Finished, Failed))]
    assert codes <= {24}
    last += [effect.request_id for effect in caller.lost() if isinstance(effect, Failed)]
    assert sorted(last) == ["1", "2", "3"]


# Both ends and a hub between them

ANN, BOB = 1, 2


class Link:
    """Ann calls, Bob answers, a hub between; messages are bytes in queues until somebody delivers them."""

    def __init__(self, limits: CallLimits | None = None) -> None:
        self.table = CallTable(limits)
        self.caller, self.answering = Caller(), Answering()
        self.wires: dict[tuple[int, str], deque[bytes]] = {
            (peer, way): deque() for peer in (ANN, BOB) for way in ("to hub", "from hub")
        }
        self.now = 0.0
        self.ended: list[hub.Ended] = []
        self.heard: list[Effect] = []
        self.started: list[asked.Start] = []
        self.cancelled: list[str] = []
        self.table.register(ANN, "id-ann", "ann", Registration())
        self.table.register(BOB, "id-bob", "bob", Registration((Operation("watch", "subscription"), Operation("get"))))

    def send(self, peer: int, type: str, detail: Any) -> None:
        self.wires[peer, "to hub"].append(encode(type, detail))

    def waiting(self) -> list[tuple[int, str]]:
        return [wire for wire, queue in self.wires.items() if queue]

    def deliver(self, wire: tuple[int, str]) -> None:
        peer, way = wire
        type, detail, _ = decode(self.wires[wire].popleft())
        if way == "to hub":
            self.at_hub(peer, type, detail)
        elif peer == ANN:
            self.at_ann(self.caller.on(type, detail, self.now))
        else:
            self.at_bob(self.answering.on(type, detail, self.now))

    def at_hub(self, peer: int, type: str, detail: Any) -> None:
        if type == "call.requested":
            effects = self.table.requested(peer, {"id": peer}, detail, self.now, 0.0)
        else:
            effects = getattr(self.table, type.removeprefix("call."))(peer, detail, self.now)
        self.perform(effects)

    def perform(self, effects: list[hub.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, hub.Send):
                self.wires[effect.peer, "from hub"].append(encode(effect.type, effect.detail))
            elif isinstance(effect, hub.Ended):
                self.ended.append(effect)

    def at_ann(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.send(ANN, effect.type, effect.detail)
            else:
                self.heard.append(effect)

    def at_bob(self, effects: list[asked.Effect]) -> None:
        for effect in effects:
            match effect:
                case asked.Send(type, detail):
                    self.send(BOB, type, detail)
                case asked.Start():
                    self.started.append(effect)
                case asked.Cancel(request_id):
                    self.cancelled.append(request_id)

    def quiet(self) -> None:
        """Delivers until nothing is on its way."""
        while waiting := self.waiting():
            self.deliver(waiting[0])


def test_a_call_through_a_hub() -> None:
    link = Link()
    link.send(ANN, "call.requested", link.caller.start("1", "get", {"x": 1}, 0.0, 3))
    link.quiet()
    (start,) = link.started
    assert (start.operation, start.input, start.identity, start.timeout) == ("get", {"x": 1}, {"id": ANN}, 3.0)
    link.at_bob(link.answering.respond(start.request_id, "yes"))
    link.quiet()
    assert link.heard == [Resolved("1", "yes")]
    assert (len(link.table), len(link.caller), len(link.answering)) == (0, 0, 0)


def test_a_timeout_through_a_hub_comes_before_the_local_one() -> None:
    link = Link()
    link.send(ANN, "call.requested", link.caller.start("1", "get", None, 0.0, 3))
    link.quiet()
    due, local = link.table.next_deadline(), link.caller.next_deadline()
    assert due is not None
    assert local is not None
    assert due < local
    link.perform(link.table.tick(due))
    link.quiet()
    assert [effect.code for effect in link.heard if isinstance(effect, Failed)] == ["TIMEOUT"]
    assert link.cancelled == [link.started[0].request_id]
    assert len(link.answering) == 0


def test_a_subscription_called_once_stops() -> None:
    link = Link()
    link.send(ANN, "call.requested", link.caller.start("1", "watch", None, 0.0))
    link.quiet()
    (start,) = link.started
    assert start.window == 1
    link.at_bob(link.answering.item(start.request_id, "first") or [])
    assert link.answering.item(start.request_id, "second") is None
    link.quiet()
    assert link.heard == [Resolved("1", "first")]
    assert link.cancelled == [start.request_id]


class Streams(RuleBasedStateMachine):
    """Streams of different windows at once: Bob produces what credit allows, Ann consumes when she likes, and messages
    are late. Every item comes once, in order, and never more than the window is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(CallLimits(slack=0))
        self.windows: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        self.produced: dict[str, int] = {}
        """By leg."""
        self.got: dict[str, list[Any]] = {}
        self.unread: dict[str, int] = {}
        self.done: dict[str, Effect | None] = {}

    @initialize(windows=st.lists(st.integers(1, 9), min_size=1, max_size=3), length=st.integers(0, 60))
    def open(self, windows: list[int], length: int) -> None:
        for n, window in enumerate(windows):
            id = str(n)
            self.windows[id], self.lengths[id] = window, length
            self.got[id], self.unread[id], self.done[id] = [], 0, None
            detail = self.link.caller.start(id, "watch", {"id": id}, 0.0, stream=True, window=window)
            self.link.send(ANN, "call.requested", detail)

    @rule(which=st.integers(0, 9), times=st.integers(1, 5))
    def deliver(self, which: int, times: int) -> None:
        for _ in range(times):
            if waiting := self.link.waiting():
                self.link.deliver(waiting[which % len(waiting)])
        self.hear()

    @rule(which=st.integers(0, 9), times=st.integers(1, 20))
    def produce(self, which: int, times: int) -> None:
        if self.link.started:
            start = self.link.started[which % len(self.link.started)]
            for _ in range(times):
                self.produce_one(start)

    def produce_one(self, start: asked.Start) -> bool:
        """Whether there was something to send, and credit for it."""
        id, leg = start.input["id"], start.request_id
        n = self.produced.get(leg, 0)
        if n == self.lengths[id]:
            self.link.at_bob(self.link.answering.finish(leg))
            self.produced[leg] = n + 1
            return True
        if n > self.lengths[id] or (effects := self.link.answering.item(leg, n)) is None:
            return False
        self.link.at_bob(effects)
        self.produced[leg] = n + bool(effects)
        return bool(effects)

    @rule(which=st.integers(0, 9), n=st.integers(1, 9))
    def consume(self, which: int, n: int) -> None:
        ids = list(self.windows)
        id = ids[which % len(ids)]
        n = min(n, self.unread[id])
        self.unread[id] -= n
        self.link.at_ann(self.link.caller.consumed(id, n))

    @rule(which=st.integers(0, 99))
    def give_up(self, which: int) -> None:
        id = str(which)
        if self.done.get(id, self) is None:
            self.link.at_ann(self.link.caller.give_up(id))
            self.done[id] = Failed(id, "ABORTED", "mine", None)
            self.unread[id] = 0

    def hear(self) -> None:
        heard, self.link.heard = self.link.heard, []
        for effect in heard:
            assert isinstance(effect, (Item, Finished)), effect
            assert self.done[effect.request_id] is None
            if isinstance(effect, Item):
                self.got[effect.request_id].append(effect.output)
                self.unread[effect.request_id] += 1
            else:
                self.done[effect.request_id] = effect

    @invariant()
    def in_order_once_and_within_the_window(self) -> None:
        for id, items in self.got.items():
            assert items == list(range(len(items)))
            assert self.unread[id] <= self.windows[id]
        for start in self.link.started:
            id = start.input["id"]
            if self.done[id] is None:
                sent = min(self.produced.get(start.request_id, 0), self.lengths[id])
                assert sent - len(self.got[id]) + self.unread[id] <= self.windows[id]

    def teardown(self) -> None:
        """Everybody goes on until nothing moves: whatever was not given up has come to its end."""
        moving = True
        while moving:
            moving = bool(self.link.waiting())
            self.link.quiet()
            self.hear()
            for id, n in self.unread.items():
                self.unread[id] = 0
                self.link.at_ann(self.link.caller.consumed(id, n))
                moving |= n > 0
            for start in self.link.started:
                moving |= self.produce_one(start)
        for id, length in self.lengths.items():
            if isinstance(self.done[id], Finished):
                assert self.got[id] == list(range(length))
            else:
                assert isinstance(self.done[id], Failed)
        assert (len(self.link.table), len(self.link.caller), len(self.link.answering)) == (0, 0, 0)
        assert len(self.link.ended) == len(self.lengths)


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
