"""Events that a signed batch only names, by size and hash, since they fit into none: what comes for one by stream must
be what was named, or it is not taken.

What came before its batch is not compared; nor is what was forgotten, beyond `MOST` the oldest. An event that is not
what was named leaves its number a hole, to be asked for again. Not here: the hash itself, which is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from broker.protocol.codec import Message
from broker.protocol.place import origin

__all__ = ["Frame", "Named", "Reference", "runs"]

MOST: Final = 4_096
"""Events named that have not come: as many as an author may have unacknowledged."""

Reference = tuple[int, bytes]
"""Size and hash of an event, as a batch names it."""
Frame = bytes | Reference
"""An event in a batch."""
Place = tuple[str, str, str, int]
"""Topic, author, epoch and number."""


class Named:
    """``hash_of`` is the hash that batches use."""

    def __init__(self, hash_of: Callable[[bytes], bytes]) -> None:
        self._hash_of = hash_of
        self.known: dict[Place, Reference] = {}
        self.refused = 0

    def name(self, place: Place, reference: Reference) -> None:
        """A batch names it. Of two that name the same, the first counts."""
        if place not in self.known:
            if len(self.known) >= MOST:
                del self.known[next(iter(self.known))]
            self.known[place] = reference

    def batch(self, topic: str, author: str, epoch: str, first_seq: int, frames: Sequence[Frame]) -> None:
        """What a batch only names."""
        if tuple in map(type, frames):
            for seq, frame in enumerate(frames, first_seq):
                if isinstance(frame, tuple):
                    self.name((topic, author, epoch, seq), frame)

    def holds(self, place: Place, frame: bytes) -> bool:
        """Whether an event may be taken: it is the one that was named, or none was."""
        reference = self.known.get(place)
        if reference is None:
            return True
        if (len(frame), self._hash_of(frame)) != reference:
            self.refused += 1
            return False
        del self.known[place]
        return True

    def right(self, message: Message, frame: bytes) -> bool:
        """The same of an event as it came by stream."""
        place = origin(message.meta)
        return place is None or self.holds((message.type, *place), frame)


def runs(first_seq: int, frames: Sequence[Frame]) -> Iterator[tuple[int, list[bytes]]]:
    """A batch's events as runs, with the number of each one's first; an empty run stands for one that is only named."""
    at = first_seq
    for kind, group in groupby(frames, type):
        run: list[Any] = list(group)
        if kind is bytes:
            yield at, run
        else:
            yield from ((seq, []) for seq in range(at, at + len(run)))
        at += len(run)
