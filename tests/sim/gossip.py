"""A model of iroh-gossip: swarms of neighbours, with the traps of the real one, under the API of the extension's Swarm.

What it has of the real one (measured, or read in its source): equal content within 90 s is one message; a program that
does not read loses what is beyond 256 messages and is told only that it lagged; an active view of five neighbours; a
joiner whose bootstrap is gone hears nothing; what was split stays split until somebody joins across; messages overtake
each other, and arrive by more than one way. A batch is signed by naming its signer: who may sign is checked here, as
the extension does; forged and replayed bytes are the extension's own tests. Not here: connections (network.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from broker import _gossip_ext as real
from broker.protocol.codec import Parts
from broker.protocol.named import Frame
from tests.sim.network import Network
from tests.sim.world import Process, World

if TYPE_CHECKING:
    from tests.sim.endpoint import SimEndpoint

__all__ = ["Gossip", "SimSwarm", "SwarmHandler", "open_batch"]

ACTIVE = 5
PASSIVE = 30
SAME_CONTENT = 90.0
INBOX = 256
"""Messages that wait for a program."""
CLOSES = 0.005
"""Seconds after which a batch is closed."""
BATCH_EVENTS = 15
ROOM = 512
"""Events that wait to be sent."""
PACE = 0.0005
"""Seconds a message of one sender."""
KEPT = 400
"""Batches kept for repairs."""
SWEEP = 1.0
DEAD_AFTER = 3
"""Sweeps after which a neighbour that does not answer is gone."""


class Message(NamedTuple):
    """``first`` of a head is the newest number, and ``frames`` what makes it differ from the one before."""

    head: bool
    signer: str
    author: str
    epoch: str
    first: int
    frames: tuple[Frame, ...]
    salt: int = 0


class SwarmHandler(Protocol):
    """broker.border.SwarmHandler."""

    def neighbour(self, swarm: int, node_id: str, up: bool) -> None: ...
    def gossiped(self, swarm: int, author: str, epoch: str, first_seq: int, events: Any) -> None: ...
    def headed(self, swarm: int, author: str, epoch: str, seq: int) -> None: ...
    def lagged(self, swarm: int) -> None: ...
    def swarm_drained(self, swarm: int) -> None: ...


def open_batch(topic: str, data: bytes, hubs: Sequence[str] = ()) -> tuple[str, str, int, list[Frame]]:
    """ext.open_batch, of what `SimSwarm.batches` gives."""
    said, signer, author, epoch, first, frames = orjson.loads(data)
    if said != topic:
        raise ValueError("wrong_topic")
    if signer != author and signer not in hubs:
        raise ValueError("not_allowed")
    opened = [one.encode() if isinstance(one, str) else (one[0], bytes.fromhex(one[1])) for one in frames]
    return author, epoch, first, opened


class Gossip:
    """All swarms."""

    def __init__(self, world: World, net: Network) -> None:
        self.world, self.net, self.weather = world, net, net.weather
        self.swarms: dict[bytes, dict[str, SimSwarm]] = {}
        self.ids = count(1)
        self.salt = count(1)
        self._sweeping = False
        self.deaf: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def count(self, what: str, more: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + more

    def enter(self, swarm: SimSwarm) -> None:
        self.swarms.setdefault(swarm.swarm_id, {})[swarm.endpoint.node_id] = swarm
        if not self._sweeping:
            self._sweeping = True
            self.world.after(SWEEP, self._sweep)

    def reach(self, a: Process, b: Process) -> bool:
        return not a.frozen and not b.frozen and self.passes(a, b)

    def passes(self, a: Process, b: Process) -> bool:
        """Whether packets of gossip get from one to the other. ``deaf``: those of gossip alone do not, by host."""
        now = self.world.now
        deaf = self.deaf.get(a.host, 0.0) > now or self.deaf.get(b.host, 0.0) > now
        return a.alive and b.alive and not deaf and self.net.reach(a.host, b.host)

    def connect(self, one: SimSwarm, node_id: str, *, urgent: bool = True) -> bool:
        """Dials a peer in a swarm. False when it cannot be had. Who has no neighbour is taken in place of another."""
        other = self.swarms.get(one.swarm_id, {}).get(node_id)
        if other is None or other is one or other.over or one.over:
            return False
        admitted = node_id in one.endpoint.peers and one.endpoint.node_id in other.endpoint.peers
        if not admitted or not self.reach(one.process, other.process):
            return False
        if not urgent and len(other.active) >= ACTIVE:
            return False
        if other not in one.active:
            for a, b in ((one, other), (other, one)):
                a.makes_room()
                a.active[b] = 0
                a.knows(b)
                a.tell_neighbour(b, up=True)
        return True

    def part(self, one: SimSwarm, other: SimSwarm) -> None:
        for a, b in ((one, other), (other, one)):
            if a.active.pop(b, None) is not None:
                a.tell_neighbour(b, up=False)
                a.refill()

    def _sweep(self) -> None:
        """Neighbours that do not answer are noticed."""
        for members in self.swarms.values():
            for node_id, swarm in list(members.items()):
                for other in list(swarm.active):
                    if self.reach(swarm.process, other.process):
                        swarm.active[other] = 0
                    elif swarm.process.alive and not swarm.process.frozen:
                        swarm.active[other] += 1
                        if swarm.active[other] >= DEAD_AFTER:
                            swarm.passive.pop(other.endpoint.node_id, None)
                            self.part(swarm, other)
                if not swarm.process.alive and not swarm.active:
                    del members[node_id]
        self.world.after(SWEEP, self._sweep)


def in_parts(frames: Sequence[Frame]) -> Parts | list[Frame]:
    """As the extension tells it, if it can: without what the batch says of each."""
    values: list[Any] = []
    for frame in frames:
        if isinstance(frame, tuple):
            return list(frames)
        message = orjson.loads(frame)
        added = {key: value for key, value in message["meta"].items() if key not in ("author", "epoch", "seq")}
        values += [message["detail"], added]
    return len(frames), orjson.dumps(values)


class SimSwarm:
    """ext.Swarm."""

    def __init__(
        self,
        gossip: Gossip,
        endpoint: SimEndpoint,
        topic: str,
        swarm_id: bytes,
        peers: Sequence[str],
        hubs: Sequence[str],
        authors: Sequence[str] | None,
        events: str,
    ) -> None:
        self._parts = events == "parts"
        self.gossip, self.endpoint, self.process = gossip, endpoint, endpoint.process
        self.topic, self.swarm_id, self.id = topic, swarm_id, next(gossip.ids)
        self.active: dict[SimSwarm, int] = {}
        """Neighbours, and for how many sweeps each has not answered."""
        self.passive: dict[str, None] = {}
        self.over = False
        self._hubs, self._authors = frozenset(hubs), None if authors is None else frozenset(authors)
        self._seen: dict[Message, float] = {}
        self._open: deque[tuple[str, str, int, list[bytes]]] = deque()
        self._waiting = 0
        self._closing = self._refused = False
        self._kept: deque[Message] = deque(maxlen=KEPT)
        self._inbox = 0
        self._chance = gossip.world.chance("swarm", endpoint.process.name, topic)
        gossip.enter(self)
        self.join_peers(peers)

    # -- neighbours

    def join_peers(self, peers: Sequence[str]) -> None:
        for node_id in peers:
            self.gossip.world.after(self._delay() * 3, lambda node_id=node_id: self._join(node_id))  # type: ignore[misc]

    def _join(self, node_id: str) -> None:
        """A joiner is passed on from neighbour to neighbour of whom it dialled, and nowhere else."""
        if self.over or not self.process.alive or not self.gossip.connect(self, node_id):
            return
        contact = self.gossip.swarms[self.swarm_id][node_id]
        near = dict.fromkeys(far for one in [contact, *contact.active] for far in (one, *one.active))
        others = [one for one in near if one is not self and one not in self.active]
        for other in self._chance.sample(others, min(len(others), 2)):
            self.gossip.connect(self, other.endpoint.node_id, urgent=False)

    def makes_room(self) -> None:
        if len(self.active) >= ACTIVE:
            victim = self._chance.choice(list(self.active))
            self.gossip.part(self, victim)

    def knows(self, other: SimSwarm) -> None:
        """Shuffles, in short: of whom it meets it learns the neighbours."""
        self.passive.update(dict.fromkeys(one.endpoint.node_id for one in (other, *other.active) if one is not self))
        while len(self.passive) > PASSIVE:
            del self.passive[next(iter(self.passive))]

    def refill(self) -> None:
        """A neighbour was lost: one that was heard of takes its place, if it can be had."""
        known = [node_id for node_id in self.passive if node_id not in self.neighbours()]
        if known and not self.over:
            node_id = self._chance.choice(known)
            self.gossip.world.after(self._delay() * 3, lambda: self._replace(node_id))

    def _replace(self, node_id: str) -> None:
        if self.over or not self.process.alive or len(self.active) >= ACTIVE:
            return
        if not self.gossip.connect(self, node_id, urgent=not self.active):
            self.passive.pop(node_id, None)
            self.refill()

    def tell_neighbour(self, other: SimSwarm, *, up: bool) -> None:
        self._tell(lambda to: to.neighbour(self.id, other.endpoint.node_id, up))

    def _tell(self, say: Callable[[SwarmHandler], None]) -> None:
        """The program hears of it, as a batch of its inbox."""

        def inside() -> None:
            if not self.over:
                say(self.endpoint.of_swarms)
                self.endpoint.batch_done()

        self.gossip.world.after(0.0, lambda: self.process.when_awake(inside))

    # -- what goes out

    def publish(self, epoch: str, first_seq: int, frames: Sequence[bytes], *, author: str | None = None) -> bool:
        if self._waiting and self._waiting + len(frames) > ROOM:
            self._refused = True
            return False
        self._open.append((author or self.endpoint.node_id, epoch, first_seq, list(frames)))
        self._waiting += len(frames)
        if not self._closing:
            self._closing = True
            self.gossip.world.after(CLOSES, self._close)
        return True

    def _close(self) -> None:
        """The next batch goes out, and then the next."""
        self._closing = False
        if not self._open or not self.process.alive:
            return
        author, epoch, first, frames = self._open.popleft()
        batch, rest = frames[:BATCH_EVENTS], frames[BATCH_EVENTS:]
        if rest:
            self._open.appendleft((author, epoch, first + len(batch), rest))
        self._waiting -= len(batch)
        most = self.message_bytes()
        named = tuple(one if len(one) <= most else (len(one), real.event_hash(one)) for one in batch)
        self._say(Message(False, self.endpoint.node_id, author, epoch, first, named))
        if self._refused and self._waiting * 2 <= ROOM:
            self._refused = False
            self._tell(lambda to: to.swarm_drained(self.id))
        if self._open:
            self._closing = True
            self.gossip.world.after(PACE, self._close)

    def head(self, epoch: str, seq: int, *, author: str | None = None) -> None:
        me = self.endpoint.node_id
        self._say(Message(True, me, author or me, epoch, seq, (), next(self.gossip.salt)))

    def _say(self, message: Message) -> None:
        now = self.gossip.world.now
        if self._seen.get(message, float("-inf")) > now - SAME_CONTENT:
            self.gossip.count("same content")
            return
        self._seen[message] = now
        if not message.head:
            self._kept.append(message)
        self.gossip.count("heads" if message.head else "batches")
        self._forward(message, None)

    def _forward(self, message: Message, but: SimSwarm | None) -> None:
        for other in self.active:
            if other is not but:
                self.gossip.world.after(self._delay(), lambda other=other: other.hear(message, self))  # type: ignore[misc]

    def _delay(self) -> float:
        weather = self.gossip.weather
        return weather.latency + self._chance.random() * max(weather.jitter, 0.0005)

    # -- what comes in

    def hear(self, message: Message, by: SimSwarm) -> None:
        if self.over or not self.gossip.passes(by.process, self.process):
            return
        weather, now = self.gossip.weather, self.gossip.world.now
        if weather.gossip_loss and self._chance.random() < weather.gossip_loss:
            return
        if self._seen.get(message, float("-inf")) > now - SAME_CONTENT:
            return
        self._seen[message] = now
        if self.process.frozen:
            self._inbox += 1
            if self._inbox > INBOX:
                self._inbox = 0
                self.gossip.count("lagged")
                self._tell(lambda to: to.lagged(self.id))
            if self._inbox == 0:
                return
        else:
            self._inbox = 0
        if not message.head:
            self._kept.append(message)
        self._forward(message, by)
        if weather.gossip_loss and self._chance.random() < weather.gossip_loss / 2:
            self.gossip.count("lagged")
            self._tell(lambda to: to.lagged(self.id))
            return
        self._deliver(message)
        if weather.gossip_copies and self._chance.random() < weather.gossip_copies:
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        _, signer, author, epoch, first, frames, _ = message
        if signer != author and signer not in self._hubs:
            self.gossip.count("not allowed")
            return
        if self._authors is not None and author not in self._authors and author not in self._hubs:
            self.gossip.count("not allowed")
            return
        if message.head:
            self._tell(lambda to: to.headed(self.id, author, epoch, first))
        else:
            self.endpoint.trace(
                f"{self.topic}: batch {first}..{first + len(frames) - 1} of {author[-4:]} by {signer[-4:]}"
            )
            events = in_parts(frames) if self._parts else list(frames)
            self._tell(lambda to: to.gossiped(self.id, author, epoch, first, events))

    # -- the rest of ext.Swarm

    def allow(self, *, hubs: Sequence[str], authors: Sequence[str] | None) -> None:
        self._hubs, self._authors = frozenset(hubs), None if authors is None else frozenset(authors)

    def batches(self, author: str, epoch: str, a: int, b: int, max_bytes: int = 262_144) -> list[bytes]:
        found: dict[int, bytes] = {}
        for one in self._kept:
            if (one.author, one.epoch) == (author, epoch) and one.first <= b and one.first + len(one.frames) > a:
                frames = [it.decode() if isinstance(it, bytes) else (it[0], it[1].hex()) for it in one.frames]
                found[one.first] = orjson.dumps([self.topic, one.signer, author, epoch, one.first, frames])
        return [found[first] for first in sorted(found)]

    def neighbours(self) -> list[str]:
        return [other.endpoint.node_id for other in self.active]

    def message_bytes(self) -> int:
        return self.gossip.weather.message_bytes

    def counters(self) -> dict[str, int]:
        return {"neighbours": len(self.active)}

    def leave(self) -> None:
        if not self.over:
            self.over = True
            members: dict[str, Any] = self.gossip.swarms.get(self.swarm_id, {})
            if members.get(self.endpoint.node_id) is self:
                del members[self.endpoint.node_id]
            for other in list(self.active):
                self.gossip.part(self, other)

    def cut(self, node_ids: Iterable[str]) -> None:
        """These must not gossip with us any more."""
        gone = set(node_ids)
        for other in [other for other in self.active if other.endpoint.node_id in gone]:
            self.passive.pop(other.endpoint.node_id, None)
            self.gossip.part(self, other)
