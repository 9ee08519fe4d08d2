"""What became of calls that came over direct connections, so that one that is asked again runs once, and of a stream
nothing is missing and nothing comes twice.

A caller whose direct connection died asks again by way of the hub, and says which call it means: the connection (by a
word that the caller chose), its requestId there, and how many answers it had *heard* on it: outputs, items of streams,
errors and ends. Here is found whether that call never came (then it begins now), and if it did, what its caller has not
heard of it.

Why this is exact within a bound. Answers go in order over one connection, so a caller that has heard n of them knows
the first n, and each that is kept here has its number. It has at most `caller.MAX_CALLS` calls in flight, so of those
that have ended it has not heard the newest alone; as many are kept. A stream's items are kept until its caller gives
credit for them, which is at most its window. What is dropped is remembered as a number: a call that is not found, asked
by somebody who had heard all that was dropped, never came. Otherwise nobody knows (`UNKNOWN`): it is not run, and no
more items of it are given.

The first question about a connection seals it: what it brings later is not to be read, or a request that was still
under way would run twice. A call is given to who asks first.

Not here: tasks and futures, connections, clocks (``now`` is given).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum
from math import inf
from typing import Any, Final

from broker.protocol.caller import MAX_CALLS

__all__ = ["BESIDE", "KEEP", "MAX_BYTES", "MAX_LIVES", "MAX_OUTCOMES", "Asked", "Found", "Life", "Outcomes"]

MAX_OUTCOMES: Final = MAX_CALLS
"""Calls that have ended that are kept of one connection."""
MAX_BYTES: Final = 33_554_432
"""Of kept answers, over all connections. Beyond it a stream that keeps more than its share gives up its oldest item for
the new one; else that call gives up its oldest answer which has had none for the longest time. Either is what is the
likeliest to have been heard, and no stream takes the room of others' answers."""
BESIDE: Final = 128
"""Bytes that an answer costs beside its own, and counts for: there may be very many small items."""
MAX_LIVES: Final = 256
"""Connections remembered: as many as there can be at a time, and those of the last seconds."""
KEEP: Final = 30.0
"""Seconds after the end of its connection: several times what it takes a caller to notice that a path has died."""


class Found(Enum):
    """Of a call that is asked again."""

    NEW = "it never came"
    UNKNOWN = "it may have run, and not all of what it came to is kept"


class Asked:
    """One call, and those of its answers that its caller may not have heard."""

    __slots__ = (
        *("bytes", "confirmed", "frames", "gone", "items", "life"),
        *("lost", "operation", "request_id", "running", "stream", "taken"),
    )

    def __init__(self, life: Life, request_id: str, operation: str, *, stream: bool) -> None:
        self.life, self.request_id, self.operation, self.stream = life, request_id, operation, stream
        self.running = True
        self.frames: list[tuple[float, bytes]] = []
        """As they were sent, each with its number on the connection. The last word has none (``inf``): who has heard it
        does not ask."""
        self.bytes = 0
        self.gone: float = 0
        """The number of the newest that was let go."""
        self.items = self.confirmed = 0
        """Of a stream: how many there were, and for how many its caller has given credit."""
        self.taken = self.lost = False
        """Somebody has asked again, and goes on with it; he cannot, since something was let go before he had it."""


class Life:
    """One connection of one caller."""

    __slots__ = ("caller", "calls", "connection", "dropped", "order", "over", "sealed", "sent")

    def __init__(self, caller: str, connection: str) -> None:
        self.caller, self.connection = caller, connection
        self.calls: dict[str, Asked] = {}
        self.order: deque[tuple[int, str]] = deque()
        """(number of its last word, requestId) of those that have ended."""
        self.sent = 0
        self.dropped = 0
        """The number of the newest last word of a call that is not remembered."""
        self.sealed = False
        self.over: float | None = None


