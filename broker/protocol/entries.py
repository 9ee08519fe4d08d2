"""The events of a ring by their place: what many readers read alike is a slice, and takes no step for each event.

Places are counted from the ring's beginning. Not here: which of them stay, and who reads which (ring.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate, islice
from typing import Final

from broker.protocol.cursor import Source

__all__ = ["SLACK", "Entries"]

SLACK: Final = 1_024
"""Places that have been given up are cut off the lists when there are so many, and as many as entries."""


class Entries:
    """``of`` and the others ask for places that were appended and not given up."""

    __slots__ = ("_base", "_before", "_frames", "_seqs", "_sources")

    def __init__(self) -> None:
        self._base = 0
        self._sources: list[Source | None] = []
        self._seqs = array("Q")
        self._frames: list[bytes] = []
        self._before = array("Q", [0])
        """Bytes that ever came before an entry, and before the next one to come."""

    def __len__(self) -> int:
        """What memory holds, places that were given up among them."""
        return len(self._frames)

    def append(self, source: Source, seq: int, frame: bytes) -> None:
        self._sources.append(source)
        self._seqs.append(seq)
        self._frames.append(frame)
        self._before.append(self._before[-1] + len(frame))

    def extend(self, source: Source, first_seq: int, frames: list[bytes]) -> int:
        """Consecutive events of a source. Returns their bytes."""
        before = self._before[-1]
        self._sources += [source] * len(frames)
        self._seqs.extend(range(first_seq, first_seq + len(frames)))
        self._frames.extend(frames)
        self._before.extend(islice(accumulate(map(len, frames), initial=before), 1, None))
        return self._before[-1] - before

    def of(self, index: int) -> tuple[Source, int]:
        """Whose event it is, and its number."""
        source = self._sources[index - self._base]
        assert source is not None, "an entry is read only while it is in the ring"
        return source, self._seqs[index - self._base]

    def frame(self, index: int) -> bytes:
        return self._frames[index - self._base]

    def frames(self, begin: int, end: int) -> list[bytes]:
        """From a place to before another."""
        return self._frames[begin - self._base : end - self._base]

    def unskipped(
        self, index: int, end: int, skip: Mapping[Source, int], max_events: int, max_bytes: int
    ) -> tuple[list[bytes], list[int], int]:
        """A batch from a place on and before another, without what a reader has: a source up to a number. Its frames,
        their places, and where the next one begins."""
        frames: list[bytes] = []
        indexes: list[int] = []
        while index < end:
            source, seq = self.of(index)
            if seq > skip.get(source, 0):
                frame = self.frame(index)
                max_bytes -= len(frame)
                if len(frames) >= max_events or (frames and max_bytes < 0):
                    break
                frames.append(frame)
                indexes.append(index)
            index += 1
        return frames, indexes, index

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
        self._sources[at], self._frames[at] = None, b""
        if at >= SLACK and at * 2 >= len(self._frames):
            for by_place in (self._sources, self._seqs, self._frames, self._before):
                del by_place[: at + 1]
            self._base = index + 1
        return source, size
