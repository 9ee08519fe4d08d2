"""What one NodeId may use of a hub, over all its connections.

Each limit has its config key (``limits.*_per_node``), its own error and its count in ``broker_limited_total``. Over the
publish rate nothing is dropped: the acknowledgements of that author wait until the rate allows what it has sent, and an
author that is not acknowledged stops when its buffer is full. One that goes on all the same is disconnected; what was
not acknowledged to it, it sends again when it is back. Not here: bounds of one connection, which the extension holds,
and the call table's own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from broker.protocol.answering import Refused
from broker.protocol.codec import decode, encode
from broker.protocol.wire import CloseCode

if TYPE_CHECKING:
    from broker.hub.router import Router
    from broker.hub.session import Session

__all__ = ["LOOK_INTERVAL", "MOST_AHEAD", "Bucket", "Limits"]

log = logging.getLogger("broker.hub")

MOST_AHEAD: Final = 65_536
"""Events that an author may be ahead of its rate: 16 topics' buffers of a spoke (protocol/publication.py)."""
LOOK_INTERVAL: Final = 1.0
"""Seconds between looks at the queues: each holds a bounded number of bytes, so their sum cannot run away meanwhile."""


class Bucket:
    """A token bucket that may be overdrawn. It begins full, with one second's worth."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._tokens, self._at = rate, rate, now

    def take(self, count: int, now: float) -> float:
        """Takes ``count`` and returns how many are owed now."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate) - count
        self._at = now
        return max(-self._tokens, 0.0)

    def full(self, now: float) -> bool:
        self.take(0, now)
        return self._tokens >= self._rate


