"""The author's side of a topic: numbers its events, keeps them until (and a while after) the hub acknowledges them.

Rules:
1. Sequence numbers are 1, 2, 3, ... without a hole in one (topic, author, epoch). An event that cannot be encoded or is
   too large takes no number.
2. What is not acknowledged is never thrown away; `full` says when to wait, so memory is bounded all the same.
3. What is acknowledged is kept too, newest first, up to a bound: it refills a hub that lost its memory.
4. After a (re)connect: send `head()`, wait for the hub's `topic.ack`, send what `resume(seq)` returns, in that order,
   and only then new events. The hub takes a number once: a new event sent before the refill makes the refill old news.

Not here: when to send, to whom, and whether the hub is there at all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson

from broker.errors import EventTooLarge

__all__ = [
    "RETAINED_BYTES",
    "RETAINED_EVENTS",
    "UNACKED_BYTES",
    "UNACKED_EVENTS",
    "Publication",
    "PublicationLimits",
    "Resume",
]

UNACKED_EVENTS: Final = 4_096
"""Some ten times the hub's acknowledgement interval: a publisher in full flight never waits for a prompt hub."""
UNACKED_BYTES: Final = 8 * 1024 * 1024
RETAINED_EVENTS: Final = 10_000
"""The same as a hub's ring, so that a refill can restore all that the ring held of this author."""
RETAINED_BYTES: Final = 16 * 1024 * 1024
MAX_EVENT_BYTES: Final = 1_048_576
"""The wire's frame limit (codec.MAX_FRAME_BYTES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationLimits:
    unacked_events: int = UNACKED_EVENTS
    unacked_bytes: int = UNACKED_BYTES
    retained_events: int = RETAINED_EVENTS
    retained_bytes: int = RETAINED_BYTES
    max_event_bytes: int = MAX_EVENT_BYTES


class Resume(NamedTuple):
    """What to send again. ``first`` is the number of the first frame (of the next event when there are none);
    ``gone`` is the range between what the hub has and ``first`` that this author no longer holds, or None."""

    frames: list[bytes]
    first: int
    gone: tuple[int, int] | None


class Publication:
    """One (topic, author, epoch) at its author."""

    __slots__ = (
        "_acked",
        "_first",
        "_frames",
        "_limits",
        "_retained_bytes",
        "_unacked_bytes",
        "author",
        "epoch",
        "next_seq",
        "topic",
    )

    def __init__(self, topic: str, author: str, epoch: str, limits: PublicationLimits | None = None) -> None:
        self.topic, self.author, self.epoch = topic, author, epoch
        self.next_seq = 1
        self._limits = limits or PublicationLimits()
        self._frames: deque[bytes] = deque()
        self._first = 1
        self._acked = 0
        self._unacked_bytes = 0
        self._retained_bytes = 0

    @property
    def unacked(self) -> int:
        return self.next_seq - 1 - self._acked

    @property
    def unacked_bytes(self) -> int:
        return self._unacked_bytes

    @property
    def retained(self) -> int:
        """Events that are kept though acknowledged."""
        return self._acked + 1 - self._first

    @property
    def acked(self) -> int:
        return self._acked

    @property
    def full(self) -> bool:
        """Whether to wait for an acknowledgement before the next `publish`."""
        limits = self._limits
        return self.next_seq - 1 - self._acked >= limits.unacked_events or self._unacked_bytes >= limits.unacked_bytes

    def publish(
        self, detail: Any, ts_ms: int | None = None, id: str | None = None, *, traceparent: str | None = None
    ) -> bytes:
        """Number an event and keep it; returns the message to send (no length header).

        ValueError for what JSON cannot carry, and EventTooLarge: neither takes a number. RuntimeError when `full`.
        """
        if self.full:
            raise RuntimeError(f"topic {self.topic!r}: publish() while full; wait for an acknowledgement")
        seq = self.next_seq
        meta: dict[str, Any] = {"author": self.author, "epoch": self.epoch, "seq": seq}
        if id is not None:
            meta["id"] = id
        if ts_ms is not None:
            meta["ts"] = ts_ms
        if traceparent is not None:
            meta["traceparent"] = traceparent
        try:
            frame = orjson.dumps({"type": self.topic, "detail": detail, "meta": meta})
        except TypeError as error:
            raise ValueError(f"topic {self.topic!r}: the event is not JSON: {error}") from error
        size = len(frame)
        if size > self._limits.max_event_bytes:
            raise self._too_large(size)
        self._frames.append(frame)
        self._unacked_bytes += size
        self.next_seq = seq + 1
        return frame

    def _too_large(self, size: int) -> EventTooLarge:
        limit = self._limits.max_event_bytes
        return EventTooLarge(
            f"topic {self.topic!r}: an event of {size} bytes, the limit is {limit}. "
            "Send a reference to the data, or split it.",
            size=size,
            limit=limit,
        )

    def ack(self, seq: int) -> int:
        """The hub has everything up to ``seq``. Returns how many events that settles; 0 for a stale or wrong one."""
        if not self._acked < seq < self.next_seq:
            return 0
        settled = seq - self._acked
        size = sum(map(len, islice(self._frames, self._acked + 1 - self._first, seq + 1 - self._first)))
        self._acked = seq
        self._unacked_bytes -= size
        self._retained_bytes += size
        self._trim()
        return settled

    def _trim(self) -> None:
        limits = self._limits
        while self._first <= self._acked and (
            self._acked + 1 - self._first > limits.retained_events or self._retained_bytes > limits.retained_bytes
        ):
            self._retained_bytes -= len(self._frames.popleft())
            self._first += 1

    def resume(self, acked_seq: int) -> Resume:
        """The hub said after a (re)connect that it has up to ``acked_seq`` (0: nothing): what to send it again.

        A number beyond the newest cannot be about this epoch; it is ignored and nothing is sent.
        """
        if acked_seq >= self.next_seq:
            return Resume([], self.next_seq, None)
        self.ack(acked_seq)
        first = max(acked_seq + 1, self._first)
        gone = (acked_seq + 1, first - 1) if first > acked_seq + 1 else None
        return Resume(list(islice(self._frames, first - self._first, None)), first, gone)

    def head(self) -> dict[str, Any]:
        """The detail of ``topic.head``: the newest number, and the oldest that can still be sent again."""
        return {"topic": self.topic, "epoch": self.epoch, "seq": self.next_seq - 1, "first": self._first}