class Outcomes:
    """All that one spoke remembers."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], Life] = {}
        self._keeping: OrderedDict[Asked, None] = OrderedDict()
        """Calls of which something is kept; the one that has had no answer for the longest time is the first."""
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

    def began(self, life: Life, request_id: str, operation: str, *, stream: bool = False) -> bool:
        """A call has come. False: it must not run, since its requestId is known, or its connection is sealed."""
        if life.sealed or request_id in life.calls:
            return False
        life.calls[request_id] = Asked(life, request_id, operation, stream=stream)
        return True

    def drop(self, life: Life, request_id: str) -> None:
        """Its caller does not want it, or has all of it, and will not ask again."""
        if (asked := life.calls.pop(request_id, None)) is not None:
            self._let_go(asked, len(asked.frames))

    def ended(self, life: Life, request_id: str, answer: bytes) -> bool:
        """A call has its answer, or a stream its end, whether or not it can be sent. False: it is not one that is
        remembered, or had it."""
        asked = life.calls.get(request_id)
        if asked is None or not asked.running:
            return False
        asked.running = False
        self._keep(asked, inf, answer)
        return True

    def item(self, asked: Asked, item: bytes) -> None:
        """One of a stream has gone over its connection, or would have."""
        asked.life.sent += 1
        asked.items += 1
        self._keep(asked, asked.life.sent, item)

    def credited(self, life: Life, request_id: str, n: Any) -> None:
        """The caller of a stream has taken so many items more: they need not be kept. Credit for what was not sent says
        nothing."""
        asked = life.calls.get(request_id)
        if asked is not None and asked.stream and type(n) is int and n > 0:
            asked.confirmed = min(asked.confirmed + n, asked.items)
            kept = len(asked.frames) - (bool(asked.frames) and not asked.running)
            self._let_go(asked, asked.confirmed - (asked.items - kept))

    def sent(self, life: Life, request_id: str | None) -> None:
        """One message with an answer, no item, has gone over the connection: a call's last word, or about another."""
        life.sent += 1
        asked = None if request_id is None else life.calls.get(request_id)
        if asked is not None and not asked.running:
            life.order.append((life.sent, asked.request_id))
            if len(life.order) > MAX_OUTCOMES:
                life.dropped, gone = life.order.popleft()
                self.drop(life, gone)

    def over(self, life: Life, now: float) -> None:
        """The connection has ended."""
        if life.over is None:
            life.over = now

    def forget(self, life: Life) -> None:
        """As if it had never been: who asks about it is told that nobody knows. Who has asked goes on."""
        life.sealed = True
        del self._lives[life.caller, life.connection]
        for asked in list(life.calls.values()):
            if not asked.taken:
                self.drop(life, asked.request_id)

    def life(self, caller: str, connection: str) -> Life | None:
        return self._lives.get((caller, connection))

    def again(self, caller: str, connection: str, request_id: str, heard: int, operation: str) -> Found | Asked:
        """What became of a call, for who asked it. Its connection is sealed. A call that came is followed with
        :meth:`take`, and ends with :meth:`drop`."""
        life = self._lives.get((caller, connection))
        if life is None:
            return Found.UNKNOWN
        life.sealed = True
        asked = life.calls.get(request_id)
        if heard > life.sent:
            return Found.UNKNOWN
        if asked is None:
            # Of a caller that keeps to its bound there are as many heard at most, and as many not.
            if heard < life.dropped or len(life.calls) >= 2 * MAX_OUTCOMES:
                return Found.UNKNOWN
            asked = life.calls[request_id] = Asked(life, request_id, operation, stream=False)
            asked.taken = True  # whoever asks about it once more has his answer elsewhere
            return Found.NEW
        # Whether it may be called was looked at for the operation that was named now.
        if asked.taken or asked.operation != operation or heard < asked.gone:
            return Found.UNKNOWN
        asked.taken = True
        self._let_go(asked, sum(number <= heard for number, _frame in asked.frames))
        return asked

    def take(self, asked: Asked) -> Found | bytes | None:
        """The next that was not heard of a call that is asked again. None: there is nothing yet. UNKNOWN: it is not
        kept, and nothing that came after it is given."""
        if asked.lost:
            return Found.UNKNOWN
        if not asked.frames:
            return None
        frame = asked.frames[0][1]
        self._let_go(asked, 1)
        return frame

    def tick(self, now: float) -> list[Life]:
        """Forgets what is old. Returns them: what still runs of them and was not asked about, nobody waits for."""
        old = [one for one in self._lives.values() if one.over is not None and one.over + KEEP <= now]
        for life in old:
            self.forget(life)
        return old

    def next_due(self) -> float | None:
        overs = [one.over + KEEP for one in self._lives.values() if one.over is not None]
        return min(overs, default=None)

    def _keep(self, asked: Asked, number: float, frame: bytes) -> None:
        size = len(frame) + BESIDE
        asked.frames.append((number, frame))
        asked.bytes += size
        self.bytes += size
        self._keeping[asked] = None
        self._keeping.move_to_end(asked)
        while self.bytes > MAX_BYTES:
            large = len(asked.frames) > 1 and asked.bytes * len(self._keeping) > MAX_BYTES
            gives = asked if large else next(iter(self._keeping))
            gives.lost = gives.taken
            self._let_go(gives, 1)

    def _let_go(self, asked: Asked, n: int) -> None:
        """Its ``n`` oldest answers."""
        if n < 1:
            return
        asked.gone = asked.frames[n - 1][0]
        for _number, frame in asked.frames[:n]:
            size = len(frame) + BESIDE
            asked.bytes -= size
            self.bytes -= size
        del asked.frames[:n]
        if not asked.frames:
            self._keeping.pop(asked, None)
