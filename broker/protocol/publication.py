"""The author's side of a topic: numbers its events, keeps them until (and a while after) the hub acknowledges them.

Rules:
1. Sequence numbers are 1, 2, 3, ... without a hole in one (topic, author, epoch). An event that cannot be encoded or is
   too large takes no number.
2. What is not acknowledged is never thrown away; `full` says when to wait, so memory is bounded all the same. There
   are two exceptions. What is larger than a hub takes (`limit`): its number stays empty, and subscribers see a hole
   that nobody can fill. And while no hub is there to acknowledge, but others hear the events (``yields``): then the
   oldest make room, and `resume` names them `gone`.
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
from broker.protocol.codec import compact

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
RETAINED_EVENTS: Final = 65_536
"""The same as a hub's ring, so that a refill can restore all that the ring held of this author."""
RETAINED_BYTES: Final = 16 * 1024 * 1024
MAX_EVENT_BYTES: Final = 1_048_576
"""The wire's frame limit (codec.MAX_FRAME_BYTES)."""
GIVEN_UP: Final = b""
"""In the place of an event that the hub does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationLimits:
    unacked_events: int = UNACKED_EVENTS
    unacked_bytes: int = UNACKED_BYTES
    retained_events: int = RETAINED_EVENTS
    retained_bytes: int = RETAINED_BYTES
    max_event_bytes: int = MAX_EVENT_BYTES


class Resume(NamedTuple):
    """What to send again, without what was given up. ``first`` is the first number that is held (that of the next event
    when there is none); ``gone`` is the range between what the hub has and ``first``, or None."""

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
        "_max_event_bytes",
        "_retained_bytes",
        "_sizes",
        "_unacked_bytes",
        "author",
        "epoch",
        "next_seq",
        "topic",
        "yields",
    )

    def __init__(self, topic: str, author: str, epoch: str, limits: PublicationLimits | None = None) -> None:
        self.topic, self.author, self.epoch = topic, author, epoch
        self.next_seq = 1
        self.yields = False
        """The oldest makes room for the newest, acknowledged or not; it is never `full`."""
        self._limits = limits or PublicationLimits()
        self._max_event_bytes = self._limits.max_event_bytes
        self._frames: deque[bytes] = deque()
        self._sizes: deque[int] = deque()
        """Of the frames that are not acknowledged. Without it each acknowledgement walks past all that are kept, in a
        flood a quarter of the author's time."""
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
        return max(0, self._acked + 1 - self._first)

    @property
    def acked(self) -> int:
        return self._acked

    @property
    def first(self) -> int:
        """The oldest number that is held."""
        return self._first

    @property
    def full(self) -> bool:
        """Whether to wait for an acknowledgement before the next `publish`."""
        limits, settled = self._limits, max(self._acked, self._first - 1)
        return not self.yields and (
            self.next_seq - 1 - settled >= limits.unacked_events or self._unacked_bytes >= limits.unacked_bytes
        )

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
            frame = compact(orjson.dumps({"type": self.topic, "detail": detail, "meta": meta}))
        except TypeError as error:
            raise ValueError(f"topic {self.topic!r}: the event is not JSON: {error}") from error
        size = len(frame)
        if size > self._max_event_bytes:
            raise self._too_large(size)
        self._frames.append(frame)
        self._sizes.append(size)
        self._unacked_bytes += size
        self.next_seq = seq + 1
        if self.yields:
            self._make_room()
        return frame

    def _make_room(self) -> None:
        """Lets go of the oldest beyond what is kept of acknowledged ones: so much a hub that comes back may get."""
        limits = self._limits
        while len(self._frames) > 1 and (
            len(self._frames) > limits.retained_events
            or self._retained_bytes + self._unacked_bytes > limits.retained_bytes
        ):
            size = len(self._frames.popleft())
            if self._first > self._acked:
                self._unacked_bytes -= self._sizes.popleft()
            else:
                self._retained_bytes -= size
            self._first += 1

    def _too_large(self, size: int) -> EventTooLarge:
        limit = self._max_event_bytes
        return EventTooLarge(
            f"topic {self.topic!r}: an event of {size} bytes, the limit is {limit}. "
            "Send a reference to the data, or split it.",
            size=size,
            limit=limit,
        )

    def limit(self, max_event_bytes: int) -> list[tuple[int, int]]:
        """This hub takes no larger event. Returns (seq, size) of those that were numbered for another hub, are not
        acknowledged, and are given up now."""
        self._max_event_bytes = max_event_bytes
        gone: list[tuple[int, int]] = []
        if all(len(frame) <= max_event_bytes for frame in self._frames):
            return gone
        for at, frame in enumerate(self._frames):
            if (size := len(frame)) <= max_event_bytes:
                continue
            self._frames[at] = GIVEN_UP
            if self._first + at > self._acked:
                gone.append((self._first + at, size))
                self._sizes[at - len(self._frames)] = 0
                self._unacked_bytes -= size
            else:
                self._retained_bytes -= size
        self._pass_given_up()
        return gone

    def _pass_given_up(self) -> None:
        """The hub acknowledges no number that it never gets."""
        while self._first <= self._acked + 1 < self.next_seq and (
            self._frames[self._acked + 1 - self._first] is GIVEN_UP
        ):
            self._sizes.popleft()
            self._acked += 1

    def ack(self, seq: int) -> int:
        """The hub has everything up to ``seq``. Returns how many events that settles; 0 for a stale or wrong one."""
        if not self._acked < seq < self.next_seq:
            return 0
        settled = seq - self._acked
        left = self.next_seq - 1 - seq
        size = sum(self._sizes.popleft() for _ in range(len(self._sizes) - left))
        self._acked = seq
        self._unacked_bytes -= size
        self._retained_bytes += size
        self._pass_given_up()
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
        frames = [frame for frame in islice(self._frames, first - self._first, None) if frame is not GIVEN_UP]
        return Resume(frames, first, gone)

    def runs(self, a: int, b: int, max_bytes: int | None = None) -> list[tuple[int, list[bytes]]]:
        """What is held of ``a..b``, as runs of consecutive numbers with the first of each; the oldest ``max_bytes`` of
        it, and one event at least."""
        runs: list[tuple[int, list[bytes]]] = []
        a, b = max(a, self._first), min(b, self.next_seq - 1)
        left, end = max_bytes, 0
        for seq, frame in enumerate(self._held(a, b), a):
            if frame is GIVEN_UP:
                continue
            if left is not None:
                if left < len(frame) and runs:
                    break
                left -= len(frame)
            if runs and seq == end:
                runs[-1][1].append(frame)
            else:
                runs.append((seq, [frame]))
            end = seq + 1
        return runs

    def _held(self, a: int, b: int) -> list[bytes]:
        """A deque is walked from its nearer end: what is sent is at the far one, beside thousands that are kept."""
        if a > b:
            return []
        if a - self._first <= self.next_seq - a:
            return list(islice(self._frames, a - self._first, b + 1 - self._first))
        newest = list(islice(reversed(self._frames), self.next_seq - a))
        newest.reverse()
        return newest[: b + 1 - a]

    def head(self) -> dict[str, Any]:
        """The detail of ``topic.head``: the newest number, and the oldest that can still be sent again."""
        return {"topic": self.topic, "epoch": self.epoch, "seq": self.next_seq - 1, "first": self._first}
