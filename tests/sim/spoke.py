"""A simulated spoke: broker/spoke's own subscriptions, publisher, swarms and repairs, on a simulated connection.

What is mirrored, since the shell of it needs tasks: of `SimLink`, `send`, `control`, `send_topics` and `up` are those
of spoke/link.py; of `SimSpoke`, `opened`, `arrived`, `ended` and `keep` with `not_reached` are opened, frames, closed
and _keep there; `_registered`, `_down` and `_complaint` are _on_up, _on_down and _on_complaint of spoke/spoke.py, and
the receivers its _wire. Calls are in calling.py. Left out: being dialled, invites, a backlog of 8 MiB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from broker import _gossip_ext as real
from broker.errors import BrokerError, FrameError, TopicError
from broker.events import Event as Handed
from broker.protocol.codec import decode, encode
from broker.protocol.named import Named
from broker.protocol.publication import PublicationLimits
from broker.protocol.registration import GossipPlace, Operation, Registration, parse, to_detail
from broker.protocol.ticket import Ticket
from broker.protocol.wire import GOSSIP, RESERVED_PREFIXES, CloseCode
from broker.spoke.hubs import KnownHubs
from broker.spoke.options import SpokeOptions
from broker.spoke.publisher import Publisher
from broker.spoke.repairs import Repairs
from broker.spoke.subscription import Subscription
from broker.spoke.subscriptions import Subscriptions
from broker.spoke.swarms import Swarms
from tests.sim.asks import Asks
from tests.sim.calling import OPERATIONS, Answers, Calls
from tests.sim.checker import Checker, Event, Key, Reading
from tests.sim.endpoint import SimEndpoint
from tests.sim.gossip import Gossip
from tests.sim.network import CALLS, TOPICS, Wire
from tests.sim.recorders import RecordedPublication, RecordedSequences
from tests.sim.scenario import SpokeSpec, SubSpec
from tests.sim.world import Failure, Process

__all__ = ["SimSpoke"]

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0
REFUSED = (CloseCode.BANNED, CloseCode.NOT_ADMITTED)
ANSWERS = ("call.responded", "call.completed", "call.error")
QUESTIONS = ("call.requested", "call.aborted", "call.credit")
RETRY = 0.02
"""Seconds until a program that found no room tries again."""


class SimLink:
    """spoke/link.py, as far as the other shells know it."""

    def __init__(self, process: Process, endpoint: SimEndpoint) -> None:
        self._process, self.endpoint = process, endpoint
        self.wire: Wire | None = None
        self.up = False
        self.named = Named(real.event_hash)

    def control(self, type: str, detail: Any) -> None:
        if self.wire is not None:
            self.wire.out(cast(Any, self._process)).send([encode(type, detail)], CALLS)

    def send(self, type: str, detail: Any) -> bool:
        """A call that is asked before the hub has registered would not be told that the connection ended."""
        frame = encode(type, detail)
        return self.up and self.wire is not None and self.wire.out(cast(Any, self._process)).send([frame], CALLS)

    def send_topics(self, frames: list[bytes]) -> bool:
        return self.wire is not None and self.wire.out(cast(Any, self._process)).send(frames, TOPICS)


class SimSpoke(Process):
    """``dial`` tries to reach the hub of a NodeId and calls `opened` or `not_reached`. ``answerable``: what the hub
    that it is connected to could answer for, which only the judge asks."""

    def __init__(
        self,
        gossip: Gossip,
        name: str,
        node_id: str,
        spec: SpokeSpec,
        checker: Checker,
        asks: Asks,
        *,
        life: int,
        ticket: Ticket,
        dial: Callable[[SimSpoke, str], None],
        answerable: Callable[[SimSpoke], Iterable[tuple[Key, int]]],
    ) -> None:
        super().__init__(gossip.world, name, offset=spec.offset + 10.0 * life, rate=spec.rate)
        self.node_id, self.spec, self.checker = node_id, spec, checker
        self._dial, self._answerable = dial, answerable
        self.endpoint = SimEndpoint(self, node_id, gossip)
        self.link = SimLink(self, self.endpoint)
        self.banned = False
        self.speed, self.pause = spec.speed, spec.pause
        self._reading = False
        self._attempt = self._turn = 0
        self.hubs = KnownHubs(None)
        self.hubs.given(ticket)
        self._to_publish: dict[str, deque[Any]] = {}
        self._retrying = False
        self.subs: list[Subscription] = []
        self.run(self._begin, asks)

    def _begin(self, asks: Asks) -> None:
        link, control = cast(Any, self.link), self.link.control
        self.subscriptions = Subscriptions(control)
        self.swarms = Swarms(link, self.subscriptions, lambda: SpokeOptions(gossip=self.spec.gossips))
        self.publisher = Publisher(
            send=self.link.send_topics,
            send_control=control,
            clock_ms=lambda: int(self.now * 1000),
            max_frame_bytes=1_048_576,
            ways=self.swarms,
        )
        limits = PublicationLimits(unacked_events=self.spec.unacked, retained_events=self.spec.retained)
        self.publisher._limits = limits
        self.publisher.identify(self.node_id)
        self.swarms.publisher = self.publisher
        self.repairs = Repairs(self.swarms, self.publisher, send=self.link.send_topics, control=control)
        self.calls = Calls(self, self.node_id, asks, self.link.send, control)
        self.answers = Answers(self, asks, self.calls, self.link.send, control)
        self.endpoint.of_swarms = self.swarms
        self.endpoint.batch_done = self._after_batch
        self._receivers: dict[str, Callable[[Any], None]] = {
            "hub.register": self._registered,
            "hub.error": self._complaint,
            "hub.realm": self.hubs.realm,
            "topic.ack": self._ack,
            "topic.head": self.subscriptions.on_head,
            "topic.lost": self.subscriptions.on_lost,
            "topic.swarm": self.swarms.told,
            "hub.peers": self.swarms.peers,
            "topic.repair": self.repairs.asked,
            "topic.batch": self.repairs.batch,
            **{type: self._to(self.calls.receive, type) for type in ANSWERS},
            **{type: self._to(self.answers.receive, type) for type in QUESTIONS},
        }

    @staticmethod
    def _to(receive: Callable[[str, Any], None], type: str) -> Callable[[Any], None]:
        return lambda detail: receive(type, detail)

    # -- its programs

    def subscribe(self, spec: SubSpec, since: Any) -> None:
        sub = Subscription(
            spec.patterns,
            since=since,
            policy=spec.policy,
            patience=spec.patience,
            bound=spec.bound,
            owner=cast(Any, self.subscriptions),
            gap_patience=self.subscriptions.gap_patience,
        )
        sequences = cast(RecordedSequences, sub._sequences)
        name = f"{self.name}/{len(self.subs) + 1}"
        sequences.reading = self.checker.begins(Reading(name, spec.patterns, since, spec.policy, sequences))
        sequences.answerable = lambda: self._answerable(self)
        self.subs.append(sub)
        self.run(self.subscriptions.begin, sub)

    def publish(self, topic: str, details: list[Any]) -> None:
        self._to_publish.setdefault(topic, deque()).extend(details)
        self.run(self._publish_on)

    def _publish_on(self) -> None:
        """Each topic's program publishes while there is room, and tries again when there was none."""
        for topic, details in self._to_publish.items():
            while details and self._has_room(topic):
                _at_once(self.publisher.publish(topic, details.popleft(), timeout=None))
            if (box := self.publisher._boxes.get(topic)) is not None and box.refused is not None:
                details.clear()  # AccessDenied to the program
        if any(self._to_publish.values()) and not self._retrying:
            self._retrying = True
            self.later(RETRY, self._retry)

    def _has_room(self, topic: str) -> bool:
        box = self.publisher._boxes.get(topic)
        return box is None or (box.refused is None and not box.full)

    def _retry(self) -> None:
        self._retrying = False
        self._publish_on()

    def _after_batch(self) -> None:
        self.subscriptions.on_batch()
        for sub in self.subs:
            self.checker.look(self.reading_of(sub))
        self._read_on()

    def reading_of(self, sub: Subscription) -> Reading:
        reading = cast(RecordedSequences, sub._sequences).reading
        assert reading is not None
        reading.over = reading.over or sub._ended
        return reading

    def _read_on(self) -> None:
        if not self._reading and any(sub.queued for sub in self.subs):
            self._reading = True
            self.later(self.pause, self._read)

    def _read(self) -> None:
        self._reading = False
        for sub in self.subs:
            for _ in range(min(self.speed, sub.queued)):
                event = _at_once(sub.__anext__())
                meta = event.meta
                read = Event(event.type, meta["author"], meta["epoch"], meta["seq"], event.detail)
                self.checker.reads(self.reading_of(sub), read)
        self._read_on()

    def hurry(self) -> None:
        """Its programs read all they can from now on."""
        self.speed, self.pause = 1_000_000, 0.01
        self.run(self._read_on)

    # -- the link

    def keep(self) -> None:
        """From now on there is a connection, as far as the network lets."""
        if self.link.wire is None and not self.banned:
            self._dial(self, self.hubs.nth(self._turn).node_id)

    def not_reached(self) -> None:
        self._turn += 1
        if len(self.hubs) > 1 and self._turn % len(self.hubs):
            self.later(0.0, self.keep)  # to the next hub at once
            return
        most = min(BACKOFF_FIRST * 2**self._attempt, BACKOFF_MOST)
        self._attempt = min(self._attempt + 1, 16)
        self.later(self.chance.uniform(0.0, most), self.keep)

    def opened(self, wire: Wire) -> None:
        self.link.wire = self.endpoint.wires[wire.id] = wire
        operations = tuple(Operation(id, OPERATIONS[id]) for id in self.spec.offers)  # type: ignore[arg-type]
        gossips = self.spec.gossips
        registration = Registration(
            operations=operations,
            name=self.name,
            capabilities=(GOSSIP,) if gossips else (),
            gossip=GossipPlace(addrs=tuple(self.endpoint.addrs())) if gossips else None,
        )
        self.link.control("hub.register", to_detail(registration))

    def arrived(self, wire: Wire, frames: list[bytes]) -> None:
        if wire is self.link.wire:
            self.run(self._arrived, frames)

    def _arrived(self, frames: list[bytes]) -> None:
        events: list[Handed] = []
        try:
            for frame in frames:
                message = decode(frame, Handed)
                receiver = self._receivers.get(message.type)
                if receiver is not None:
                    if events:
                        before, events = events, []
                        self.subscriptions.on_events(before)
                    receiver(message.detail)
                elif not message.type.startswith(RESERVED_PREFIXES):
                    if not self.link.named.right(message, frame):
                        raise Failure(f"{self.name} takes {message.type} {message.meta} for another than was named")
                    events.append(message)
            if events:
                self.subscriptions.on_events(events)
        except FrameError as error:
            raise Failure(f"{self.name} takes a message of the hub for a fault: {error}") from error
        self._after_batch()

    def has_room(self, wire: Wire) -> None:
        if wire is self.link.wire:
            self.run(self.publisher.drained)

    def ended(self, wire: Wire, code: int | None) -> None:
        if wire is not self.link.wire:
            return
        was_up, self.link.up, self.link.wire = self.link.up, False, None
        self.endpoint.wires.pop(wire.id, None)
        self.banned = self.banned or code in REFUSED
        if was_up:
            self._attempt = 0
            self.run(self._down)
        self.not_reached()

    # -- what the hub says

    def _registered(self, detail: Any) -> None:
        if not self.link.up:
            self.link.up = True
            hub = parse(detail, from_hub=True)
            self.subscriptions.on_up()
            self.publisher.connected(acknowledges="topic.ack" in hub.capabilities, max_frame_bytes=1_048_576)
            self.swarms.hub_up()

    def _down(self) -> None:
        self.subscriptions.on_down()
        self.swarms.hub_down()
        self.publisher.disconnected()
        self.calls.lost()
        self.answers.lost()

    def _ack(self, detail: Any) -> None:
        self.publisher.acknowledged(detail["topic"], detail["epoch"], detail["seq"], detail.get("window"))

    def _complaint(self, detail: Any) -> None:
        code, about, action = detail["code"], detail.get("about"), detail.get("action")
        if code == "NO_SWARM" and isinstance(about, str):
            self.swarms.refused(about, detail["message"])
        elif action == "publish":
            self.publisher.refused(about, detail["message"])
        elif action == "subscribe":
            self.subscriptions.refused(about, cast(BrokerError, TopicError(detail["message"], code=code)))

    # -- the judge

    def epochs(self) -> set[tuple[str, str]]:
        """(topic, epoch) of what it publishes."""
        return {(topic, box.publication.epoch) for topic, box in self.publisher._boxes.items()}

    @property
    def busy(self) -> str | None:
        if self.banned:
            return None
        if not self.link.up or self.link.wire is None or self.link.wire.over:
            return f"{self.name}: not connected"
        for topic, box in self.publisher._boxes.items():
            if box.refused is None and (box.unsent or box.publication.unacked or self._to_publish.get(topic)):
                return f"{self.name}: {topic} has {box.publication.unacked} unacknowledged"
        for sub in self.subs:
            if not sub._ended and (sub.queued or sub.paused or sub.next_due() is not None):
                return f"{self.name}: {sub.patterns} has {sub.queued} queued, is due at {sub.next_due()}"
        parts = (self.calls.busy, self.answers.busy)
        return next((f"{self.name}: {part}" for part in parts if part), None)

    def check(self) -> None:
        for box in self.publisher._boxes.values():
            cast(RecordedPublication, box.publication).check()
        self.calls.check()
        self.answers.check()


def _at_once(waiting: Any) -> Any:
    """What a coroutine gives that has nothing to wait for."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value
    raise Failure("a program waits where it should not")
