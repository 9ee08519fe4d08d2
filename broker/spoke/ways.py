"""The ways that events take, and what a publisher asks of the swarms that its spoke is in. Not here: any swarm
(swarms.py)."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NoWays", "Ways", "check_carrier"]

CARRIERS = ("auto", "stream", "gossip", "datagram")


def check_carrier(carrier: str) -> None:
    """ValueError for one that there is not."""
    if carrier not in CARRIERS:
        raise ValueError(f"carrier {carrier!r} is not there; {', '.join(CARRIERS)} are")


class Ways(Protocol):
    """The swarms that this spoke hears."""

    def open(self, topic: str) -> bool:
        """Whether a topic's events go into its swarm."""

    def publish(self, topic: str, epoch: str, first_seq: int, frames: list[bytes]) -> bool:
        """False: there is no room; `Publisher.look` follows when there is."""

    def message_bytes(self, topic: str) -> int:
        """The largest event that goes whole; the hub gets a larger one by stream too."""


class NoWays:
    """Of a spoke that does not gossip."""

    def open(self, topic: str) -> bool:
        return False

    def publish(self, topic: str, epoch: str, first_seq: int, frames: list[bytes]) -> bool:
        return False

    def message_bytes(self, topic: str) -> int:
        return 0
