"""Places of subscribers whose connection broke: for their patience, publishers wait for their return as for a slow one.

A place is a paused reader of each ring, under an id of its own. A hub that was restarted keeps one in every topic for
everybody, since its subscribers come back within moments. Not here: what a paused reader holds up (protocol/ring.py).
"""

from __future__ import annotations

import time
from itertools import count
from typing import NamedTuple

from broker.hub.channel import Channel
from broker.hub.fan_out import FanOut
from broker.hub.readers import Readers
from broker.protocol.routing import SubscribeOptions, Subscriptions

__all__ = ["Places"]

MAX_PLACES = 1_000
"""Places kept for subscribers whose connection broke; beyond it the oldest is given up."""


class _Place(NamedTuple):
    """Where somebody stood."""

    node_id: str
    """Empty for the places that a restarted hub keeps for everybody."""
    until: float
    topics: dict[str, float]
    """What is left of its patience on each."""


class Places:
    """All places that are kept."""

    def __init__(self, fan_out: FanOut, readers: Readers, subscriptions: Subscriptions) -> None:
        self._fan_out, self._readers, self._subscriptions = fan_out, readers, subscriptions
        self._places: dict[int, _Place] = {}
        self._ids = count(-1, -1)
        """Below every peer's id."""
        self._expected_until = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def expect(self, seconds: float) -> None:
        """The hub was restarted: its subscribers come back within moments, and its memory is empty. Until then the
        rings do not overwrite what authors refill."""
        self._expected_until = time.monotonic() + seconds

    def opened(self, channel: Channel, now: float) -> None:
        """A topic's first event."""
        if now < self._expected_until:
            self._hold(_Place("", self._expected_until, {channel.topic: self._expected_until - now}), now)

    def keep(self, peer: int, node_id: str) -> None:
        """A connection broke. Who had used up its patience before has no more of it for having gone."""
        topics: dict[str, float] = {}
        for channel in self._fan_out.channels.values() if self._subscriptions.patterns(peer) else ():
            options = self._subscriptions.match(channel.topic).get(peer)
            if peer in channel.by_gossip:
                continue  # it goes on hearing the others
            if options is not None and options.policy == "block":
                left = channel.ring.patience_left(peer, options.patience)
                if left:
                    topics[channel.topic] = left
        if topics:
            now = time.monotonic()
            self._hold(_Place(node_id, now + max(topics.values()), topics), now)

    def _hold(self, place: _Place, now: float) -> None:
        if len(self._places) >= MAX_PLACES:
            self._fan_out.limited("places")
            self._give_up(next(iter(self._places)))
        id = next(self._ids)
        self._places[id] = place
        for topic, patience in place.topics.items():
            ring, options = self._fan_out.channels[topic].ring, SubscribeOptions(patience=patience)
            ring.lag(id, ring.first_index, options, now)  # what was on its way to it is lost with the connection
            ring.pause(id)
            self._readers.channels[self._fan_out.channels[topic]] = None

    def _give_up(self, id: int) -> None:
        for topic in self._places.pop(id).topics:
            if (channel := self._fan_out.channels.get(topic)) is not None:
                self._readers.end(channel, id)
                self._fan_out.released(channel)

    def came_back(self, node_id: str) -> None:
        """It has subscribed again; its connection is its place now."""
        for id in [id for id, place in self._places.items() if place.node_id == node_id]:
            self._give_up(id)

    def tick(self, now: float) -> None:
        """Gives up the places whose time has come."""
        for id in [id for id, place in self._places.items() if place.until <= now]:
            self._give_up(id)

    def next_due(self) -> float | None:
        """When :meth:`tick` has something to do."""
        return min(place.until for place in self._places.values()) if self._places else None