class Limits:
    """The limits of every NodeId at one hub."""

    def __init__(self, router: Router) -> None:
        self._router, self._config = router, router.limits
        self._buckets: dict[str, Bucket] = {}
        self._held: dict[str, dict[tuple[int, str, str], Any]] = {}
        """NodeIds over their rate, and the newest acknowledgement that waits for each of their sequences."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._looking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._look)

    def stop(self) -> None:
        for timer in (*self._timers.values(), *filter(None, [self._looking])):
            timer.cancel()

    # Connections, operations, calls, subscriptions.

    def connection(self, node_id: str) -> str:
        """Why one more connection is too many, or nothing."""
        most, router = self._config, self._router
        if len(router.sessions) >= most.connections:
            self._count("hub_connections")
            return f"the hub has {most.connections} connections, which is its limit (limits.connections)"
        if len(router.by_node.get(node_id, ())) >= most.connections_per_node:
            self._count("connections")
            return (
                f"this NodeId has {most.connections_per_node} connections, which is the limit "
                "(limits.connections_per_node)"
            )
        return ""

    def operations(self, session: Session, ids: list[str]) -> int:
        """How many of the operations that it offers there is room for; it is told of the others."""
        most = self._config.operations_per_peer
        if len(ids) > most:
            self._count("operations")
            message = (
                f"{len(ids)} operations of this connection, {most} is the limit (limits.operations_per_peer); "
                f"those from {ids[most]} on are not offered"
            )
            self._router.complain(session.peer, "LIMIT", message, ids[most], "offer")
        return most

    def call(self, session: Session) -> Refused | None:
        """Why one more call is too many."""
        most, table = self._config.calls_in_flight_per_node, self._router.calls
        if sum(map(table.asked, self._router.by_node[session.node_id])) < most:
            return None
        self._count("calls_in_flight")
        message = f"{most} calls of this NodeId are in flight, which is the limit (limits.calls_in_flight_per_node)"
        return Refused("EXECUTION_ERROR", message, {"retryable": True, "limit": "calls_in_flight"})

    def subscriptions(self, session: Session, patterns: list[str]) -> list[str]:
        """Those of ``patterns`` that there is room for; it is told of the others."""
        most, table = self._config.subscriptions_per_node, self._router.topics.subscriptions
        room = most - sum(map(table.count, self._router.by_node[session.node_id]))
        if len(patterns) <= room:
            return patterns
        known = set(table.patterns(session.peer))
        new = [pattern for pattern in dict.fromkeys(patterns) if pattern not in known]
        refused = set(new[max(room, 0) :])
        if refused:
            self._count("subscriptions")
        for pattern in refused:
            message = f"this NodeId has {most} subscriptions, which is the limit (limits.subscriptions_per_node)"
            self._router.complain(session.peer, "LIMIT", message, pattern, "subscribe")
        return [pattern for pattern in patterns if pattern not in refused]

    # Frames.

    def too_large(self, session: Session, frame: bytes) -> bytes:
        """What is sent instead of a frame that is above the limit: that there was one."""
        self._count("frame_bytes")
        most = self._config.max_frame_bytes
        what = f"{decode(frame).type} has {len(frame)} bytes, a frame at most {most} (limits.max_frame_bytes)"
        log.error("not sent to %s: %s", session.name, what)
        return encode("hub.error", {"code": "LIMIT", "message": what, "about": None})

    # The publish rate.

    def published(self, session: Session, count: int) -> None:
        """One batch of its events has been taken in."""
        node_id, now, rate = session.node_id, time.monotonic(), self._config.publish_rate_per_node
        owed = self._bucket(node_id, now).take(count, now)
        if not owed:
            return
        if node_id not in self._held:
            self._count("publish_rate")
            self._held[node_id] = {}
            self._timers[node_id] = asyncio.get_running_loop().call_later(owed / rate, self._release, node_id)
            if session.epochs:  # it waits for no acknowledgement, so it must be told
                message = (
                    f"more than {rate:g} events/s of this NodeId, which is the limit (limits.publish_rate_per_node)"
                )
                self._router.complain(session.peer, "LIMIT", message, next(reversed(session.epochs)), "publish")
        if owed > max(MOST_AHEAD, rate):
            why = f"{int(owed)} events ahead of its {rate:g} events/s (limits.publish_rate_per_node)"
            self._router.close(session.peer, CloseCode.LIMIT, f"{why}; what was not acknowledged is to be sent again")

    def datagram(self, node_id: str) -> bool:
        """Whether one datagram more is within the rate. What is not is dropped: nothing waits for it."""
        now = time.monotonic()
        bucket = self._bucket(node_id, now)
        if bucket.take(0, now):
            return False
        bucket.take(1, now)
        return True

    def _bucket(self, node_id: str, now: float) -> Bucket:
        if (bucket := self._buckets.get(node_id)) is None:
            bucket = self._buckets[node_id] = Bucket(self._config.publish_rate_per_node, now)
        return bucket

    def send(self, peer: int, type: str, detail: Any) -> None:
        """What topics send. The acknowledgements of those who are over their rate wait."""
        if self._held and type == "topic.ack" and (session := self._router.sessions.get(peer)) is not None:
            held = self._held.get(session.node_id)
            if held is not None:
                held[peer, detail["topic"], detail["epoch"]] = detail
                return
        self._router.send(peer, type, detail)

    def _release(self, node_id: str) -> None:
        rate = self._config.publish_rate_per_node
        if owed := self._buckets[node_id].take(0, time.monotonic()):
            # Not sooner than the clock can tell: a timer may come a little before its time.
            self._timers[node_id] = asyncio.get_running_loop().call_later(
                max(owed / rate, 0.001), self._release, node_id
            )
            return
        del self._timers[node_id]
        for (peer, _, _), detail in self._held.pop(node_id).items():
            self._router.send(peer, "topic.ack", detail)
        self._router.settle()

    # Queued bytes.

    def _look(self) -> None:
        self.start()
        router, now = self._router, time.monotonic()
        queued: dict[str, list[tuple[int, int]]] = {}
        for conn, size in router.endpoint.queued():
            if (session := router.sessions.get(conn)) is not None and not session.closing:
                queued.setdefault(session.node_id, []).append((size, conn))
        most = self._config.queued_bytes_per_node
        for sizes in queued.values():
            if (total := sum(size for size, _ in sizes)) > most:
                self._count("queued_bytes")
                why = f"{total} bytes wait for this NodeId, the limit is {most} (limits.queued_bytes_per_node)"
                router.close(max(sizes)[1], CloseCode.LIMIT, why)
        for node_id in [one for one in self._buckets if one not in router.by_node and one not in self._held]:
            if self._buckets[node_id].full(now):
                del self._buckets[node_id]

    def _count(self, limit: str) -> None:
        self._router.metrics.limited(limit)
