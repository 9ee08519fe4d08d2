"""Events that come as datagrams: checked like any other, passed on once, and forgotten.

They have no number, no ring, no acknowledgement and no order, and take no part in anybody's verdict. Python works once
an event; the extension hands the one buffer to every subscriber's QUIC. What cannot be passed on is counted by its
reason, and nobody is told: an answer to each would cost more than it did. A bad one never ends its connection. Not
here: events of a sequence (topic_messages.py), and what happens between hubs, which pass on no datagrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.errors import FrameError, TopicError
from broker.protocol.codec import Message, decode, encode
from broker.protocol.routing import SubscribeOptions, check_topic
from broker.protocol.wire import RESERVED_PREFIXES

if TYPE_CHECKING:
    from broker import _gossip_ext as ext
    from broker.hub.metrics import TopicCounters
    from broker.hub.router import Router
    from broker.hub.session import Session

__all__ = ["Datagrams"]

MAX_WAYS: Final = 1_000
"""Topics whose subscribers are kept together; beyond it the one that was first goes, and is collected anew if need
be."""
REASONS: Final = ("stranger", "bad", "reserved", "bad_topic", "denied", "over_rate")


class _Way(NamedTuple):
    """Where one topic's datagrams go. ``subscribers`` is the table's own answer, a new one after any change."""

    subscribers: Mapping[int, SubscribeOptions]
    group: ext.Group
    counters: TopicCounters


class Datagrams:
    """The part of a router that is about datagrams."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._ways: dict[str, _Way] = {}
        self.refused = dict.fromkeys(REASONS, 0)
        """What came and was not passed on, by reason."""

    def received(self, session: Session | None, payload: bytes) -> None:
        """One datagram. ``session`` is None for a connection that is no session, or none any more."""
        if session is None or session.closing:
            self.refused["stranger"] += 1
            return
        try:
            message = decode(payload)
        except FrameError:
            self.refused["bad"] += 1
            return
        if (fault := self._fault(session, message.type)) is not None:
            self.refused[fault] += 1
            return
        way = self._way(message.type)
        handed, left = way.group.datagram(_stamped(session.node_id, message, payload)) if len(way.group) else (0, 0)
        way.counters.published += 1
        way.counters.delivered += handed
        way.counters.dropped += left

    def forget(self) -> None:
        """A connection has ended, or the hub: a group would hold on to it until the topic's next datagram."""
        self._ways.clear()

    def _fault(self, session: Session, topic: str) -> str | None:
        if topic.startswith(RESERVED_PREFIXES):
            return "reserved"
        if topic not in self._ways:
            try:
                check_topic(topic)
            except TopicError:
                return "bad_topic"
        if not session.grant.everything and not session.grant.may("publish", topic):
            return "denied"
        return None if self._router.of_node.datagram(session.node_id) else "over_rate"

    def _way(self, topic: str) -> _Way:
        subscribers = self._router.topics.subscriptions.match(topic)
        way = self._ways.get(topic)
        if way is not None and way.subscribers is subscribers:
            return way
        group = self._router.endpoint.group()
        for peer in subscribers:
            group.add(peer)
        if way is None and len(self._ways) >= MAX_WAYS:
            del self._ways[next(iter(self._ways))]
        way = self._ways[topic] = _Way(subscribers, group, self._router.metrics.topic(topic, "datagram"))
        return way


def _stamped(node_id: str, message: Message, payload: bytes) -> bytes:
    """With its author, whoever it said that it was, and without a place in a sequence, which it has none in."""
    meta = message.meta or {}
    if meta.get("author") == node_id and "epoch" not in meta and "seq" not in meta:
        return payload
    rest = {key: value for key, value in meta.items() if key not in ("epoch", "seq")}
    return encode(message.type, message.detail, {**rest, "author": node_id})
