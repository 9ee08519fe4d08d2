"""Both ends of a call joined by a hub in memory: by example, and streams at any pace.

Not here: each of the three alone (test_caller.py, test_answering.py, test_calls.py), a network (tests/hub/).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.protocol import answering as asked
from broker.protocol import calls as hub
from broker.protocol.answering import Answering
from broker.protocol.caller import (
    Caller,
    Effect,
    Failed,
    Finished,
    Item,
    Resolved,
    Send,
)
from broker.protocol.calls import CallLimits, CallTable
from broker.protocol.codec import decode, encode
from broker.protocol.registration import Operation, Registration

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
