"""A hub's router as a target: peers connect, say anything, stop reading, and go, and nothing of it upsets the hub.

The router, its topics, limits and operations are the real ones; the endpoint and the clock are not (endpoint.py). What
must hold after every step is in Watch. Not here: the network, and the loop's timers: time passes when the script says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, Final, cast

from broker import _gossip_ext as ext
from broker.address_book import AddressBook
from broker.config import AccessConfig, AdmissionConfig, HubConfig, LimitsConfig, ScopeConfig, TopicsConfig
from broker.errors import FrameError
from broker.hub.administration import administer
from broker.hub.admission import Admission
from broker.hub.dialling import Dialling
from broker.hub.metrics import HubGauges, HubMetrics
from broker.hub.operations import HubOperations
from broker.hub.router import Router
from broker.protocol.codec import decode
from broker.protocol.named import Frame
from broker.protocol.routing import check_topic, is_reserved, matches
from broker.protocol.ticket import Ticket
from tests.fuzz.endpoint import Clock, FakeEndpoint
from tests.fuzz.peers import EPOCHS, NODES, Peers, event
from tests.fuzz.script import MAX_STEPS, Script

__all__ = ["FEW", "RINGS", "Play", "frozen", "hub"]

MOST_PEERS: Final = 6
READER: Final = ("a.>", "b")
WRITER: Final = ("a.*", "b")
FEW: Final = LimitsConfig(
    max_frame_bytes=4_096,  # the least a hub takes
    connections=5,
    connections_per_node=3,
    calls_in_flight_per_node=6,
    calls_in_flight=12,
    calls_in_flight_per_peer=5,
    subscriptions_per_node=5,
)
RINGS: Final = TopicsConfig(ring_events=16, most_topics=3, carriers={"a.x": "gossip", "b": "stream"})
ADMINS: Final = AdmissionConfig(admins=(NODES[0],))
SCOPES: Final = AccessConfig(
    scopes={
        "reader": ScopeConfig(subscribe=READER, call=("get", "hub.*")),
        "writer": ScopeConfig(publish=WRITER, offer=("get", "watch"), call=(">",)),
    },
    nodes={NODES[1]: ("reader", "writer"), NODES[2]: ("writer",)},
    default=("reader",),
)
OPEN: Final = HubConfig(open=True, http="", limits=FEW, topics=RINGS, admission=ADMINS)
SCOPED: Final = HubConfig(open=True, http="", limits=FEW, topics=RINGS, admission=ADMINS, access=SCOPES)


class Watch:
    """What was sent, looked at as those see it to whom it was sent."""

    def __init__(self, config: HubConfig, endpoint: FakeEndpoint, peers: Peers) -> None:
        self.scoped, self.endpoint, self.peers = bool(config.access.scopes), endpoint, peers
        self.asked: Counter[tuple[int, str]] = Counter()
        self.ended: Counter[tuple[int, str]] = Counter()
        self.node_of: dict[int, str] = {}

    def said(self, conn: int, frame: bytes) -> None:
        try:
            message = decode(frame)
        except FrameError:
            return
        if message.type == "call.requested" and isinstance(message.detail, dict):
            self.asked[conn, str(message.detail.get("requestId"))] += 1

    def look(self) -> None:
        sent, self.endpoint.sent = self.endpoint.sent, []
        for conn, frame in sent:
            assert len(frame) <= FEW.max_frame_bytes
            type, detail, meta = decode(frame)
            if not is_reserved(type):
                self._event(conn, type, detail, meta)
            elif type == "call.requested":
                assert detail["identity"]["id"] in NODES, "a forged identity"
                if isinstance(detail["input"], dict) and "by" in detail["input"]:
                    assert detail["identity"]["id"] == detail["input"]["by"], "somebody else's identity"
                self.peers.legs.setdefault(conn, []).append(detail["requestId"])
            elif type in ("call.completed", "call.error"):
                self.ended[conn, detail["requestId"]] += 1
                assert self.ended[conn, detail["requestId"]] <= self.asked[conn, detail["requestId"]]

    def _event(self, conn: int, topic: str, detail: Any, meta: dict[str, Any] | None) -> None:
        check_topic(topic)
        assert meta is not None
        author, reader = meta["author"], self.node_of[conn]
        if isinstance(detail, dict) and "by" in detail:
            assert author == detail["by"], "a forged author"
        if self.scoped and reader != NODES[0]:
            assert reader != NODES[2], "it has no scope to subscribe"
            assert any(matches(pattern, topic) for pattern in READER)
        if self.scoped and author != NODES[0]:
            assert author in NODES[1:3], "it has no scope to publish"
            assert any(matches(pattern, topic) for pattern in WRITER)


class Play:
    """One hub, and the steps of a script."""

    def __init__(self, script: Script, clock: Clock) -> None:
        self.script, self.clock = script, clock
        config = SCOPED if script.flag() else OPEN
        self.endpoint, self.peers = FakeEndpoint(), Peers(script)
        endpoint = cast(ext.Endpoint, self.endpoint)
        self.admission = Admission(config, endpoint, clock=clock.time)
        self.router = Router(endpoint, config, _metrics(), self.admission)
        dialling = Dialling(self.router, AddressBook(None))
        administer(HubOperations(self.router), self.router, lambda secret: Ticket(NODES[0], secret=secret), dialling)
        self.router.bind_loop(asyncio.get_running_loop())
        self.watch = Watch(config, self.endpoint, self.peers)
        self.last = 0

    def run(self) -> None:
        try:
            steps = (self._says, self._says, self._says, self._says, self._opens, self._goes, self._fills, self._drains,
                     self._waits, self._gossips)  # fmt: skip
            for _ in range(MAX_STEPS):
                if not self.script:
                    break
                self.script.one(steps)()
                self.settle()
            self._ends()
        finally:
            self.router.stop()
            self.admission.stop()

    # Steps

    def _conn(self) -> int:
        """One of those that are there; the first opens one."""
        if not self.endpoint.live:
            self._opens()
        return self.script.one(list(self.endpoint.live)) if self.endpoint.live else 0

    def _opens(self) -> None:
        if len(self.endpoint.live) < MOST_PEERS:
            self.last += 1
            node_id = self.script.one(NODES)
            if node_id not in self.admission.policy.deny:  # the extension lets in nobody who is
                self.connect(self.last, node_id)

    def connect(self, conn: int, node_id: str) -> None:
        self.watch.node_of[conn] = node_id
        self.endpoint.opened(conn, node_id)
        self.router.opened(conn, node_id, True, 0)

    def _says(self) -> None:
        for _ in range(self.script.number(1, 2)):
            if conn := self._conn():
                frames = [self.peers.message(conn, self.endpoint.live[conn]) for _ in range(self.script.number(1, 4))]
                if frames := [frame for frame in frames if frame]:  # the extension hands out no empty ones
                    self.says(conn, *frames)

    def says(self, conn: int, *frames: bytes) -> None:
        for frame in frames:
            self.watch.said(conn, frame)
        self.router.frames(conn, list(frames))

    def _goes(self) -> None:
        if conn := self._conn():
            self.endpoint.gone(conn)
            self.router.closed(conn, self.script.one((None, 0, 1, 2)), "gone", True)

    def _fills(self) -> None:
        if conn := self._conn():
            self.endpoint.full.add(conn)

    def _drains(self) -> None:
        if conn := self._conn():
            self.endpoint.full.discard(conn)
            self.router.drained(conn)

    def _waits(self) -> None:
        self.clock.now += self.script.one((0.001, 0.01, 0.5, 2.0, 31.0))
        self.tick()

    def tick(self) -> None:
        self.router._tick()
        self.router.swarms._tick()

    def _gossips(self) -> None:
        """Something from a swarm: the extension has checked the signature, and that each event says what its batch says
        of it, if it is JSON."""
        if not self.endpoint.swarms:
            return
        swarm, script = self.script.one(list(self.endpoint.swarms.values())), self.script
        author, epoch, first = script.one(NODES), script.one(EPOCHS[:2]), script.number(1, 6)
        match script.number(0, 4):
            case 0:
                swarm.full = not swarm.full
                self.router.swarms.swarm_drained(swarm.id)
            case 1:
                self.router.swarms.headed(swarm.id, author, epoch, first)
            case 2:
                self.router.swarms.lagged(swarm.id)
            case _:
                frames = [self._gossiped(swarm.topic, author, epoch, first + n) for n in range(script.number(1, 4))]
                self.router.swarms.gossiped(swarm.id, author, epoch, first, frames)

    def _gossiped(self, topic: str, author: str, epoch: str, seq: int) -> Frame:
        choice, frame = self.script.byte(), event(topic, {"by": author}, author, epoch, seq)
        if choice < 16:
            return (9, bytes(32)) if choice < 12 else frame.replace(b'"by"', b"by", 1)
        return frame

    def settle(self) -> None:
        """The end of a batch."""
        self.router.batch_done(1)
        while self.endpoint.ended:
            conn, code, reason = self.endpoint.ended.pop(0)
            self.router.closed(conn, code, reason, False)
            self.router.batch_done(1)
        self.watch.look()
        assert not self.router._out
        assert self.router.sessions.keys() <= self.endpoint.live.keys()
        assert len(self.router.topics.channels) <= RINGS.most_topics
        for node_id, sessions in self.router.by_node.items():
            held = sum(self.router.topics.subscriptions.count(conn) for conn in sessions)
            assert held <= FEW.subscriptions_per_node, node_id

    def _ends(self) -> None:
        """Everybody goes: nothing of them is left."""
        for conn in list(self.endpoint.live):
            self.endpoint.gone(conn)
            self.router.closed(conn, None, "gone", True)
        for _ in range(8):  # what a swarm waits for comes due step by step
            self.clock.now += 1_000.0
            self.tick()
            self.settle()
        hub = self.router
        assert not any(swarm.overlay.members() for swarm in hub.swarms.by_topic.values())
        assert not hub.swarms.members.peers.sessions
        left = (
            hub.sessions,
            hub.by_node,
            hub._held,
            hub._out_bytes,
            hub.topics.readers.channels,
            hub.topics.places._places,
        )
        assert not any(left), left
        assert (len(hub.calls), len(hub.topics.subscriptions), len(hub.topics._pauses)) == (0, 0, 0)
        assert hub.topics.ring_bytes == sum(channel.accounted for channel in hub.topics.channels.values())
        assert not any(len(group) for group in self.endpoint.groups)


@cache
def _metrics() -> HubMetrics:
    """Counters only: one for all inputs, since making one takes longer than a script."""
    return HubMetrics("fuzz", topic_labels=2, operation_labels=2, gauges=cast("Any", HubGauges))


@cache
def _timed() -> list[ModuleType]:
    """The hub's modules that read a clock."""
    return [one for name, one in sys.modules.items() if name.startswith("broker.hub.") and "time" in vars(one)]


@contextmanager
def frozen(clock: Clock) -> Iterator[None]:
    """The hub's modules with this clock, no log, and the same chance in every run."""
    modules = [
        module for name, module in sys.modules.items() if name.startswith("broker.hub.") and "time" in vars(module)
    ]
    level, chance = logging.root.manager.disable, random.getstate()
    logging.disable(logging.CRITICAL)
    random.seed(0)
    try:
        for module in modules:
            vars(module)["time"] = clock
        yield
    finally:
        logging.disable(level)
        random.setstate(chance)
        for module in modules:
            vars(module)["time"] = time


def hub(data: bytes) -> None:
    """No exception, no forged author or identity, nothing sent to whom it is not meant for, and nothing left behind."""

    async def play() -> None:
        Play(Script(data), clock).run()

    clock = Clock()
    loop = asyncio.new_event_loop()
    try:
        with frozen(clock):
            loop.run_until_complete(play())
    finally:
        loop.close()
