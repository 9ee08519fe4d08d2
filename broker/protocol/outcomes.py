"""What became of calls that came over direct connections, so that one that is asked again runs once.

A caller whose direct connection died asks again by way of the hub, and says which call it means: the connection (by a
word that the caller chose), its requestId there, and how many answers it had *heard* on it. Here is found whether that
call never came (then it begins now), still runs, or has ended and how.

Why this is exact within a bound. Answers go in order over one stream, so a caller that has heard n of them knows the
first n. It has at most `caller.MAX_CALLS` calls in flight, so the answers that it has not heard are the newest ones; as
many are kept. What is dropped is remembered as a number: a call that is not found, asked by somebody who had heard all
that was dropped, never came. Otherwise nobody knows (`UNKNOWN`), and it is not run.

The first question about a connection seals it: what it brings later is not to be read, or a request that was still
under way would run twice.

Not here: tasks and futures, connections, clocks (``now`` is given).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum
from typing import Final

from broker.protocol.caller import MAX_CALLS

__all__ = ["KEEP", "MAX_BYTES", "MAX_LIVES", "MAX_OUTCOMES", "Found", "Life", "Outcomes"]

MAX_OUTCOMES: Final = MAX_CALLS
"""Answers that are kept of one connection."""
MAX_BYTES: Final = 33_554_432
"""Of kept answers, over all connections. Beyond it the oldest is remembered as one that is not kept."""
MAX_LIVES: Final = 256
"""Connections remembered: as many as there can be at a time, and those of the last seconds."""
KEEP: Final = 30.0
"""Seconds after the end of its connection: several times what it takes a caller to notice that a path has died."""


class Found(Enum):
    """Of a call that is asked again."""

    NEW = "it never came"
    RUNNING = "it runs"
    UNKNOWN = "it may have run, and its answer is not kept"


class Life:
    """One connection of one caller."""

    __slots__ = ("caller", "connection", "dropped", "kept", "order", "over", "running", "sealed", "sent")

    def __init__(self, caller: str, connection: str) -> None:
        self.caller, self.connection = caller, connection
        self.running: set[str] = set()
        self.kept: dict[str, bytes | None] = {}
        """Answers as they were sent, or are to be; None: too much to keep."""
        self.order: deque[tuple[int, str]] = deque()
        """(number, requestId) of those that were sent."""
        self.sent = 0
        self.dropped = 0
        """The number of the newest answer that is not remembered."""
        self.sealed = False
        self.over: float | None = None


class Outcomes:
    """All that one spoke remembers."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], Life] = {}
        self._sizes: OrderedDict[tuple[Life, str], int] = OrderedDict()
        """Of every kept answer, the oldest first."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._lives)

    def open(self, caller: str, connection: str) -> Life | None:
        """A connection has begun. None: that caller has had one of that name, or there are too many."""
        key = (caller, connection)
        if key in self._lives or len(self._lives) >= MAX_LIVES:
            return None
        life = self._lives[key] = Life(caller, connection)
        return life

    def began(self, life: Life, request_id: str) -> bool:
        """A call has come. False: it must not run, since its requestId is known, or its connection is sealed."""
        if life.sealed or request_id in life.running or request_id in life.kept:
            return False
        life.running.add(request_id)
        return True

    def aborted(self, life: Life, request_id: str) -> None:
        """Its caller does not want it, and will not ask again."""
        life.running.discard(request_id)

    def ended(self, life: Life, request_id: str, answer: bytes) -> bool:
        """A call has its answer, whether or not it can be sent. False: it is not one that is remembered, or had it."""
        if request_id not in life.running:
            return False
        life.running.discard(request_id)
        life.kept[request_id] = answer
        self._sizes[life, request_id] = len(answer)
        self.bytes += len(answer)
        while self.bytes > MAX_BYTES:
            (oldest, one), size = self._sizes.popitem(last=False)
            self.bytes -= size
            oldest.kept[one] = None
        return True

    def sent(self, life: Life, request_id: str | None) -> None:
        """One message with an answer has gone over the connection: a call's last one (its requestId), or another."""
        life.sent += 1
        if request_id in life.kept:
            assert request_id is not None
            life.order.append((life.sent, request_id))
            if len(life.order) > MAX_OUTCOMES:
                life.dropped, gone = life.order.popleft()
                del life.kept[gone]
                self.bytes -= self._sizes.pop((life, gone), 0)

    def over(self, life: Life, now: float) -> None:
        """The connection has ended."""
        if life.over is None:
            life.over = now

    def forget(self, life: Life) -> None:
        """As if it had never been: who asks about it is told that nobody knows."""
        life.sealed = True
        del self._lives[life.caller, life.connection]
        life.running.clear()
        for request_id in life.kept:
            self.bytes -= self._sizes.pop((life, request_id), 0)

    def life(self, caller: str, connection: str) -> Life | None:
        return self._lives.get((caller, connection))

    def again(self, caller: str, connection: str, request_id: str, heard: int) -> Found | bytes:
        """What became of a call; bytes: its answer. Its connection is sealed."""
        life = self._lives.get((caller, connection))
        if life is None:
            return Found.UNKNOWN
        life.sealed = True
        if request_id in life.running:
            return Found.RUNNING
        if request_id in life.kept:
            answer = life.kept[request_id]
            return Found.UNKNOWN if answer is None else answer
        if heard < life.dropped:
            return Found.UNKNOWN
        life.running.add(request_id)  # asked about once more it is one that runs, and runs elsewhere
        return Found.NEW

    def tick(self, now: float) -> list[Life]:
        """Forgets what is old. Returns them: what still runs of them and was not asked about, nobody waits for."""
        old = [one for one in self._lives.values() if one.over is not None and one.over + KEEP <= now]
        for life in old:
            self.forget(life)
        return old

    def next_due(self) -> float | None:
        overs = [one.over + KEEP for one in self._lives.values() if one.over is not None]
        return min(overs, default=None)
