"""A peer that can gossip, with nothing above the extension: it joins what it is told of, and keeps what comes. Not
here: any expectation."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson

from broker import Hub
from broker import _gossip_ext as ext
from broker.border import attach
from broker.config import GossipConfig
from broker.protocol.named import Frame
from tests.rig import Peer, until

EPOCH = "0123456789abcdef"
MESSAGE_BYTES = GossipConfig().message_bytes

Place = tuple[str, str, int]
"""(author, epoch, seq)."""


def event(author: str, seq: int, detail: Any = None, *, topic: str = "a", epoch: str = EPOCH) -> bytes:
    """An event as its author writes it."""
    meta = {"author": author, "epoch": epoch, "seq": seq}
    return orjson.dumps({"type": topic, "detail": seq if detail is None else detail, "meta": meta})


def heard(peer: Peer, topic: str = "a") -> list[Any]:
    """Details of the events that came to a peer by stream."""
    return [message["detail"] for message in peer.received if message["type"] == topic]


class GossipPeer(Peer):
    """See the module. With ``follows`` it joins what it is told of, and says so (``says``) when it hears it."""

    def __init__(self, *, follows: bool = True, says: bool = True, **options: Any) -> None:
        self.swarms: dict[str, ext.Swarm] = {}
        self.told: dict[str, dict[str, Any]] = {}
        """The last ``topic.swarm`` of each topic."""
        self.events: list[Place] = []
        """What came by gossip."""
        self.heads: list[Place] = []
        self.peers: set[str] = set()
        """Whom the hub lets gossip."""
        self._follows, self._says = follows, says
        self._old: list[ext.Swarm] = []
        super().__init__(accept=True, gossip_message_bytes=MESSAGE_BYTES, **options)
        self._detach()
        self._detach = attach(self.endpoint, self, self)

    @property
    def node_id(self) -> str:
        return self.endpoint.node_id

    async def hello(
        self, ticket: str, *, name: str = "raw", operations: tuple[str, ...] = (), kind: str = "query"
    ) -> None:
        await self.dial(ticket)
        place = {"addrs": self.endpoint.addrs(), "relays": [], "max": MESSAGE_BYTES}
        detail = {"name": name, "operations": [], "protocol": 1, "capabilities": ["gossip/1"], "gossip": place}
        self.say("hub.register", detail)
        await self.hears("hub.register")

    def meet(self) -> None:
        """Has the hub tell it of its peers, as with its first swarm."""
        self.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False})

    def subscribe(self, *patterns: str, since: Any = None) -> None:
        self.say("__subscribe", {"topics": list(patterns), "since": since})

    def publish(self, topic: str, *seqs: int, epoch: str = EPOCH) -> None:
        """By stream."""
        self.raw(*(event(self.node_id, seq, topic=topic, epoch=epoch) for seq in seqs), lane=ext.TOPICS)

    def gossip(self, topic: str, first: int, last: int, *, epoch: str = EPOCH) -> bool:
        """Into the swarm."""
        frames = [event(self.node_id, seq, topic=topic, epoch=epoch) for seq in range(first, last + 1)]
        return self.swarms[topic].publish(epoch, first, frames)

    def follow(self, detail: dict[str, Any]) -> None:
        """Joins what a ``topic.swarm`` names; leaves what it is in for that."""
        topic = detail["topic"]
        before = self.told.get(topic, {})
        self.told[topic] = detail
        if detail["id"] is None:
            if (swarm := self.swarms.pop(topic, None)) is not None:
                swarm.leave()
            self.say("topic.swarm", self._said(topic, joined=False))
            self.subscribe(topic, since={topic: self.positions(topic)})
            return
        for place in detail["bootstrap"]:
            self.endpoint.learn(place["id"], place["addrs"], place["relays"])
        ids = [place["id"] for place in detail["bootstrap"]]
        if before.get("id") == detail["id"] and topic in self.swarms:
            self.swarms[topic].join_peers(ids)
            self.swarms[topic].allow(hubs=detail["hubs"], authors=detail["authors"])
            return
        if topic in self.swarms:
            self._old.append(self.swarms[topic])
        self.swarms[topic] = self.endpoint.join(
            topic, bytes.fromhex(detail["id"]), ids, hubs=detail["hubs"], authors=detail["authors"]
        )

    def positions(self, topic: str) -> dict[str, tuple[str, int]]:
        """How far it has all of each author, from the first that it heard on."""
        had: dict[tuple[str, str], set[int]] = {}
        for author, epoch, seq in self.events:
            had.setdefault((author, epoch), set()).add(seq)
        for message in self.received:
            if message["type"] == topic:
                meta = message["meta"]
                had.setdefault((meta["author"], meta["epoch"]), set()).add(meta["seq"])
        found = {}
        for (author, epoch), seqs in had.items():
            last = min(seqs)
            while last + 1 in seqs:
                last += 1
            found[author] = (epoch, last)
        return found

    def _said(self, topic: str, *, joined: bool) -> dict[str, Any]:
        neighbours = len(self.swarms[topic].neighbours()) if topic in self.swarms else 0
        generation = self.told[topic]["generation"]
        return {"topic": topic, "generation": generation, "joined": joined, "neighbours": neighbours}

    def say_joined(self, topic: str) -> None:
        self.say("topic.swarm", self._said(topic, joined=True))

    async def until_joined(self, hub: Hub, topic: str = "a") -> None:
        """The hub has taken it out of the stream."""
        await until(lambda: out_of_stream(hub, self, topic))

    def answer(self, topic: str, author: str, epoch: str, first: int, last: int) -> None:
        """What the swarm keeps of a range, as the hub wants it when it asks."""
        for data in self.swarms[topic].batches(author, epoch, first, last):
            self.say("topic.batch", {"topic": topic, "data": base64.b64encode(data).decode()})

    # broker.border.Handler and SwarmHandler

    def frames(self, conn: int, frames: list[bytes]) -> None:
        for message in map(orjson.loads, frames):
            match message["type"]:
                case "hub.peers":
                    detail = message["detail"]
                    self.endpoint.admit_peers(detail["add"], detail["remove"], full=detail["full"])
                    self.peers = (set() if detail["full"] else self.peers) | set(detail["add"])
                    self.peers -= set(detail["remove"])
                case "topic.swarm" if self._follows:
                    self.follow(message["detail"])
            self.received.append(message)

    def neighbour(self, swarm: int, node_id: str, up: bool) -> None:
        for topic, one in self.swarms.items():
            if one.id == swarm and up:
                if self._says:
                    self.say_joined(topic)
                for old in [old for old in self._old if old.topic == topic]:
                    self._old.remove(old)
                    old.leave()

    def gossiped(self, swarm: int, author: str, epoch: str, first_seq: int, frames: list[Frame]) -> None:
        self.events += [(author, epoch, seq) for seq in range(first_seq, first_seq + len(frames))]

    def headed(self, swarm: int, author: str, epoch: str, seq: int) -> None:
        self.heads.append((author, epoch, seq))

    def lagged(self, swarm: int) -> None: ...

    def swarm_drained(self, swarm: int) -> None: ...


@asynccontextmanager
async def a_gossiper(hub: Hub, name: str, **options: Any) -> AsyncIterator[GossipPeer]:
    """One that is registered."""
    peer = GossipPeer(**options)
    try:
        await peer.hello(hub.ticket, name=name)
        yield peer
    finally:
        peer.close()


@asynccontextmanager
async def gossipers(
    hub: Hub, *names: str, topic: str = "a", want: bool = False, waits: bool = True, **options: Any
) -> AsyncIterator[list[GossipPeer]]:
    """Peers that subscribe to a topic over gossip and are out of its stream. ``want``: the topic begins with them."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(a_gossiper(hub, name, **options)) for name in names]
        for peer in peers:
            peer.subscribe(topic)
            if want:
                peer.say("topic.swarm", {"topic": topic, "generation": 0, "joined": False, "want": True})
        if waits:
            for peer in peers:
                await peer.until_joined(hub, topic)
        yield peers


def out_of_stream(hub: Hub, peer: GossipPeer, topic: str = "a") -> bool:
    """Whether the hub leaves a peer out of the fan-out of a topic, since it hears the swarm."""
    (conn,) = [one.peer for one in hub.router.sessions.values() if one.node_id == peer.node_id]
    channel = hub.router.topics.channels.get(topic)
    return channel is not None and conn in channel.by_gossip and conn not in channel.leftover
