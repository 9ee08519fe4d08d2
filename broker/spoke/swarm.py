"""One topic that travels by gossip, at a spoke: its machine, its swarms by id, and the sequences heard there.

Values and their bounds. Not here: what comes of them (swarms.py), what the machine decides (protocol/membership.py).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final

from broker import _gossip_ext as ext
from broker.protocol.announcing import Announcing
from broker.protocol.membership import Membership

__all__ = ["MAX_SOURCES", "Source", "SwarmTopic"]

MAX_SOURCES: Final = 4_096
"""Sequences of one topic that were heard by gossip. One that is forgotten counts as new when it is heard again."""


class Source:
    """A sequence heard by gossip: when ``first``, its newest number, and the one that the hub was ``told``."""

    __slots__ = ("first", "newest", "told")

    def __init__(self, now: float) -> None:
        self.first, self.newest, self.told = now, 0, 0


class SwarmTopic:
    """One topic, with its swarms by id."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self.name, self._counts = name, counts
        self.machine = Membership(random.random)
        self.swarms: dict[str, ext.Swarm] = {}
        self.hubs: tuple[str, ...] = ()
        self.authors: frozenset[str] | None = None
        self.sources: dict[tuple[str, str], Source] = {}
        self.waiters: list[asyncio.Future[None]] = []
        self.announcing = Announcing()
        self.was_heard = False

    def heard(self, author: str, epoch: str, newest: int, now: float) -> Source:
        """Up to ``newest`` of a sequence was heard."""
        source = self.sources.pop((author, epoch), None) or Source(now)
        while len(self.sources) >= MAX_SOURCES:
            del self.sources[next(iter(self.sources))]
            self._counts["sources_forgotten"] += 1
        self.sources[author, epoch] = source  # in the order of the last word
        source.newest = max(source.newest, newest)
        return source
