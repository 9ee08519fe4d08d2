"""Topics over gossip at a hub: which have a swarm, when each is looked at, and what arrives from them.

A topic gets a swarm when the config says so, when a spoke asks for one, or when streams would cost the hub too much
(protocol/carrier.py). One timer serves all of them. Not here: one topic's swarm (swarm.py), who is in it
(swarm_members.py), and what spokes say about it (swarm_messages.py).
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from broker import _gossip_ext as ext
from broker.hub.channel import Channel
from broker.hub.realm import Realm
from broker.hub.swarm import TopicSwarm
from broker.hub.swarm_members import SwarmMembers
from broker.hub.swarm_metrics import SwarmTotals
from broker.protocol import overlay
from broker.protocol.carrier import LEAST_SUBSCRIBERS, Budget, Carrier, Choice, Load, weigh
from broker.protocol.named import Frame
from broker.protocol.registration import GossipPlace
from broker.protocol.routing import matches

if TYPE_CHECKING:
    from broker.config import HubConfig
    from broker.hub.router import Router

__all__ = ["Swarms"]

log = logging.getLogger("broker.hub")

MAX_SWARMS: Final = 1_000
"""Topics over gossip at a time. Each is some tasks in the extension and a heartbeat of 200 B every two seconds."""
MAX_GIVEN_UP: Final = 10_000
"""Topics remembered as not to be carried by a swarm."""
LOOK: Final = 1.0
"""Seconds between looks at what topics cost."""
SOONEST: Final = 0.005
"""Seconds between turns of the timer at least."""
INBOX_BYTES: Final = 4 * 1024 * 1024
KEEP_BYTES: Final = 65_536
"""Little: the hub answers repairs from its rings."""


class Swarms:
    """All swarms of a hub; the border's SwarmHandler. ``queue`` hands an encoded message to a connection."""

    def __init__(self, router: Router, config: HubConfig, realm: Realm, *, queue: Callable[[int, bytes], None]) -> None:
        self.router, self.realm, self.queue = router, realm, queue
        self._config = config.topics
        self._relays = config.relays
        self.enabled, self.message_bytes = config.gossip.enabled, config.gossip.message_bytes
        self.node_id = router.endpoint.node_id
        self.epoch = secrets.token_hex(8)
        """Of the heartbeats."""
        self.topics = router.topics
        self.by_topic: dict[str, TopicSwarm] = {}
        self.totals = SwarmTotals()
        self.members = SwarmMembers(self)
        self._budget = Budget(uplink_bytes=config.topics.uplink_bytes, deliveries=config.topics.cpu_deliveries)
        self._by_id: dict[int, TopicSwarm] = {}
        self._touched: dict[TopicSwarm, None] = {}
        self._published: dict[str, int] = {}
        """What topics had published at the last look."""
        self._given_up: dict[str, None] = {}
        """Topics that no swarm can carry."""
        self._looked_at = time.monotonic()
        self._loop: Any = None
        self._timer: Any = None
        self._timer_at = 0.0
        router.metrics.swarms = lambda: self.totals.families(self.by_topic.values())
        self.topics.in_a_realm = lambda: realm.shared
        if self.enabled:
            self.topics.on_open = self._opened

    # -- life

    def start(self, loop: Any) -> None:
        self._loop = loop
        if self.enabled:
            self.due(time.monotonic() + LOOK)

    def stop(self) -> None:
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for swarm in self.by_topic.values():
            for handle in swarm.handles.values():
                handle.leave()

    def registration(self) -> dict[str, Any]:
        """What the hub's own ``hub.register`` says of gossip."""
        place = self.place()
        return {} if place is None else {"gossip": place, "hubs": self.realm.hubs}

    def place(self) -> GossipPlace | None:
        """Where this hub is, for ``hub.register`` and as bootstrap."""
        if not self.enabled:
            return None
        addrs = tuple(self.router.endpoint.addrs())
        return GossipPlace(addrs=addrs, relays=tuple(self._relays), max=self.message_bytes)

    # -- which topics

    def choice(self, topic: str) -> Choice:
        """What the config says of a topic; of several patterns the longest."""
        if topic in self._given_up:
            return "stream"
        found = [pattern for pattern in self._config.carriers if matches(pattern, topic)]
        return self._config.carriers[max(found, key=len)] if found else self._config.carrier

    def _opened(self, channel: Channel) -> None:
        if self.realm.shared:
            self.open(channel, shared=True)
        elif self.choice(channel.topic) == "gossip":
            self.open(channel)

    def open(self, channel: Channel, *, shared: bool = False) -> TopicSwarm | None:
        """The swarm of a topic; a new one if there is none. None: the config says stream, or there are too many.
        ``shared``: among the hubs of the realm there is one also for topics that spokes get by stream."""
        swarm, choice = self.by_topic.get(channel.topic), self.choice(channel.topic)
        if swarm is not None and shared and swarm.handle is None:
            swarm.begin(time.monotonic())  # it ended a moment ago
        if swarm is not None or not self.enabled or (choice == "stream" and not shared):
            return swarm
        if len(self.by_topic) >= MAX_SWARMS:
            self.router.metrics.limited("swarms")
            log.warning("%s goes by stream: %d topics have a swarm, which is the limit", channel.topic, MAX_SWARMS)
            return None
        authors = self.members.authors_of(channel)
        if authors is not None and len(authors) > self.members.most_authors:
            self._keep_to_stream(channel.topic, f"more than {self.members.most_authors} authors publish to it")
            return None
        self.topics.settle(channel)
        swarm = TopicSwarm(self, channel, Carrier(choice, self._budget), authors)
        swarm.carrier.found()
        self.by_topic[channel.topic] = channel.swarm = swarm
        channel.counters = self.router.metrics.topic(channel.topic, "gossip")
        self.totals.switches["gossip"] += 1
        swarm.begin(time.monotonic())
        self.touched(swarm)
        self.due(time.monotonic())
        self.router.links.opened(channel.topic)
        return swarm

    def want(self, topic: str) -> TopicSwarm | None:
        """The swarm of a topic that may have no events yet. TopicError when there can be no such topic."""
        if not self.enabled or self.choice(topic) == "stream":
            return None
        return self.open(self.topics.channel(topic))

    def give_up(self, swarm: TopicSwarm, why: str, now: float) -> None:
        """No swarm can carry this topic."""
        self._keep_to_stream(swarm.topic, why)
        swarm.carrier.give_up()
        swarm.end(now)

    def _keep_to_stream(self, topic: str, why: str) -> None:
        log.warning("%s goes by stream: %s", topic, why)
        self.router.metrics.limited("swarm_authors")
        if len(self._given_up) >= MAX_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[topic] = None

    def closed(self, swarm: TopicSwarm) -> None:
        """It is over: the topic goes by stream alone."""
        self.topics.settle(swarm.channel)
        swarm.channel.counters = self.router.metrics.topic(swarm.topic)
        del self.by_topic[swarm.topic]
        self._touched.pop(swarm, None)
        self.members.forget(swarm.topic)
        self.totals.switches["stream"] += 1
        self.totals.left_out += swarm.left_out
        self.totals.left_behind += swarm.pacing.left_behind

    def _look(self, now: float) -> None:
        """Whether topics should change their carrier."""
        channels, loads = self.topics.channels, self._loads(self._moved(now))
        for topic in weigh(loads, self._budget, now):
            channel = channels[topic]
            if channel.swarm is None:
                log.info("%s goes by gossip: the streams cost more than topics.uplink_bytes or cpu_deliveries", topic)
                self.open(channel)
            elif not channel.swarm.carrier.gossip:
                log.info("%s goes back to streams", topic)
                channel.swarm.end(now)

    def _moved(self, now: float) -> dict[str, float]:
        """Events a second since the last look: of topics that had any, and of those over gossip."""
        seconds, self._looked_at = max(now - self._looked_at, 0.001), now
        published, moved = self._published, dict.fromkeys(self.by_topic, 0.0)
        channels = self.topics.channels
        for channel in reversed(channels.values()):
            before = published.get(channel.topic)
            if channel.published == before:
                break  # they are in the order of their last event, or of their beginning
            published[channel.topic] = channel.published
            moved[channel.topic] = max(channel.published - (before or 0), 0) / seconds
        if len(published) > 2 * len(channels) + 1_000:
            self._published = {topic: count for topic, count in published.items() if topic in channels}
        return moved

    def _loads(self, moved: dict[str, float]) -> Iterator[tuple[str, Carrier, Load]]:
        """What there is to weigh: topics over gossip, and those that may be."""
        enough = len(self.members.peers.sessions) >= LEAST_SUBSCRIBERS
        for topic, events in moved.items():
            channel = self.topics.channels[topic]
            if channel.swarm is not None:
                carrier = channel.swarm.carrier
            elif enough and self.choice(topic) == "auto":
                carrier = Carrier("auto", self._budget)
            else:
                continue
            wanted = self.topics.subscriptions.match(topic)
            could = sum(self.members.may_join(peer, topic) for peer in wanted)
            size = channel.ring.bytes / max(len(channel.ring), 1)
            yield topic, carrier, Load(subscribers=could, events=events, bytes=events * size)

    # -- what a topic's swarm asks for (swarm.py)

    def choose(self, among: Sequence[str], most: int) -> list[str]:
        return random.sample(among, min(most, len(among)))

    def join(self, swarm: TopicSwarm, generation: int) -> ext.Swarm:
        members = self.members.node_ids(swarm.overlay.members())
        handle = self.router.endpoint.join(
            swarm.topic,
            self.realm.id(swarm.topic, generation),
            self.choose(members, overlay.BOOTSTRAP),
            hubs=self.realm.hubs,
            authors=None if swarm.authors is None else list(swarm.authors),
            inbox_bytes=INBOX_BYTES,
            keep_bytes=KEEP_BYTES,
        )
        self._by_id[handle.id] = swarm
        self.totals.joins["hub"] += 1
        return handle

    def left(self, handle: ext.Swarm) -> None:
        """A handle is about to be left: its counts stay."""
        self._by_id.pop(handle.id, None)
        self.totals.add(handle.counters())

    def ask(self, peer: int, detail: dict[str, Any]) -> None:
        self.totals.repairs_asked += 1
        self.router.send(peer, "topic.repair", detail)

    def touched(self, swarm: TopicSwarm) -> None:
        """Something of it has to be sent, or will be due."""
        self._touched[swarm] = None

    # -- broker.border.SwarmHandler

    def neighbour(self, swarm: int, node_id: str, up: bool) -> None:
        if (one := self._by_id.get(swarm)) is not None:
            log.debug("%s: neighbour %s %s", one.topic, node_id[:10], "up" if up else "down")
            if up:
                self.router.links.neighbour(node_id, one)

    def gossiped(self, swarm: int, author: str, epoch: str, first_seq: int, frames: list[Frame]) -> None:
        one = self._by_id.get(swarm)
        if one is None or not self.members.may_publish(author, one.topic):
            return
        self.taken(one, author, one.from_gossip(author, epoch, first_seq, frames))

    def taken(self, swarm: TopicSwarm, author: str, count: int) -> None:
        """A batch was taken; 0 events: it contradicted itself."""
        if not count:
            self.totals.contradicted += 1
            log.warning("%s: a batch of %s is not what it says; it is dropped", swarm.topic, author[:10])
        elif (peer := self.members.connection(author)) is not None:
            self.router.of_node.published(self.router.sessions[peer], count)

    def headed(self, swarm: int, author: str, epoch: str, seq: int) -> None:
        one = self._by_id.get(swarm)
        if one is not None and author not in self.realm.hubs and self.members.may_publish(author, one.topic):
            one.head(author, epoch, seq)

    def lagged(self, swarm: int) -> None:
        if (one := self._by_id.get(swarm)) is not None:
            one.pacing.overrun(time.monotonic())

    def swarm_drained(self, swarm: int) -> None:
        if (one := self._by_id.get(swarm)) is not None:
            self.touched(one)

    # -- time

    def settle(self) -> None:
        """After each batch from the network: what it brought for swarms goes out."""
        if not self._touched and not self.members.waiting:
            return
        now = time.monotonic()
        self.members.flush(now)
        dues = [self.members.peers.next_due()]
        while self._touched:
            swarm = next(iter(self._touched))
            del self._touched[swarm]
            swarm.flush()
            dues.append(swarm.next_due())
        self.due(min((due for due in dues if due is not None), default=None))

    def due(self, at: float | None) -> None:
        """There is something to do then."""
        if at is None or self._loop is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(at - time.monotonic(), SOONEST), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        try:
            self._turn(now)
        finally:  # also after a bug of ours
            self.due(now + LOOK)

    def _turn(self, now: float) -> None:
        self.members.peers.tick(now)
        if now >= self._looked_at + LOOK:
            self._look(now)
        for swarm in list(self.by_topic.values()):
            swarm.tick(now)
            if swarm.over:
                self._over(swarm, now)
            else:
                self.touched(swarm)
        self.router.settle()
        self.due(self._looked_at + LOOK)

    def _over(self, swarm: TopicSwarm, now: float) -> None:
        """Everybody has left. It may be wanted again by now."""
        if swarm.carrier.gossip:
            swarm.begin(now)
            self.touched(swarm)
            self.router.links.opened(swarm.topic)
        else:
            swarm.close()
