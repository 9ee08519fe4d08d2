"""The extension's Endpoint, Group and Swarm without a network: who is connected, whose lane is full, and what was sent.

As far as broker/_gossip_ext.pyi promises it to a hub's router. Not here: what was sent being right (hub.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

__all__ = ["Clock", "FakeEndpoint", "FakeGroup", "FakeSwarm", "Sent"]


class Clock:
    """In place of the module ``time`` in the hub's modules."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


class Sent(NamedTuple):
    conn: int
    frame: bytes


class FakeEndpoint:
    """Connections are numbers. A full one takes nothing; an ended one is still to be told to the hub."""

    node_id = "0" * 64

    def __init__(self) -> None:
        self.live: dict[int, str] = {}
        self.full: set[int] = set()
        self.ended: list[tuple[int, int, str]] = []
        self.sent: list[Sent] = []
        self.groups: list[FakeGroup] = []
        self.swarms: dict[int, FakeSwarm] = {}
        self.joined = 0

    def opened(self, conn: int, node_id: str) -> None:
        self.live[conn] = node_id

    def gone(self, conn: int) -> None:
        del self.live[conn]
        self.full.discard(conn)
        for group in self.groups:
            group.conns.pop(conn, None)

    def takes(self, conn: int) -> bool:
        return conn in self.live and conn not in self.full

    # What a hub uses.

    def send(self, conn: int, frames: bytes | Sequence[bytes], lane: int = 0) -> bool:
        if not self.takes(conn):
            return False
        self.sent += (Sent(conn, frame) for frame in ([frames] if isinstance(frames, bytes) else frames))
        return True

    def pack(self, frames: Sequence[bytes]) -> tuple[bytes, ...]:
        return tuple(frames)

    def close_connection(self, conn: int, code: int, reason: str) -> None:
        if conn in self.live:
            self.gone(conn)
            self.ended.append((conn, code, reason))

    def group(self) -> FakeGroup:
        group = FakeGroup(self)
        self.groups.append(group)
        return group

    def admit(self, *, open: bool, allow: Sequence[str], deny: Sequence[str]) -> list[int]:
        banned = [conn for conn, node_id in self.live.items() if node_id in deny]
        for conn in banned:
            self.close_connection(conn, 33, "banned")
        return banned

    def admit_peers(
        self, add: Sequence[str], remove: Sequence[str] = (), *, full: bool = False, framed: bool = False
    ) -> None:
        assert not set(remove) & set(add)

    def learn(self, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str] = ()) -> None:
        if not all(":" in addr for addr in addrs):
            raise ValueError("no address")

    def join(self, topic: str, id: bytes, peers: Sequence[str], **options: Any) -> FakeSwarm:
        self.joined -= 1
        self.swarms[self.joined] = FakeSwarm(self, self.joined, topic)
        return self.swarms[self.joined]

    def stats(self, conn: int) -> Any:
        if conn not in self.live:
            return None
        return SimpleNamespace(path="direct", remote_addr="127.0.0.1:1", rtt=0.001, queued_frames=0, queued_bytes=0)

    def queued(self) -> list[tuple[int, int]]:
        return []

    def write_at_once(self, conn: int) -> None:
        assert conn in self.live

    def addrs(self) -> list[str]:
        return []

    def dial(self, token: int, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str] = ()) -> None:
        if not all(":" in addr for addr in addrs):
            raise ValueError("no address")

    def relay_urls(self) -> list[str]:
        return []


class FakeGroup:
    def __init__(self, endpoint: FakeEndpoint) -> None:
        self.endpoint = endpoint
        self.conns: dict[int, None] = {}

    def add(self, conn: int) -> bool:
        if conn in self.endpoint.live:
            self.conns[conn] = None
        return conn in self.conns

    def remove(self, conn: int) -> bool:
        return self.conns.pop(conn, self) is None

    def __len__(self) -> int:
        return len(self.conns)

    def datagram(self, payload: bytes) -> tuple[int, int]:
        live = [conn for conn in self.conns if conn in self.endpoint.live]
        return len(live), 0

    def send(self, frames: Sequence[bytes]) -> list[int]:
        refused = [conn for conn in self.conns if not self.endpoint.takes(conn)]
        for conn in refused:
            del self.conns[conn]
        self.endpoint.sent += (Sent(conn, frame) for conn in self.conns for frame in frames)
        return refused


class FakeSwarm:
    def __init__(self, endpoint: FakeEndpoint, id: int, topic: str) -> None:
        self.endpoint, self.id, self.topic = endpoint, id, topic
        self.full = False

    def publish(self, epoch: str, first_seq: int, frames: Sequence[bytes], *, author: str | None = None) -> bool:
        assert self.id in self.endpoint.swarms
        assert frames
        assert first_seq >= 1
        return not self.full

    def head(self, epoch: str, seq: int, *, author: str | None = None) -> None:
        assert self.id in self.endpoint.swarms

    def join_peers(self, peers: Sequence[str]) -> None:
        assert self.id in self.endpoint.swarms

    def allow(self, *, hubs: Sequence[str], authors: Sequence[str] | None) -> None:
        assert self.id in self.endpoint.swarms

    def batches(self, author: str, epoch: str, a: int, b: int, max_bytes: int = 262_144) -> list[bytes]:
        return []

    def neighbours(self) -> list[str]:
        return []

    def message_bytes(self) -> int:
        return 3_800

    def counters(self) -> dict[str, int]:
        return {}

    def leave(self) -> None:
        self.endpoint.swarms.pop(self.id, None)
