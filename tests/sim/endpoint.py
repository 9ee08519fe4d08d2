"""The extension's Endpoint and Group, for the shells of one simulated process: what `broker/_gossip_ext.pyi` promises,
over the simulated network and swarms. Not here: what is decided with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from broker import _gossip_ext as real
from broker.protocol.wire import CloseCode
from tests.sim.gossip import Gossip, SimSwarm, SwarmHandler
from tests.sim.network import CALLS, TOPICS, Wire
from tests.sim.world import Process

__all__ = ["SimEndpoint"]


CONTROL = (b'{"type":"topic.', b'{"type":"hub.', b'{"type":"call.', b'{"type":"__')
LOST = b'{"type":"topic.lost"'


class Stats:
    """ext.ConnectionStats, as far as shells read it."""

    path, remote_addr = "none", ""


class SimEndpoint:
    def __init__(self, process: Process, node_id: str, gossip: Gossip) -> None:
        self.process, self.node_id, self.gossip = process, node_id, gossip
        self.wires: dict[int, Wire] = {}
        self.peers: dict[str, None] = {}
        """Who may gossip with us."""
        self.swarms: list[SimSwarm] = []
        self.handed = self.handed_lost = 0
        """Events that connections took, and numbers that were named lost to them."""
        self.of_swarms: SwarmHandler
        self.batch_done: Callable[[], None]
        self.dials: Callable[[int, str], None]
        """Told the token and the NodeId of whom its process dials."""

    def trace(self, text: str) -> None:
        if (say := self.process.world.trace) is not None:
            say(f"{self.process.world.now:9.4f}  swarm  > {self.process.name:12} {text}")

    # -- connections

    def send(self, conn: int, frames: bytes | Sequence[bytes], lane: int = real.CALLS) -> bool:
        wire = self.wires.get(conn)
        if wire is None:
            return False
        payloads = [frames] if isinstance(frames, bytes) else list(frames)
        took = wire.out(self.process).send(payloads, TOPICS if lane == real.TOPICS else CALLS)  # type: ignore[arg-type]
        for payload in payloads if took and lane == real.TOPICS else ():
            if payload.startswith(LOST):
                detail = orjson.loads(payload)["detail"]
                self.handed_lost += detail["to"] - detail["from"] + 1
            else:
                self.handed += not payload.startswith(CONTROL)
        return took

    def pack(self, frames: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(frames)

    def dial(self, token: int, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str]) -> None:
        """Everybody is found by its NodeId here."""
        self.dials(token, node_id)

    def close_connection(self, conn: int, code: int, reason: str) -> None:
        if (wire := self.wires.get(conn)) is not None:
            wire.close(self.process, code)  # type: ignore[arg-type]

    def stats(self, conn: int) -> Stats | None:
        return Stats() if conn in self.wires else None

    def queued(self) -> list[tuple[int, int]]:
        return []

    def group(self) -> SimGroup:
        return SimGroup(self)

    def admit(self, *, open: bool, allow: Sequence[str], deny: Sequence[str]) -> list[int]:
        ended: list[int] = []
        for conn, wire in list(self.wires.items()):
            node_id = getattr(wire.other(self.process), "node_id", "")  # type: ignore[arg-type]
            if node_id in deny or not (open or node_id in allow):
                ended.append(conn)
                code = CloseCode.BANNED if node_id in deny else CloseCode.NOT_ADMITTED
                self.close_connection(conn, code, "not admitted any more")
        self.admit_peers([], deny)
        return ended

    def addrs(self) -> list[str]:
        return [f"10.{int(self.node_id[-4:], 16) >> 8}.{int(self.node_id[-2:], 16)}.1:7"]

    def relay_urls(self) -> list[str]:
        return []

    def counters(self) -> dict[str, int]:
        return {}

    def write_at_once(self, conn: int) -> None:
        """It writes in no other way."""

    # -- gossip

    def learn(self, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str] = ()) -> None:
        """It is known anyway, as in `dial`."""

    def admit_peers(
        self, add: Sequence[str], remove: Sequence[str] = (), *, full: bool = False, framed: bool = False
    ) -> None:
        gone = [one for one in self.peers if one not in add] if full else [one for one in remove if one in self.peers]
        for node_id in gone:
            del self.peers[node_id]
        self.peers.update(dict.fromkeys(add))
        if gone:
            for swarm in self.swarms:
                swarm.cut(gone)

    def join(
        self,
        topic: str,
        id: bytes,
        peers: Sequence[str],
        *,
        hubs: Sequence[str] = (),
        authors: Sequence[str] | None = None,
        inbox_bytes: int = 0,
        keep_bytes: int = 0,
        events: str = "frames",
    ) -> SimSwarm:
        self.swarms = [swarm for swarm in self.swarms if not swarm.over]
        swarm = SimSwarm(self.gossip, self, topic, id, peers, hubs, authors, events)
        self.swarms.append(swarm)
        return swarm


class SimGroup:
    """Connections that get the same bytes."""

    def __init__(self, endpoint: SimEndpoint) -> None:
        self._endpoint = endpoint
        self._members: dict[int, None] = {}

    def add(self, conn: int) -> bool:
        if conn not in self._endpoint.wires:
            return False
        self._members[conn] = None
        return True

    def remove(self, conn: int) -> bool:
        found = conn in self._members
        self._members.pop(conn, None)
        return found

    def members(self) -> list[int]:
        return list(self._here())

    def _here(self) -> dict[int, None]:
        for conn in [conn for conn in self._members if conn not in self._endpoint.wires]:
            del self._members[conn]
        return self._members

    def __len__(self) -> int:
        return len(self._here())

    def __contains__(self, key: Any) -> bool:
        return key in self._here()

    def send(self, frames: Sequence[bytes]) -> list[int]:
        payloads = list(frames)
        refused = [conn for conn in self._here() if not self._endpoint.send(conn, payloads, real.TOPICS)]
        for conn in refused:
            del self._members[conn]
        return refused
