"""A simulated hub with authors and subscribers, for tests of Publication, Ring and Sequences together.

The hub and the spokes of this file are the smallest shells that keep the machines' rules. Links are in order and of
bounded room; they break at any point and lose what is in them. Hubs lose their memory, authors their epoch, subscribers
fall behind. Not here: the judge, who compares the verdicts with what was published, in test_topics_together.py.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from broker.protocol.publication import Publication, PublicationLimits
from broker.protocol.ring import Disconnect, Outcome, Ring, RingSince
from broker.protocol.routing import Policy, SubscribeOptions
from broker.protocol.sequence import Origin, Sequences, Since, origin, parse_since

STEPS = 160
TOPICS = ("s", "t")

Key = tuple[str, str, str]


@dataclass(eq=False)
class Link:
    """One connection. ``down`` towards the spoke has room for a few events; what is said besides always fits."""

    id: int
    room: int
    up: deque[tuple[str, Any]] = field(default_factory=deque)
    down: deque[tuple[str, Any]] = field(default_factory=deque)
    open: bool = True

    def offer(self, frames: list[tuple[str, Any]]) -> int:
        """How many were taken."""
        taken = max(0, min(len(frames), self.room - len(self.down)))
        self.down.extend(frames[:taken])
        return taken


class Hub:
    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.rings = {topic: Ring(sim.capacity, sim.capacity_bytes) for topic in TOPICS}
        self.links: dict[int, Link] = {}
        self.authors: dict[Key, Link] = {}
        self.to_come: dict[Key, tuple[int, int]] = {}
        self.options: dict[int, SubscribeOptions] = {}
        self.group: dict[str, set[int]] = {topic: set() for topic in TOPICS}

    def take(self, link: Link, kind: str, detail: Any) -> None:
        match kind:
            case "event":
                message = orjson.loads(detail)
                place = origin(message["meta"])
                assert place is not None
                self.publish(link, message["type"], place, detail)
            case "head":
                self.announced(link, detail)
            case "subscribe":
                self.subscribe(link, *detail)
            case "pause":
                for topic in TOPICS:
                    self.group[topic].discard(link.id)
                    self.rings[topic].pause(link.id, self.options[link.id])
            case "resume":
                for topic in TOPICS:
                    ring = self.rings[topic]
                    ring.lag(link.id, ring.next_index, self.options[link.id], self.sim.now)
            case "repair":
                self.repair(link, *detail)

    def publish(self, link: Link, topic: str, place: Origin, frame: bytes) -> None:
        ring = self.rings[topic]
        self.authors[topic, place.author, place.epoch] = link
        if ring.append(*place, frame) is Outcome.DUPLICATE:
            return
        self.sim.accepted(self, topic, place)
        for peer in sorted(self.group[topic]):
            if not self.links[peer].offer([("event", frame)]):
                ring.lag(peer, ring.next_index - 1, self.options[peer], self.sim.now)
                self.group[topic].discard(peer)

    def announced(self, link: Link, detail: dict[str, Any]) -> None:
        topic, author, epoch = detail["topic"], detail["author"], detail["epoch"]
        ring = self.rings[topic]
        self.authors[topic, author, epoch] = link
        link.down.append(("ack", (topic, epoch, ring.ackable(author, epoch))))
        if detail["seq"] > ring.newest(author, epoch):
            self.to_come[topic, author, epoch] = (detail["acked"], detail["seq"])
            for peer in sorted(self.group[topic]):
                self.tell_to_come(topic, self.links[peer])

    def tell_to_come(self, topic: str, link: Link) -> None:
        """What authors have and the hub has not. Of one that it knows nothing of, a new subscriber begins after what
        some hub has acknowledged."""
        for (of, author, epoch), (acked, seq) in self.to_come.items():
            known = self.rings[topic].newest(author, epoch)
            if of == topic and seq > known:
                if not known:
                    link.down.append(("head", (topic, author, epoch, acked, True)))
                link.down.append(("head", (topic, author, epoch, seq, False)))

    def subscribe(self, link: Link, since: Any, options: SubscribeOptions) -> None:
        self.options[link.id] = options
        parsed = parse_since(orjson.loads(orjson.dumps(since)))
        self.sim.subscribed(link)
        for topic, ring in self.rings.items():
            at: RingSince = parsed.get(topic, {}) if isinstance(parsed, Mapping) else parsed
            heads = ring.seek(link.id, at, options, self.sim.now)
            said = [("head", (topic, *head, parsed is None)) for head in heads]
            if self.sim.rng.random() < 0.2:
                link.down.extendleft(reversed(said))
            else:
                link.down.extend(said)
            self.group[topic].discard(link.id)
            if not ring.lagging(link.id):
                self.group[topic].add(link.id)
                self.tell_to_come(topic, link)

    def repair(self, link: Link, topic: str, author: str, epoch: str, a: int, b: int) -> None:
        frames, missing = self.rings[topic].range(author, epoch, a, b, self.sim.rng.randint(1, 20))
        link.down.extend(("event", frame) for frame in frames)
        link.down.extend(("lost", (topic, author, epoch, *gap)) for gap in missing)

    def turn(self) -> None:
        """Feeds readers, acknowledges, ends who is to be ended."""
        rng, now = self.sim.rng, self.sim.now
        for topic, ring in self.rings.items():
            for peer, link in list(self.links.items()):
                if ring.lagging(peer) and link.room > len(link.down):
                    self.feed(topic, ring, peer, link, rng.randint(1, 8))
            for effect in ring.tick(now):
                if isinstance(effect, Disconnect):
                    self.sim.cut(self.links.get(effect.reader))
            for author, epoch, seq in ring.newly_ackable():
                link_ = self.authors.get((topic, author, epoch))
                if link_ is not None and link_.open:
                    link_.down.append(("ack", (topic, epoch, seq)))

    def feed(self, topic: str, ring: Ring, peer: int, link: Link, most: int) -> None:
        batch = ring.read(peer, most, 2_000, self.sim.now)
        link.down.extend(("lost", (topic, *lost)) for lost in batch.lost)
        taken = link.offer([("event", frame) for frame in batch.frames])
        if taken < len(batch.frames):
            ring.lag(peer, batch.indexes[taken], self.options[peer], self.sim.now)
        elif batch.caught_up:
            ring.forget(peer)
            self.group[topic].add(peer)
            self.tell_to_come(topic, link)

    def heads(self) -> None:
        """Said when a topic falls quiet."""
        for topic, ring in self.rings.items():
            for peer in self.options:
                for head in ring.heads():
                    self.links[peer].down.append(("head", (topic, *head, False)))

    def gone(self, link: Link) -> None:
        self.links.pop(link.id, None)
        self.options.pop(link.id, None)
        for topic, ring in self.rings.items():
            ring.forget(link.id)
            self.group[topic].discard(link.id)


class Author:
    def __init__(self, sim: Sim, name: str) -> None:
        self.sim, self.name = sim, name
        self.epochs = 0
        self.link: Link | None = None
        self.restart()

    def restart(self) -> None:
        """A new process: what it had not sent is gone, and its sequence begins anew."""
        self.epochs += 1
        self.books = {topic: Publication(topic, self.name, f"{self.epochs:016x}", self.sim.limits) for topic in TOPICS}
        self.unsent: dict[str, deque[bytes]] = {topic: deque() for topic in TOPICS}
        self.live = dict.fromkeys(TOPICS, False)

    def connected(self, link: Link) -> None:
        self.link = link
        for topic, book in self.books.items():
            self.live[topic] = False
            self.unsent[topic].clear()
            link.up.append(("head", {**book.head(), "author": self.name, "acked": book.acked}))

    def take(self, kind: str, detail: Any) -> None:
        topic, epoch, seq = detail
        book = self.books[topic]
        if kind != "ack" or epoch != book.epoch:
            return
        if not self.live[topic]:
            self.unsent[topic] = deque(book.resume(seq).frames)
            self.live[topic] = True
        book.ack(seq)

    def publish(self, topic: str, size: int) -> None:
        book = self.books[topic]
        if not book.full:
            self.unsent[topic].append(book.publish("x" * size, 1))
            self.sim.published[topic, self.name, book.epoch] = book.next_seq - 1

    def turn(self) -> None:
        for topic, unsent in self.unsent.items():
            while unsent and self.link is not None and self.live[topic] and len(self.link.up) < 10:
                self.link.up.append(("event", unsent.popleft()))


class Subscriber:
    def __init__(self, sim: Sim, since: Since, options: SubscribeOptions, bound: int) -> None:
        self.sim, self.since, self.options, self.bound = sim, since, options, bound
        self.sequences: Sequences[tuple[str, Origin]] = Sequences(since)
        self.queue: deque[tuple[str, Origin]] = deque()
        self.read: dict[Key, list[int]] = {}
        self.dropped: dict[Key, set[int]] = {}
        self.due: set[tuple[str, Origin]] = set()
        """What some hub took for the first time after it had heard of this subscription."""
        self.link: Link | None = None
        self.began = self.heard = self.paused = self.gaps = False

    def connected(self, link: Link) -> None:
        self.link = link
        if self.began:
            self.sequences.resumed(self.sim.now)
        at: Any = self.sequences.positions() if self.began else self.since
        self.began, self.gaps = True, False
        link.up.append(("subscribe", (at, self.options)))
        if self.paused:
            link.up.append(("pause", None))

    def take(self, kind: str, detail: Any) -> None:
        now = self.sim.now
        out: list[tuple[str, Origin]] = []
        match kind:
            case "event":
                message = orjson.loads(detail)
                place = origin(message["meta"])
                assert place is not None
                if self.paused and len(self.queue) >= 2 * self.bound:
                    self.gaps = True
                    self.sequences.left_out(message["type"], *place, now)
                    return
                out = self.sequences.event(message["type"], *place, (message["type"], place), now)
            case "head":
                topic, author, epoch, seq, baseline = detail
                self.sequences.head(topic, author, epoch, seq, now, baseline=baseline)
            case "lost":
                topic, author, epoch, a, b = detail
                out = self.sequences.lost(topic, author, epoch, a, b, now)
        self.admit(out)

    def admit(self, items: list[tuple[str, Origin]]) -> None:
        self.queue.extend(items)
        while self.options.policy == "drop_oldest" and len(self.queue) > self.bound:
            topic, place = self.queue.popleft()
            self.sequences.dropped(topic, *place)
            self.dropped.setdefault((topic, place.author, place.epoch), set()).add(place.seq)
        if self.options.policy == "block" and len(self.queue) > self.bound and not self.paused:
            self.paused = True
            if self.link is not None:
                self.link.up.append(("pause", None))

    def consume(self, count: int) -> None:
        for _ in range(min(count, len(self.queue))):
            topic, place = self.queue.popleft()
            self.read.setdefault((topic, place.author, place.epoch), []).append(place.seq)
        if self.paused and len(self.queue) <= self.bound // 2:
            self.paused = False
            if self.link is not None:
                if self.gaps:
                    self.link.up.append(("subscribe", (self.sequences.positions(), self.options)))
                else:
                    self.link.up.append(("resume", None))
            self.gaps = False

    def turn(self) -> None:
        if self.link is not None and not self.paused:
            self.admit(self.sequences.expire(self.sim.now))
            for repair in self.sequences.wanted(self.sim.now):
                self.link.up.append(("repair", tuple(repair)))


class Sim:
    def __init__(self, seed: int, *, gentle: bool = False) -> None:
        """``gentle``: links break and readers are slow, but nothing has to be lost."""
        self.rng = rng = random.Random(seed)
        self.gentle = gentle
        self.now = 0.0
        self.capacity = 10_000 if gentle else rng.choice([3, 10, 40, 10_000])
        self.capacity_bytes = 10**6 if gentle else rng.choice([300, 2_000, 10**6])
        self.limits = PublicationLimits(
            unacked_events=rng.choice([2, 10, 100]), retained_events=10_000 if gentle else rng.choice([0, 5, 1_000])
        )
        self.ids = 0
        self.published: dict[Key, int] = {}
        self.taken: set[tuple[str, Origin]] = set()
        self.hub = Hub(self)
        self.authors = [Author(self, name) for name in "ab"[: rng.randint(1, 2)]]
        self.subscribers = [self.subscriber() for _ in range(rng.randint(1, 3))]
        self.spokes: list[Author | Subscriber] = [*self.authors, *self.subscribers]

    def subscriber(self) -> Subscriber:
        rng = self.rng
        policies: list[Policy] = ["block", "block", "drop_oldest", "disconnect"]
        policy: Policy = "block" if self.gentle else rng.choice(policies)
        options = SubscribeOptions(policy=policy, patience=rng.choice([0.0, 2.0]))
        return Subscriber(self, rng.choice([None, None, "start", 3]), options, rng.choice([2, 10, 1_000]))

    # -- what the hub tells the judge

    def accepted(self, hub: Hub, topic: str, place: Origin) -> None:
        if hub is self.hub and (topic, place) not in self.taken:
            self.taken.add((topic, place))
            for one in self.subscribers:
                if one.heard and place.seq >= (one.since if isinstance(one.since, int) else 1):
                    one.due.add((topic, place))

    def subscribed(self, link: Link) -> None:
        for one in self.subscribers:
            one.heard = one.heard or one.link is link

    # -- what can happen

    def connect(self, spoke: Author | Subscriber) -> None:
        self.ids += 1
        link = Link(self.ids, self.rng.choice([1, 5, 50]))
        self.hub.links[link.id] = link
        spoke.connected(link)

    def cut(self, link: Link | None) -> None:
        if link is None or not link.open:
            return
        link.open = False
        self.hub.gone(link)
        for spoke in self.spokes:
            if spoke.link is link:
                spoke.link = None

    def wipe(self) -> None:
        for link in list(self.hub.links.values()):
            self.cut(link)
        self.hub = Hub(self)

    def carry(self, link: Link, spoke: Author | Subscriber, most: int) -> None:
        for _ in range(most):
            if link.open and link.up:
                self.hub.take(link, *link.up.popleft())
            if link.open and link.down:
                spoke.take(*link.down.popleft())

    def step(self) -> None:
        rng = self.rng
        self.now += rng.choice([0.0, 0.001, 0.01, 0.5])
        spoke = rng.choice(self.spokes)
        if spoke.link is None and rng.random() < 0.4:
            self.connect(spoke)
        chance = rng.random()
        if chance < 0.04:
            self.cut(spoke.link)
        elif chance < 0.05 and not self.gentle:
            self.wipe()
        elif chance < 0.055 and not self.gentle and isinstance(spoke, Author):
            self.cut(spoke.link)
            spoke.restart()
        elif chance < 0.5 and isinstance(spoke, Author):
            topic = rng.choice(TOPICS)
            for _ in range(rng.randint(1, 15)):
                spoke.publish(topic, rng.choice([0, 0, 20, 400]))
        elif chance < 0.8 and isinstance(spoke, Subscriber):
            spoke.consume(rng.randint(1, 12))
        for one in self.spokes:
            one.turn()
            if one.link is not None and rng.random() < 0.7:
                self.carry(one.link, one, rng.randint(0, 12))
        if rng.random() < 0.8:
            self.hub.turn()

    def settle(self) -> None:
        """Everyone is there, reads, and time passes, until nothing is under way."""
        spokes = self.spokes
        quiet = 0
        for round_ in range(4_000):
            for spoke in spokes:
                if spoke.link is None:
                    self.connect(spoke)
                spoke.turn()
                if spoke.link is not None:
                    self.carry(spoke.link, spoke, 50)
                if isinstance(spoke, Subscriber):
                    spoke.consume(1_000)
            self.hub.turn()
            self.now += 0.05 if round_ % 10 else 5.0
            busy = any(spoke.link is None or spoke.link.up or spoke.link.down for spoke in spokes)
            busy = busy or any(one.sequences.next_due() is not None for one in self.subscribers)
            busy = busy or any(ring.readers for ring in self.hub.rings.values())
            busy = busy or any(book.unacked for author in self.authors for book in author.books.values())
            if busy:
                quiet = 0
            elif quiet < 2:
                quiet += 1
                self.hub.heads()
            else:
                return
        raise AssertionError("it does not come to rest")

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
        self.settle()
