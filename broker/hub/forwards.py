"""What the hub puts into a topic's swarm for authors that are not in it: their events, and where their sequences end.

Events wait here while gossip is full; then the topic's acknowledgements are withheld, which slows their authors down.
Beyond the bound the oldest are left out: members see a hole and ask the hub, whose ring has them. Not here: which
events need it (swarm.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from broker import _gossip_ext as ext
from broker.protocol.ring import MAX_AUTHORS

__all__ = ["Forwards", "Heads"]

RUN_EVENTS: Final = 256
RUN_BYTES: Final = 262_144
"""Events of one author handed over at a time, and their bytes: so that a queue that is not full takes them."""
MAX_WAITING: Final = 8_192
"""Events that wait for room in gossip: two authors' full windows."""
MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""Their bytes: that many events of 1 KB."""

STREAM_HEADS: Final = (1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0)
"""Seconds between the heads of an author that cannot tell them itself, after its last event; then it is silent."""
GOSSIP_HEADS: Final = (3.0, 6.0, 12.0)
"""The same for one that tells them itself: it may be gone, and its last event not be everywhere."""

Key = tuple[str, str]


class _Run:
    __slots__ = ("first", "frames", "key", "size")

    def __init__(self, key: Key, first: int) -> None:
        self.key, self.first, self.size = key, first, 0
        self.frames: list[bytes] = []


class Forwards:
    """One topic's. ``left_out`` only grows."""

    def __init__(self) -> None:
        self._runs: deque[_Run] = deque()
        self._waiting = self._bytes = 0
        self.left_out = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, key: Key, seq: int, frame: bytes) -> None:
        run = self._runs[-1] if self._runs else None
        full = run is None or len(run.frames) >= RUN_EVENTS or run.size + len(frame) > RUN_BYTES
        if run is None or full or run.key != key or run.first + len(run.frames) != seq:
            run = _Run(key, seq)
            self._runs.append(run)
        run.frames.append(frame)
        run.size += len(frame)
        self._waiting += 1
        self._bytes += len(frame)
        while self._waiting > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            self.left_out += self._take_first()

    def _take_first(self) -> int:
        """The first run waits no more. Returns its events."""
        gone = self._runs.popleft()
        self._waiting -= len(gone.frames)
        self._bytes -= gone.size
        return len(gone.frames)

    def flush(self, swarm: ext.Swarm, others: Iterable[ext.Swarm] = ()) -> bool:
        """Hands over what there is. ``others``: swarms that are being left, which get it if they have room. False:
        there is no room; SWARM_DRAINED follows."""
        while self._runs:
            run = self._runs[0]
            author, epoch = run.key
            if not swarm.publish(epoch, run.first, run.frames, author=author):
                return False
            for other in others:
                other.publish(epoch, run.first, run.frames, author=author)
            self._take_first()
        return True


class Heads:
    """When the end of each author's sequence is told."""

    def __init__(self) -> None:
        self._known: dict[Key, _Head] = {}

    def moved(self, key: Key, seq: int, now: float, *, gossips: bool) -> None:
        """An event. ``gossips``: its author is in the swarm itself."""
        head = self._known.get(key)
        if head is None:
            if len(self._known) >= MAX_AUTHORS:
                del self._known[next(iter(self._known))]
            head = self._known[key] = _Head()
        head.seq, head.told, head.delays = seq, 0, GOSSIP_HEADS if gossips else STREAM_HEADS
        head.due = now + head.delays[0]

    def due(self, now: float) -> list[tuple[Key, int]]:
        """Those to tell now."""
        found: list[tuple[Key, int]] = []
        for key, head in list(self._known.items()):
            if head.due > now:
                continue
            found.append((key, head.seq))
            head.told += 1
            if head.told < len(head.delays):
                head.due = now + head.delays[head.told]
            else:
                del self._known[key]
        return found

    def next_due(self) -> float | None:
        return min((head.due for head in self._known.values()), default=None)


class _Head:
    __slots__ = ("delays", "due", "seq", "told")

    def __init__(self) -> None:
        self.seq = self.told = 0
        self.due = 0.0
        self.delays: tuple[float, ...] = ()
