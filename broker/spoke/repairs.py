"""Answers to a hub that asks this spoke for events: its own as they are, those of others as the signed batches in which
they came. In bounds: what is left is asked again.

Not here: what this spoke asks for itself (subscriptions.py).
"""

from __future__ import annotations

import binascii
import logging
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from broker import _gossip_ext as ext
from broker.protocol.codec import encode
from broker.protocol.publication import Publication
from broker.spoke.publisher import Publisher
from broker.spoke.swarm_messages import Range, batch_data, range_of
from broker.spoke.swarms import Swarms

__all__ = ["Repairs"]

log = logging.getLogger("broker.spoke")

ANSWER_BYTES: Final = 262_144
"""Of one answer."""
BYTES_A_SECOND: Final = 8 * 1024 * 1024
"""Of all answers: the hub of a topic with a thousand members asks whoever answers."""


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
        self._left, self._at = float(BYTES_A_SECOND), 0.0
        self.counts: Counter[str] = Counter()

    def asked(self, detail: Any) -> None:
        """``topic.repair``."""
        wanted = range_of(detail)
        self.counts["repairs_asked"] += 1
        if not self._may_answer(time.monotonic()):
            self.counts["repairs_refused"] += 1
            return
        publication = self._publisher.held(wanted.topic, wanted.epoch)
        if publication is not None and publication.author == wanted.author:
            self._own(wanted, publication)
        else:
            self._others(wanted)

    def _may_answer(self, now: float) -> bool:
        self._left = min(BYTES_A_SECOND, self._left + (now - self._at) * BYTES_A_SECOND)
        self._at = now
        return self._left > 0

    def _own(self, wanted: Range, publication: Publication) -> None:
        """What is between the runs was given up, or is here no more."""
        last = min(wanted.b, publication.next_seq - 1)
        runs = publication.runs(wanted.a, last, ANSWER_BYTES)
        at = wanted.a
        for first, frames in runs:
            self._lose(wanted, at, first - 1)
            at = first + len(frames)
            if not self._give(frames):
                return
        if not runs or not publication.runs(at, last):  # else the rest did not fit
            self._lose(wanted, at, last)

    def _others(self, wanted: Range) -> None:
        batches = self._swarms.batches(*wanted, ANSWER_BYTES)
        at, size = wanted.a, 0
        for data in batches:
            size += len(data)
            for a, b in self._holds(wanted, data):
                self._lose(wanted, at, a - 1)
                at = max(at, b + 1)
            batch = {"topic": wanted.topic, "data": b64encode(data).decode()}
            if not self._give([encode("topic.batch", batch)]):
                return
        if size <= ANSWER_BYTES // 2:  # else there may be more that did not fit
            self._lose(wanted, at, wanted.b)

    def _holds(self, wanted: Range, data: bytes) -> list[tuple[int, int]]:
        """The ranges of whole events in a batch, cut to what is wanted."""
        _, _, first, frames = ext.open_batch(wanted.topic, data, self._swarms.hubs(wanted.topic))
        found: list[tuple[int, int]] = []
        for seq, frame in enumerate(frames, first):
            if frame is None or not wanted.a <= seq <= wanted.b:
                continue
            if found and found[-1][1] == seq - 1:
                found[-1] = (found[-1][0], seq)
            else:
                found.append((seq, seq))
        return found

    def _give(self, frames: list[bytes]) -> bool:
        if not self._send(frames):
            return False
        self._left -= sum(map(len, frames))
        self.counts["repairs_answered"] += len(frames)
        return True

    def _lose(self, wanted: Range, a: int, b: int) -> None:
        if a <= b:
            self._control("topic.lost", wanted.lost(a, b))

    def batch(self, detail: Any) -> None:
        """``topic.batch``: the answer of a member, passed on or its own."""
        topic, data = batch_data(detail)
        try:
            opened = ext.open_batch(topic, b64decode(data, validate=True), self._swarms.hubs(topic))
        except (ValueError, binascii.Error) as error:
            self.counts["bad_batches"] += 1
            log.warning("%s: a batch that was sent for a repair does not hold: %s", topic, error)
            return
        self._swarms.take(topic, *opened)
