"""The events of a ring by their place: what many readers read alike is a slice, and takes no step for each event.

Places are counted from the ring's beginning. Not here: which of them stay, and who reads which (ring.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Final

from broker.protocol.cursor import Source

__all__ = ["SLACK", "Entries"]

SLACK: Final = 1_024
"""Places that have been given up are cut off the lists when there are so many, and as many as entries."""


class Entries:
    """``of`` and the others ask for places that were appended and not given up."""

    __slots__ = ("_base", "_before", "_frames", "_of")

    def __init__(self) -> None:
        self._base = 0
        self._of: list[tuple[Source, int] | None] = []
        self._frames: list[bytes] = []
        self._before = array("Q", [0])
        """Bytes that ever came before an entry, and before the next one to come."""

    def __len__(self) -> int:
        """What memory holds, places that were given up among them."""
        return len(self._frames)

    def append(self, source: Source, seq: int, frame: bytes) -> None:
        self._of.append((source, seq))
        self._frames.append(frame)
        self._before.append(self._before[-1] + len(frame))

    def of(self, index: int) -> tuple[Source, int]:
        """Whose event it is, and its number."""
        of = self._of[index - self._base]
        assert of is not None, "an entry is read only while it is in the ring"
        return of

    def frame(self, index: int) -> bytes:
        return self._frames[index - self._base]

    def frames(self, begin: int, end: int) -> list[bytes]:
        """From a place to before another."""
        return self._frames[begin - self._base : end - self._base]

    def bytes(self, begin: int, end: int) -> int:
        """Of the frames from a place to before another."""
        return self._before[end - self._base] - self._before[begin - self._base]

    def end_of(self, begin: int, max_events: int, max_bytes: int) -> int:
        """Before which place a batch from ``begin`` on ends: it has one entry at least, if there is one."""
        at, count = begin - self._base, len(self._frames)
        end = bisect_right(self._before, self._before[at] + max_bytes, at, min(at + max_events, count) + 1) - 1
        return min(max(end, at + 1), count) + self._base

    def give_up(self, index: int) -> tuple[Source, int]:
        """The oldest goes: whose it was, and its bytes."""
        source, _ = self.of(index)
        at = index - self._base
        size = len(self._frames[at])
        self._of[at], self._frames[at] = None, b""
        if at >= SLACK and at * 2 >= len(self._frames):
            for by_place in (self._of, self._frames, self._before):
                del by_place[: at + 1]
            self._base = index + 1
        return source, size
