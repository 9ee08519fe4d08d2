"""Rings for tests: events whose frame is their place, and who reads them. Not here: any test."""

from __future__ import annotations

from broker.protocol.ring import Batch, Outcome, Ring
from broker.protocol.routing import SubscribeOptions

BLOCK = SubscribeOptions()
DROP = SubscribeOptions(policy="drop_oldest")
CUT = SubscribeOptions(policy="disconnect")
E = "0" * 16
ALL = (10**9, 10**9)


def name(author: str, seq: int, epoch: str = E, size: int = 0) -> bytes:
    return f"{author}/{epoch}/{seq}".encode().ljust(size)


def fill(ring: Ring, *seqs: int, author: str = "a", epoch: str = E) -> None:
    for seq in seqs:
        assert ring.append(author, epoch, seq, name(author, seq, epoch)) is Outcome.ACCEPTED


def numbers(batch: Batch) -> list[int]:
    return [int(frame.rsplit(b"/", 1)[1]) for frame in batch.frames]


def read(ring: Ring, reader: int = 1, now: float = 0.0) -> Batch:
    return ring.read(reader, *ALL, now)
