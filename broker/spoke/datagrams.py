"""Events as datagrams, both ways: sent once and forgotten, and handed to whoever subscribes to their topic.

They have no number, so no verdict speaks of them. Not here: the events of sequences (publisher.py, subscriptions.py).
"""

from __future__ import annotations

import time
from typing import Any, Final

from broker.errors import FrameError, TopicError
from broker.events import Event
from broker.protocol.codec import decode, encode
from broker.protocol.routing import check_topic
from broker.spoke.link import Link
from broker.spoke.publisher import Published
from broker.spoke.subscriptions import Subscriptions

__all__ = ["UNNUMBERED", "Datagrams"]

UNNUMBERED: Final = Published("", 0)
"""What ``publish`` returns for a datagram: it has no place in a sequence."""


class Datagrams:
    """Of one spoke."""

    def __init__(self, link: Link, subscriptions: Subscriptions) -> None:
        self._link, self._subscriptions = link, subscriptions
        self.sent = self.unsent = self.received = self.bad = 0

    def publish(self, topic: str, detail: Any) -> Published:
        """Sends it once, if there is a hub and its QUIC has room. EventTooLarge names what the path takes."""
        check_topic(topic)
        meta = {"author": self._link.node_id, "ts": time.time_ns() // 1_000_000}
        if self._link.send_datagram(encode(topic, detail, meta)):
            self.sent += 1
        else:
            self.unsent += 1
        return UNNUMBERED

    def arrived(self, payload: bytes) -> None:
        """From the hub. A bad one is not worth the connection."""
        try:
            message = decode(payload)
            check_topic(message.type)
        except (FrameError, TopicError):
            self.bad += 1
            return
        self.received += 1
        said = message.meta or {}
        meta = {key: value for key, value in said.items() if key not in ("epoch", "seq")}
        event = Event(message.type, message.detail, {**meta, "carrier": "datagram"})
        self._subscriptions.on_datagram(event)

    def counts(self) -> dict[str, int]:
        """``datagrams_unsent``: there was no hub, or no room. ``datagrams_bad``: what came was no event."""
        return {
            "datagrams_sent": self.sent,
            "datagrams_unsent": self.unsent,
            "datagrams_received": self.received,
            "datagrams_bad": self.bad,
        }
