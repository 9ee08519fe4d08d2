"""A spoke: offers operations, asks for others', publishes and subscribes, over one connection that it keeps alive.

This file joins the parts and is what a program holds. Each has its own file: link (the connection), calls (asking),
answers, directs (connections with other spokes), publisher and subscriptions (topics), operations (typed functions).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from broker import _gossip_ext as ext
from broker.errors import FrameError
from broker.events import Event
from broker.protocol.registration import MAX_ADDRS, MAX_RELAYS, GossipPlace, Operation, Registration, parse, to_detail
from broker.protocol.routing import check_pattern
from broker.protocol.ticket import Ticket
from broker.protocol.wire import DIRECT, GOSSIP, PROTOCOL_VERSION, CloseCode
from broker.spoke.answers import Answers, current_call
from broker.spoke.calls import Answer, Calls, RollCall
from broker.spoke.complaints import Complaints
from broker.spoke.datagrams import Datagrams
from broker.spoke.directs import Directs, Neighbour
from broker.spoke.link import Link
from broker.spoke.members import Members
from broker.spoke.operations import Call, Handler, Kind, Offer, plain, typed
from broker.spoke.options import SpokeOptions
from broker.spoke.publisher import Published, Publisher
from broker.spoke.repairs import Repairs
from broker.spoke.stall import StallWatch
from broker.spoke.subscription import Policy, Since, Subscription
from broker.spoke.subscriptions import Subscriptions
from broker.spoke.swarms import JOIN_TIMEOUT, Swarms
from broker.spoke.ways import check_carrier

__all__ = ["Spoke"]

log = logging.getLogger("broker.spoke")

CAPABILITIES = ("topic.ack", "topic.repair", "call.credit")
DEFAULT_TIMEOUT = 30.0

Listener = Callable[[Event], Awaitable[None]]
F = TypeVar("F", bound=Callable[..., Any])


class Spoke:
    """One identity with its operations and listeners. Use :meth:`run` to serve, or :func:`connect` for a session."""

    def __init__(
        self, name: str | None = None, *, secret: bytes | None = None, options: SpokeOptions | None = None
    ) -> None:
        self.name = name
        self.options = options or SpokeOptions()
        self._offers: dict[str, Offer] = {}
        self._listeners: list[tuple[str, Listener]] = []
        self._listening: list[asyncio.Task[None]] = []
        self._draining = False
        self._link = Link(secret=secret or ext.generate_secret(), options=self.options, registration=self._registration)
        self._calls = Calls(self._link.send, self._link.control)
        self._answers = Answers(self._offers, self._link.send, self._link.control)
        self._subscriptions = Subscriptions(self._link.control)
        self._datagrams = Datagrams(self._link, self._subscriptions)
        self._swarms = Swarms(self._link, self._subscriptions, lambda: self.options)
        self._publisher = Publisher(
            send=self._link.send_topics,
            send_control=self._link.control,
            clock_ms=lambda: time.time_ns() // 1_000_000,
            max_frame_bytes=self.options.max_frame_bytes,
            ways=self._swarms,
        )
        self._swarms.publisher = self._publisher
        self._repairs = Repairs(self._swarms, self._publisher, send=self._link.send_topics, control=self._link.control)
        self._directs = Directs(self._link, self._calls, self._offers, lambda: self.options)
        Members(self._link, self._subscriptions, self._swarms, self._repairs)
        self._rolls = True
        self._wire()

    def _wire(self) -> None:
        self.trouble = self._link.trouble  # why it is not connected, as far as that is known; None while it is
        link, calls, answers = self._link, self._calls, self._answers
        for type in ("call.responded", "call.completed", "call.error"):
            link.receivers[type] = partial(calls.receive, type)
        link.receivers["call.requested"] = answers.requested
        for type in ("call.aborted", "call.credit"):
            link.receivers[type] = partial(answers.receive, type)
        link.receivers["hub.register"] = link.registered
        link.receivers["hub.realm"] = link.hubs.realm
        link.receivers["hub.error"] = Complaints(self._swarms, self._publisher, self._subscriptions).on
        link.receivers["topic.ack"] = self._on_ack
        link.receivers["topic.head"] = self._subscriptions.on_head
        link.receivers["topic.lost"] = self._subscriptions.on_lost
        link.receivers["topic.swarm"] = self._swarms.told
        link.receivers["hub.peers"] = self._swarms.peers
        link.receivers["topic.repair"] = self._repairs.asked
        link.receivers["topic.batch"] = self._repairs.batch
        link.swarms = self._swarms
        answers.resume = self._directs.resuming.resume
        self._directs.name = lambda: self.name
        self._subscriptions.swarm = self._swarms.joined
        link.on_events = self._subscriptions.on_events
        link.on_batch = self._subscriptions.on_batch
        link.on_datagram = self._datagrams.arrived
        link.on_drained, link.on_up, link.on_down = self._on_drained, self._on_up, self._on_down

    # Declaring.

    def operation(self, id: str, *, kind: Kind | None = None, description: str | None = None) -> Callable[[F], F]:
        """Decorator: the function answers calls of ``id``. Its type hints give the schemas; an async generator is a
        subscription."""

        def declare(function: F) -> F:
            self._add(typed(function, id, kind=kind, description=description))
            return function

        return declare

    def offer(
        self,
        id: str,
        handler: Handler,
        *,
        kind: Kind = "mutation",
        description: str | None = None,
        input_schema: dict[str, Any] | None = None,
    ) -> None:
        """``handler(input, call)`` answers calls of ``id``, input and output as they are on the wire."""
        self._add(plain(Operation(id=id, kind=kind, description=description, input_schema=input_schema), handler))

    def on(self, pattern: str) -> Callable[[Listener], Listener]:
        """Decorator: the coroutine function gets every event whose topic matches, one at a time."""
        check_pattern(pattern)

        def declare(listener: Listener) -> Listener:
            if not inspect.iscoroutinefunction(listener):
                raise TypeError(f"a listener is an async function; {listener!r} is not")
            self._listeners.append((pattern, listener))
            return listener

        return declare

    def _add(self, offer: Offer) -> None:
        if offer.operation.id in self._offers:
            raise ValueError(f"{offer.operation.id} is offered already")
        self._offers[offer.operation.id] = offer
        if self._link.up:
            self._link.control("hub.register", self._registration())
            self._directs.offers_changed()

    @property
    def operations(self) -> tuple[str, ...]:
        """What it offers, by id."""
        return tuple(self._offers)

    def configure(
        self, *, name: str | None = None, secret: bytes | None = None, options: SpokeOptions | None = None
    ) -> None:
        """For whoever runs a spoke that somebody else has written, before it starts. None leaves a thing as it is."""
        self.name = name or self.name
        self.options = options or self.options
        self._link.configure(secret, self.options)

    # Life.

    @property
    def node_id(self) -> str:
        """This spoke's identity; empty before it has started."""
        return self._link.node_id

    @property
    def hub_node_id(self) -> str:
        return self._link.hub_node_id

    @property
    def connected(self) -> bool:
        return self._link.up

    def start(self, ticket: str | Ticket) -> None:
        """Begins to connect, and from then on stays connected as far as the network lets. Inside a running loop."""
        parsed = ticket if isinstance(ticket, Ticket) else Ticket.decode(ticket)
        self._link.bind(parsed)
        self._began()
        self._link.keep(parsed)

    def listen(self) -> Ticket:
        """Waits to be dialled instead (options.accept). Returns the ticket for ``broker hub --dial``: who has it may be
        this spoke's hub."""
        self._link.bind()
        self._began()
        at = self._link.endpoint
        assert at is not None
        return Ticket(at.node_id, tuple(at.addrs()), self.options.relays, self._link.hubs_reason.secret)

    def _began(self) -> None:
        self._publisher.identify(self.node_id)
        self._listening = [
            asyncio.create_task(self._listen(pattern, listener), name=f"broker-on-{pattern}")
            for pattern, listener in self._listeners
        ]
        self._listening.append(asyncio.create_task(StallWatch(self._link, self.options.idle_timeout).run()))

    async def run(self, ticket: str | Ticket) -> None:
        """Serves until :meth:`close`; connects again for ever. Raises Refused when the hub will not have this spoke."""
        self.start(ticket)
        try:
            await self._link.wait_closed()
        finally:
            await self.close()

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Raises what stands in the way at the deadline: Refused, Unreachable."""
        await self._link.wait_up(timeout)

    async def drain(self, timeout: float) -> int:
        """Offers nothing any more and finishes what it answers. Returns how many were cancelled at the deadline."""
        self._draining = True
        self._link.control("hub.register", self._registration())
        return sum(await asyncio.gather(self._answers.finish(timeout), self._directs.finish(timeout)))

    async def close(self) -> None:
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        self._listening = []
        self._subscriptions.fail_all()
        self._publisher.close()
        self._swarms.close()
        self._directs.close()
        await self._answers.finish(0)
        await self._link.close()

    # Asking, publishing, subscribing.

    async def call(self, operation: str, input: Any = None, *, timeout: float = DEFAULT_TIMEOUT) -> Any:
        """The output. Raises CallError with the remote's code; CallTimeout after ``timeout`` seconds."""
        way = self._directs.way(operation)
        return await self._calls.call(operation, input, timeout=timeout, parent=_parent(), way=way)

    def stream(
        self, operation: str, input: Any = None, *, timeout: float | None = None, window: int = 256
    ) -> AsyncIterator[Any]:
        """The outputs of a subscription operation. At most ``window`` are under way unread. Without a timeout it lives
        as long as both its ends are connected."""
        way = self._directs.way(operation, stream=True)
        return self._calls.stream(operation, input, timeout=timeout, window=window, parent=_parent(), way=way)

    async def roll_call(self, operation: str, input: Any = None, *, timeout: float = 1.0) -> RollCall:
        """One answer from each spoke that offers ``operation``, and the names of those that did not answer in time. A
        hub that knows no roll-call is asked plainly: one answer, in the hub's name."""
        if not self._rolls:
            output = await self._calls.call(operation, input, timeout=timeout, parent=_parent())
            return RollCall([Answer(self.hub_node_id, None, output)])
        return await self._calls.roll_call(operation, input, timeout=timeout, parent=_parent())

    async def direct(self, spoke: str, *, timeout: float = 10.0) -> Neighbour:
        """From now on there is a connection of its own to another spoke (its name or NodeId), as far as the hub and the
        networks let: calls and streams of what it offers take it by themselves, and go by way of the hub when there is
        none. Raises CallError when the hub or that spoke refuses, Unreachable or Refused when they cannot connect."""
        return await self._directs.direct(spoke, timeout)

    def part(self, spoke: str) -> None:
        """Ends what :meth:`direct` began."""
        self._directs.part(spoke)

    def neighbours(self) -> list[Neighbour]:
        """Whom it can call directly now."""
        return self._directs.neighbours()

    async def publish(
        self, topic: str, detail: Any = None, *, carrier: str = "auto", timeout: float | None = None
    ) -> Published:
        """The event's place in this author's sequence. Waits, at most ``timeout`` s, while the buffer is full.

        ``carrier``: ``auto`` goes the way that the hub has chosen for the topic. ``stream`` goes to the hub alone.
        ``gossip`` asks for a swarm and begins when it is heard (TopicError when the hub will have none). ``datagram``
        sends it once, without a place (``("", 0)``), and never waits; EventTooLarge names the limit of the path."""
        check_carrier(carrier)
        if carrier == "datagram":
            return self._datagrams.publish(topic, detail)
        if carrier == "gossip" and not self._swarms.was_heard(topic):
            await self._swarms.joined(topic, JOIN_TIMEOUT if timeout is None else min(timeout, JOIN_TIMEOUT))
        return await self._publisher.publish(topic, detail, timeout=timeout, stream_only=carrier == "stream")

    async def flush(self, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Returns when the hub has acknowledged everything published. CallTimeout names what is still open."""
        await self._publisher.flush(timeout)

    def subscribe(
        self,
        *patterns: str,
        since: Since = None,
        policy: Policy = "block",
        patience: float = 2.0,
        carrier: str = "auto",
    ) -> Subscription:
        """Events whose topic matches, from now on, from ``"start"`` or from a seq.

        ``carrier``: ``auto`` is the hub's choice. ``gossip`` asks for a swarm of each topic and begins when it is
        heard; it takes names, no patterns. ``stream`` keeps this spoke out of them for as long as it lives.
        ``datagram``: those alone; with any other carrier they come too (:attr:`Event.reliable` tells them apart)."""
        if not patterns:
            raise ValueError("subscribe to at least one pattern")
        check_carrier(carrier)
        if carrier == "gossip" and (wild := [one for one in patterns if "*" in one or ">" in one]):
            raise ValueError(f"carrier 'gossip' takes the names of topics, not the pattern {wild[0]!r}")
        for pattern in patterns if carrier == "stream" else ():
            self._swarms.by_stream(pattern)
        return Subscription(
            patterns,
            since=since,
            policy=policy,
            patience=patience,
            bound=self.options.subscription_events,
            owner=self._subscriptions,
            gap_patience=self._subscriptions.gap_patience,
            gossip=carrier == "gossip",
            only_datagrams=carrier == "datagram",
        )

    def counts(self) -> dict[str, int]:
        """What it has done so far: ``connects``, ``calls_running``, ``published``, ``given_up`` (published, and then
        larger than the hub takes), ``received``; and ``datagrams_sent``, ``_unsent``, ``_received``, ``_bad``."""
        return {
            "connects": self._link.connects,
            "calls_running": self._answers.running + self._directs.running,
            "published": self._publisher.published,
            "given_up": self._publisher.given_up,
            "received": self._subscriptions.received,
            **self._datagrams.counts(),
        }

    def gossip_counts(self) -> dict[str, int]:
        """Of the swarms that it is in (``Swarm.counters`` summed, ``swarms``, ``neighbours``), and of repairs:
        ``repairs_wanted`` here, ``repairs_asked`` of it and ``repairs_answered``."""
        return {
            **self._swarms.counts(),
            **self._repairs.counts,
            "repairs_wanted": self._subscriptions.repairs,
            "gone": self._publisher.gone,
        }

    def direct_counts(self) -> dict[str, int]:
        """Of direct connections: ``connections`` now; calls ``asked`` and ``answered`` over them, ``again`` (asked once
        more by way of the hub), ``resumed`` (the same, here), ``forgotten`` (not asked again, and stopped), ``denied``;
        ``by_hub``, calls asked of the hub; grants ``refused_...`` by their reason, connections ``cut`` by the hub."""
        calls, directs = self._calls, self._directs
        own = {"connections": len(directs.neighbours()), "asked": calls.direct, "again": calls.again}
        return {**own, "by_hub": calls.asked - calls.direct, **directs.resuming.counts, **directs.counts}

    def verdict_counts(self) -> dict[str, int]:
        """How many sequences of the present subscriptions are complete, repaired, lost, pending or unknown."""
        return self._subscriptions.verdict_counts()

    def carrier(self, topic: str) -> str:
        """The way that a topic's events take to and from here now: ``stream`` or ``gossip``."""
        return "gossip" if self._swarms.open(topic) else "stream"

    def on_call_ended(self, listener: Callable[[str, str, float], None]) -> None:
        """``listener(operation, code, seconds)`` is called for each call that was answered here."""
        self._answers.on_ended = self._directs.on_ended = listener

    @property
    def endpoint(self) -> ext.Endpoint | None:
        """The extension's, for readings; None before it is bound and after close."""
        return self._link.endpoint

    def stats(self) -> ext.ConnectionStats | None:
        """A reading of the connection; None while there is none."""
        return self._link.stats()

    # Inside.

    def _registration(self) -> dict[str, Any]:
        return to_detail(
            Registration(
                operations=() if self._draining else tuple(offer.operation for offer in self._offers.values()),
                name=self.name,
                topics=tuple(pattern for pattern, _ in self._listeners),
                protocol=PROTOCOL_VERSION,
                capabilities=(*CAPABILITIES, *self._chosen()),
                gossip=self._place(),
            )
        )

    def _chosen(self) -> list[str]:
        """Capabilities that it was told to have."""
        chosen = {GOSSIP: self.options.gossip, DIRECT: self.options.introduced}
        return [word for word, has in chosen.items() if has]

    def _place(self) -> GossipPlace | None:
        """Where others can dial it."""
        endpoint = self._link.endpoint
        if endpoint is None or not self.options.gossip:
            return None
        return GossipPlace(
            addrs=tuple(endpoint.addrs())[:MAX_ADDRS],
            relays=tuple(endpoint.relay_urls())[:MAX_RELAYS],
            max=self._link.message_bytes,
        )

    def _on_up(self, hub_registration: Any) -> None:
        hub = parse(hub_registration, from_hub=True)
        capabilities, limit = hub.capabilities, self._link.limited(hub.max_frame_bytes)
        self._rolls, self._repairs.most = "call.all" in capabilities, limit
        self._calls.connected()
        self._answers.connected(credited="call.credit" in capabilities, max_frame_bytes=limit)
        self._subscriptions.on_up()
        self._publisher.connected(acknowledges="topic.ack" in capabilities, max_frame_bytes=limit)
        self._swarms.hub_up()
        self._directs.hub_up(hub, self._link.hub_node_id)

    def _on_drained(self) -> None:
        self._answers.drained()
        self._publisher.drained()

    def _on_down(self) -> None:
        self._subscriptions.on_down()
        self._swarms.hub_down()
        self._publisher.disconnected()
        self._calls.lost()
        self._answers.lost()

    def _on_ack(self, detail: Any) -> None:
        if not isinstance(detail, dict) or type(detail.get("seq")) is not int:
            raise FrameError("topic.ack needs topic, epoch and seq", close_code=CloseCode.BAD_MESSAGE)
        window = detail.get("window")
        self._publisher.acknowledged(
            str(detail.get("topic")),
            str(detail.get("epoch")),
            detail["seq"],
            max(0, window) if type(window) is int else None,
        )

    async def _listen(self, pattern: str, listener: Listener) -> None:
        async with self.subscribe(pattern) as events:
            async for event in events:
                try:
                    await listener(event)
                except Exception:
                    log.exception("the listener of %s failed on an event; it goes on with the next", pattern)


def _parent() -> str | None:
    call = current_call.get()
    return call.request_id if type(call) is Call else None  # the hub knows none of those that came directly
