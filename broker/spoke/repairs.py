"""Answers to those who ask this spoke for events. To a hub: its own as they are, those of others as the signed batches
in which they came. To another member of the swarm (members.py): signed batches alone. In bounds: what is left is asked
again.

Not here: what this spoke asks for itself (subscriptions.py).
"""

from __future__ import annotations

import binascii
import logging
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from broker import _gossip_ext as ext
from broker.protocol.codec import MAX_FRAME_BYTES, encode
from broker.protocol.parts import MORE, parts
from broker.protocol.publication import Publication
from broker.spoke.publisher import Publisher
from broker.spoke.swarm_messages import Range, batch_data, range_of
from broker.spoke.swarms import Swarms

__all__ = ["Asker", "Repairs"]

log = logging.getLogger("broker.spoke")

ANSWER_BYTES: Final = 262_144
"""Of one answer."""
BYTES_A_SECOND: Final = 8 * 1024 * 1024
"""Of all answers: the hub of a topic with a thousand members asks whoever answers."""


class Asker(NamedTuple):
    """The way to whoever asked. ``send`` says False when it is full; ``control``, where there is one, loses nothing
    while the connection lasts."""

    send: Callable[[list[bytes]], bool]
    control: Callable[[str, Any], None] | None = None
    most: int = MAX_FRAME_BYTES
    """Bytes of a frame that it takes."""


class Repairs:
    """``send`` hands frames to the hub and says False when the path is full; ``control`` loses nothing while the
    connection lasts."""

    def __init__(
        self,
        swarms: Swarms,
        publisher: Publisher,
        *,
        send: Callable[[list[bytes]], bool],
        control: Callable[[str, Any], None],
    ) -> None:
        self._swarms, self._publisher = swarms, publisher
        self._send, self._control = send, control
        self.most = MAX_FRAME_BYTES
        """Bytes of a frame that the hub takes."""
        self._left, self._at = float(BYTES_A_SECOND), 0.0
        self.counts: Counter[str] = Counter()

    def asked(self, detail: Any) -> None:
        """``topic.repair`` of the hub."""
        wanted, hub = range_of(detail), Asker(self._send, self._control, self.most)
        publication = self._publisher.held(wanted.topic, wanted.epoch)
        if publication is None or publication.author != wanted.author:
            self.asked_by(hub, wanted)
        elif self._counted():
            self._own(hub, wanted, publication)

    def asked_by(self, asker: Asker, wanted: Range) -> None:
        """Answers with signed batches alone, and with ``topic.lost`` for what is in none that is kept here."""
        if self._counted():
            self._batches(asker, wanted)

    def _counted(self) -> bool:
        self.counts["repairs_asked"] += 1
        may = self._may_answer(time.monotonic())
        self.counts["repairs_refused"] += not may
        return may

    def _may_answer(self, now: float) -> bool:
        self._left = min(BYTES_A_SECOND, self._left + (now - self._at) * BYTES_A_SECOND)
        self._at = now
        return self._left > 0

    def _own(self, asker: Asker, wanted: Range, publication: Publication) -> None:
        """What is between the runs was given up, or is here no more."""
        last = min(wanted.b, publication.next_seq - 1)
        runs = publication.runs(wanted.a, last, ANSWER_BYTES)
        at = wanted.a
        for first, frames in runs:
            self._lose(asker, wanted, at, first - 1)
            at = first + len(frames)
            if not self._give(asker, frames):
                return
        if not runs or not publication.runs(at, last):  # else the rest did not fit
            self._lose(asker, wanted, at, last)

    def _batches(self, asker: Asker, wanted: Range) -> None:
        batches = self._swarms.batches(*wanted, ANSWER_BYTES)
        at, size = wanted.a, 0
        for data in batches:
            if not (held := self._holds(wanted, data)):
                continue  # it names what is wanted, and has none of it
            size += len(data)
            for a, b in held:
                self._lose(asker, wanted, at, a - 1)
                at = max(at, b + 1)
            batch = {"topic": wanted.topic, "data": b64encode(data).decode()}
            if not self._give(asker, parts("topic.batch", batch, asker.most, cut=("data",), first=MORE)):
                return
        if size <= ANSWER_BYTES // 2:  # else there may be more that did not fit
            self._lose(asker, wanted, at, wanted.b)

    def _holds(self, wanted: Range, data: bytes) -> list[tuple[int, int]]:
        """The ranges of whole events in a batch, cut to what is wanted."""
        _, _, first, frames = ext.open_batch(wanted.topic, data, self._swarms.hubs(wanted.topic))
        found: list[tuple[int, int]] = []
        for seq, frame in enumerate(frames, first):
            if isinstance(frame, tuple) or not wanted.a <= seq <= wanted.b:
                continue
            if found and found[-1][1] == seq - 1:
                found[-1] = (found[-1][0], seq)
            else:
                found.append((seq, seq))
        return found

    def _give(self, asker: Asker, frames: list[bytes]) -> bool:
        if not asker.send(frames):
            return False
        self._left -= sum(map(len, frames))
        self.counts["repairs_answered"] += len(frames)
        return True

    def _lose(self, asker: Asker, wanted: Range, a: int, b: int) -> None:
        if a > b:
            return
        lost = wanted._replace(a=a, b=b).to_json()
        if asker.control is not None:
            asker.control("topic.lost", lost)
        else:
            asker.send([encode("topic.lost", lost)])

    def batch(self, detail: Any) -> None:
        """``topic.batch``: the answer of a member, passed on or its own."""
        self.taken(detail)

    def taken(self, detail: Any) -> tuple[str, str, str] | None:
        """The same. Topic, author and epoch of a batch that holds."""
        topic, data = batch_data(detail)
        try:
            opened = ext.open_batch(topic, b64decode(data, validate=True), self._swarms.hubs(topic))
        except (ValueError, binascii.Error) as error:
            self.counts["bad_batches"] += 1
            log.warning("%s: a batch that was sent for a repair does not hold: %s", topic, error)
            return None
        self._swarms.take(topic, *opened)
        return topic, opened[0], opened[1]
