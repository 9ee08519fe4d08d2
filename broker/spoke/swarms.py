"""The swarms of a spoke: which it is in, what comes from them, and what it sends into them.

One topic has one machine (protocol/membership.py) and, while it moves to a new generation, two swarms. What comes is
decoded and handed to the subscriptions as if it had come by stream: certainty is their business, and what a swarm lost
is asked for like any other hole. Not here: answers to others' questions (repairs.py), and when an author's events go
this way (publisher.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import Closed, ConnectError, FrameError, TopicError
from broker.events import Event
from broker.protocol import membership as m
from broker.protocol.codec import Parts, Places, decode, decode_batch, decode_parts
from broker.protocol.named import Frame, runs
from broker.protocol.pacing import REPORT
from broker.protocol.routing import check_topic, matches
from broker.protocol.wire import CloseCode
from broker.spoke.link import Link
from broker.spoke.options import SpokeOptions
from broker.spoke.publisher import Publisher
from broker.spoke.subscriptions import Subscriptions
from broker.spoke.swarm import Source, SwarmTopic
from broker.spoke.swarm_messages import Peer, PeerList, invitation, peer_list

__all__ = ["JOIN_TIMEOUT", "Swarms"]

log = logging.getLogger("broker.spoke")

MAX_SWARMS: Final = 1_000
"""Topics in whose swarms one spoke is; it is fed by stream on any more."""
MAX_HEADS: Final = 256
"""Of them, those that a hub is told of after a reconnect: the last that spoke."""
GAP_PATIENCE: Final = (0.25, 0.5)
"""Seconds before a gap is asked for, drawn once by topic: a swarm brings batches out of order, mends what its tree
missed in 0.2 s (gossip.rs), and a thousand spokes that miss the same one should not ask at once."""
NOW: Final = ("neighbours", "queued_events", "kept_bytes")
"""Counters of a swarm that are no totals."""
HEARD_EVERY: Final = 0.25
"""Seconds between two words to a machine that its swarm is heard: it reckons in seconds, and events come faster."""
JOIN_TIMEOUT: Final = 10.0
"""Seconds that a program waits for a swarm that it wants."""
Batch = list[Frame] | Parts | int
"""Of a checked batch its events, in full or in parts, or how many they are."""


@dataclass(slots=True)
class _Handle:
    """What an inbox item's swarm is, and when its topic's machine was last told that it is heard."""

    topic: SwarmTopic
    id: str
    told_at: float = float("-inf")


class Swarms:
    """All swarms of a spoke: broker.border.SwarmHandler, and the publisher's Ways."""

    def __init__(self, link: Link, subscriptions: Subscriptions, options: Callable[[], SpokeOptions]) -> None:
        self._link, self._subscriptions, self._options = link, subscriptions, options
        self.publisher: Publisher
        self.on_peers: Callable[[PeerList], None] = lambda _said: None
        self._topics: dict[str, SwarmTopic] = {}
        self._handles: dict[int, _Handle] = {}
        link.hurries = lambda: bool(self._handles)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._counts: Counter[str] = Counter()
        self._stream_only: set[str] = set()
        """Patterns of topics that the program wants by stream alone."""

    # What the program wants.

    async def joined(self, topic: str, timeout: float = JOIN_TIMEOUT) -> None:
        """Asks for a swarm of this topic, and returns when it is heard. TopicError when the hub will have none."""
        check_topic(topic)
        if not self._options().gossip:
            raise TopicError(f"{topic}: this spoke does not gossip (SpokeOptions.gossip)", code="NO_SWARM")
        entry = self._open(topic)
        if entry.machine.joined:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                self._handle(entry, m.Want())
                await waiter
        except TimeoutError:
            self._handle(entry, m.NoSwarm())
            raise ConnectError(
                f"{topic}: nobody of its swarm was heard within {timeout:g} s; the hub named "
                f"{len(entry.swarms) or 'no'} swarm, and {entry.machine.neighbours} neighbours answered: "
                "is UDP between this machine and the hub open in both directions?"
            ) from None
        finally:
            entry.waiters.remove(waiter)
            if entry.machine.idle:
                self._forget(entry)

    def was_heard(self, topic: str) -> bool:
        """Whether a swarm of this topic has been heard since it was joined."""
        return (entry := self._topics.get(topic)) is not None and entry.was_heard

    def by_stream(self, pattern: str) -> None:
        """From now on these topics come by stream alone."""
        self._stream_only.add(pattern)
        for topic, entry in list(self._topics.items()):
            if matches(pattern, topic):
                self._handle(entry, m.ToldToLeave())

    # What the hub says.

    def told(self, detail: Any) -> None:
        """``topic.swarm``."""
        said = invitation(detail)
        topic, entry = said.topic, self._topics.get(said.topic)
        if said.id is None and entry is not None:
            self._handle(entry, m.ToldToLeave())
        elif said.id is None or not self._may_follow(topic):
            self._say(topic, m.TellHub(said.generation, False, 0))
        else:
            entry = self._open(topic)
            entry.hubs, entry.authors = said.hubs, said.authors
            for swarm in entry.swarms.values():
                swarm.allow(hubs=said.hubs, authors=_sorted(said.authors))
            self._handle(entry, m.Told(said.id, said.generation, self._learn(said.bootstrap), said.hubs))
            self.publisher.look(topic)

    def _may_follow(self, topic: str) -> bool:
        if not self._options().gossip or any(matches(pattern, topic) for pattern in self._stream_only):
            return False
        room = topic in self._topics or len(self._topics) < MAX_SWARMS
        self._counts["declined"] += not room
        return room

    def _learn(self, bootstrap: tuple[Peer, ...]) -> tuple[str, ...]:
        """The NodeIds of others; where they are is learnt."""
        endpoint = self._link.endpoint
        assert endpoint is not None
        others = [peer for peer in bootstrap if peer.node_id != endpoint.node_id]
        for peer in others:
            try:
                endpoint.learn(*peer)
            except ValueError as error:
                raise FrameError(f"topic.swarm: bootstrap: {error}", close_code=CloseCode.BAD_MESSAGE) from None
        return tuple(peer.node_id for peer in others)

    def peers(self, detail: Any) -> None:
        """``hub.peers``: who may gossip with this spoke."""
        said = peer_list(detail)
        if self._link.endpoint is not None and self._options().gossip:
            try:
                self._link.endpoint.admit_peers(said.add, said.remove, full=said.full, framed=True)
            except ValueError as error:
                raise FrameError(f"hub.peers: {error}", close_code=CloseCode.BAD_MESSAGE) from None
            self.on_peers(said)

    def refused(self, topic: str, message: str) -> None:
        """``hub.error NO_SWARM``."""
        if (entry := self._topics.get(topic)) is not None:
            error = TopicError(f"{topic}: the hub will have no swarm for it: {message}", code="NO_SWARM")
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            self._handle(entry, m.NoSwarm())

    def hub_up(self) -> None:
        """After the subscriptions were made: the hub hears where we are, and what it may lack."""
        if not self._topics and self._options().gossip and self._link.endpoint is not None:
            # Whom it let in before may be banned by now, and the hub tells of peers with the first swarm.
            self._link.endpoint.admit_peers([], full=True, framed=True)
        for entry in list(self._topics.values()):
            self._handle(entry, m.HubUp())
            newest = list(entry.sources.items())[-MAX_HEADS:]
            for (author, epoch), source in newest:
                if author != self._me() and source.newest:
                    self._report(entry, author, epoch, source)

    def hub_down(self) -> None:
        for entry in list(self._topics.values()):
            self._handle(entry, m.HubDown())

    def close(self) -> None:
        """Leaves everything. What is queued still goes, for a moment."""
        if self._timer is not None:
            self._timer.cancel()
        for entry in self._topics.values():
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_exception(Closed("the spoke was closed"))
            for swarm in entry.swarms.values():
                swarm.leave()
        self._topics.clear()
        self._handles.clear()

    # What the swarms bring (broker.border.SwarmHandler).

    def neighbour(self, swarm: int, node_id: str, up: bool) -> None:
        if (handle := self._handles.get(swarm)) is not None:
            self._handle(handle.topic, m.Neighbour(handle.id, node_id, up))
            self.publisher.look(handle.topic.name)

    def gossiped(self, swarm: int, author: str, epoch: str, first_seq: int, events: Batch) -> None:
        if (handle := self._handles.get(swarm)) is not None:
            self.take(handle.topic.name, author, epoch, first_seq, events)
            self._heard(handle)

    def headed(self, swarm: int, author: str, epoch: str, seq: int) -> None:
        if (handle := self._handles.get(swarm)) is None:
            return
        topic = handle.topic
        if author in topic.hubs:
            self._handle(topic, m.Beat(handle.id))
            return
        heard = topic.heard(author, epoch, seq, time.monotonic())
        self._subscriptions.on_swarm_head(topic.name, author, epoch, seq, heard.first)
        self._heard(handle)

    def _heard(self, handle: _Handle) -> None:
        now = time.monotonic()
        if now >= handle.told_at + HEARD_EVERY:
            handle.told_at = now
            self._handle(handle.topic, m.Heard(handle.id))

    def lagged(self, swarm: int) -> None:
        """What is gone shows by its numbers, and the swarm counts how often; the hub is told, for its pacing."""
        if (handle := self._handles.get(swarm)) is not None:
            self._handle(handle.topic, m.Lagged(handle.id))

    def swarm_drained(self, swarm: int) -> None:
        if (handle := self._handles.get(swarm)) is not None:
            self.publisher.look(handle.topic.name)

    def take(self, topic: str, author: str, epoch: str, first_seq: int, batch: Batch) -> None:
        """A checked batch, from a swarm or from somebody who was asked for it. What is only named is a hole."""
        if (entry := self._topics.get(topic)) is None or (entry.authors is not None and author not in entry.authors):
            self._counts["uninvited"] += 1
            return
        count = batch if isinstance(batch, int) else batch[0] if isinstance(batch, tuple) else len(batch)
        source = entry.heard(author, epoch, first_seq + count - 1, time.monotonic())
        if source.newest - source.told >= REPORT:
            self._report(entry, author, epoch, source)
        if not self._subscriptions.wants(topic):
            return
        try:
            found: list[tuple[int, Sequence[Event]]]
            if isinstance(batch, int):
                found = [(first_seq, Places(range(first_seq, first_seq + count), topic, author, epoch, Event))]
            elif isinstance(batch, tuple):
                found = [(first_seq, decode_parts(batch, topic, author, epoch, first_seq, Event))]
            else:
                self._link.named.batch(topic, author, epoch, first_seq, batch)
                found = [(seq, decode_batch(run, Event)) for seq, run in runs(first_seq, batch)]
        except FrameError as error:
            self._counts["unreadable"] += 1
            log.warning("%s: a batch of %s, signed, of events that are none: %s", topic, author[:10], error)
            return
        for seq, events in found:
            if events:
                self._subscriptions.on_gossip(topic, author, epoch, seq, events, source.first)
            else:
                self._subscriptions.on_swarm_head(topic, author, epoch, seq, source.first)

    # What goes into them (broker.spoke.publisher.Ways).

    def open(self, topic: str) -> bool:
        entry = self._topics.get(topic)
        return entry is not None and bool(entry.machine.ids) and (entry.authors is None or self._me() in entry.authors)

    def publish(self, topic: str, epoch: str, first_seq: int, frames: list[bytes]) -> bool:
        entry = self._topics[topic]
        for index, id in enumerate(entry.machine.ids):
            if not entry.swarms[id].publish(epoch, first_seq, frames) and not index:
                return False  # of the generation to come, what finds no room is a hole there
        now = time.monotonic()
        entry.announcing.published(now)
        self._mind(entry, now)
        heard = entry.heard(self._me(), epoch, first_seq + len(frames) - 1, now).first
        if self._subscriptions.wants(topic):  # nobody else brings us our own
            events = [decode(frame, Event) for frame in frames]
            self._subscriptions.on_gossip(topic, self._me(), epoch, first_seq, events, heard)
            self._subscriptions.on_batch()
        return True

    def message_bytes(self, topic: str) -> int:
        entry = self._topics[topic]
        return min((entry.swarms[id].message_bytes() for id in entry.machine.ids), default=0)

    def batches(self, topic: str, author: str, epoch: str, a: int, b: int, most: int) -> list[bytes]:
        """Signed batches that are kept and hold any of ``a..b``."""
        entry = self._topics.get(topic)
        for swarm in entry.swarms.values() if entry is not None else ():
            if found := swarm.batches(author, epoch, a, b, most):
                return found
        return []

    def ids(self, topic: str) -> tuple[str, ...]:
        """Of the swarms of a topic that this spoke is in, the one that is heard first."""
        return tuple(entry.machine.ids) if (entry := self._topics.get(topic)) is not None else ()

    def members(self, topic: str) -> set[str]:
        """NodeIds of its neighbours there that are no hubs."""
        entry = self._topics.get(topic)
        swarms = entry.swarms.values() if entry is not None else ()
        return {one for swarm in swarms for one in swarm.neighbours()} - set(self.hubs(topic))

    def hubs(self, topic: str) -> tuple[str, ...]:
        return entry.hubs if (entry := self._topics.get(topic)) is not None else ()

    def counts(self) -> dict[str, int]:
        """``swarms``, ``declined`` invitations beyond `MAX_SWARMS`, ``sources_forgotten``; ``unreadable`` batches (an
        event is not JSON), ``uninvited`` ones (of no topic or author of ours), ``mismatched`` events (not
        the ones that were named); and the sums of the swarms' own counters, also of those that were left."""
        found: Counter[str] = Counter(self._counts)
        found["swarms"], found["mismatched"] = len(self._handles), self._link.named.refused
        for entry in self._topics.values():
            for swarm in entry.swarms.values():
                found.update(swarm.counters())
        return dict(found)

    # Inside.

    def _me(self) -> str:
        return self._link.endpoint.node_id if self._link.endpoint is not None else ""

    def _open(self, topic: str) -> SwarmTopic:
        if (entry := self._topics.get(topic)) is None:
            entry = self._topics[topic] = SwarmTopic(topic, self._counts)
            if self._link.up:
                entry.machine.handle(m.HubUp(), time.monotonic())
        return entry

    def _handle(self, entry: SwarmTopic, event: m.Event) -> None:
        now = time.monotonic()
        for effect in entry.machine.handle(event, now):
            match effect:
                case m.Join(id, bootstrap):
                    self._join(entry, id, bootstrap)
                case m.JoinPeers(id, bootstrap):
                    if (swarm := entry.swarms.get(id)) is not None:
                        swarm.join_peers(bootstrap)
                case m.Leave(id):
                    self._leave(entry, id)
                case m.TellHub():
                    self._told_hub(entry, effect)
                case m.Subscribe():
                    self._subscriptions.again(entry.name)
        if entry.machine.idle and not entry.waiters:
            self._forget(entry)
        self._mind(entry, now)

    def _join(self, entry: SwarmTopic, id: str, bootstrap: tuple[str, ...]) -> None:
        assert self._link.endpoint is not None
        swarm = self._link.endpoint.join(
            entry.name,
            bytes.fromhex(id),
            bootstrap,
            hubs=entry.hubs,
            authors=_sorted(entry.authors),
            events="count" if self._options().counts_gossip else "parts",
        )
        entry.swarms[id] = swarm
        self._handles[swarm.id] = _Handle(entry, id)
        self._subscriptions.gap_patience.setdefault(entry.name, random.uniform(*GAP_PATIENCE))

    def _leave(self, entry: SwarmTopic, id: str) -> None:
        if (swarm := entry.swarms.pop(id, None)) is not None:
            self._handles.pop(swarm.id, None)
            self._counts.update({name: count for name, count in swarm.counters().items() if name not in NOW})
            swarm.leave()

    def _told_hub(self, entry: SwarmTopic, said: m.TellHub) -> None:
        self._say(entry.name, said)
        self.publisher.look(entry.name)
        if said.joined:
            entry.was_heard = True
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _say(self, topic: str, said: m.TellHub) -> None:
        self._link.control(
            "topic.swarm",
            {
                "topic": topic,
                "generation": said.generation,
                "joined": said.joined,
                "neighbours": said.neighbours,
                "want": said.want,
                **({"lagged": True} if said.lagged else {}),
            },
        )

    def _report(self, entry: SwarmTopic, author: str, epoch: str, source: Source) -> None:
        """The hub is told how far this is: it holds the author back (protocol/pacing.py), or asks for what it lacks."""
        source.told = source.newest
        self._link.control("topic.head", {"topic": entry.name, "author": author, "epoch": epoch, "seq": source.newest})

    def _forget(self, entry: SwarmTopic) -> None:
        if self._topics.get(entry.name) is entry:
            del self._topics[entry.name]
            self._subscriptions.gap_patience.pop(entry.name, None)
            self.publisher.look(entry.name)

    # Time.

    def _mind(self, entry: SwarmTopic, now: float) -> None:
        """One timer for what is due first. It may come too early, and then looks at all again."""
        if (due := _due(entry)) is None or self._topics.get(entry.name) is not entry:
            return
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._tick)

    def _tick(self) -> None:
        self._timer, now = None, time.monotonic()
        # Closed: the hub was heard until then, and what it said last has set this timer once more.
        for entry in list(self._topics.values()) if self._link.endpoint is not None else []:
            if entry.announcing.tick(now):
                self._announce(entry)
            if (due := entry.machine.next_due()) is not None and due <= now:
                self._handle(entry, m.Tick())
            self._mind(entry, now)

    def _announce(self, entry: SwarmTopic) -> None:
        self.publisher.check(entry.name)
        if self.open(entry.name) and (newest := self.publisher.newest(entry.name)) is not None:
            for id in entry.machine.ids:
                entry.swarms[id].head(*newest)


def _sorted(authors: frozenset[str] | None) -> list[str] | None:
    return None if authors is None else sorted(authors)


def _due(entry: SwarmTopic) -> float | None:
    due, head = entry.machine.next_due(), entry.announcing.due
    return head if due is None else due if head is None else min(due, head)
