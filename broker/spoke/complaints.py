"""``hub.error``: what a complaint of the hub means, and for whom. The connection goes on.

Not here: what the publisher, subscriptions and swarms do about it.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from broker.errors import AccessDenied, TopicError
from broker.spoke.publisher import Publisher
from broker.spoke.subscriptions import Subscriptions
from broker.spoke.swarms import Swarms

__all__ = ["Complaints"]

log = logging.getLogger("broker.spoke")

PUBLISHING: Final = ("BAD_TOPIC", "RESERVED_TOPIC", "ACCESS_DENIED")
SUBSCRIBING: Final = ("BAD_PATTERN", "RESERVED_TOPIC", "ACCESS_DENIED", "LIMIT")
"""A complaint names a topic or pattern, and its code says which."""


class Complaints:
    """Whoever may be meant."""

    def __init__(self, swarms: Swarms, publisher: Publisher, subscriptions: Subscriptions) -> None:
        self._swarms, self._publisher, self._subscriptions = swarms, publisher, subscriptions

    def on(self, detail: Any) -> None:
        if not isinstance(detail, dict):
            return
        code, message, about = detail.get("code"), detail.get("message"), detail.get("about")
        action = detail.get("action")  # a topic and an operation may have one name
        log.warning("the hub says %s: %s", code, message)
        if not isinstance(about, str) or not isinstance(code, str):
            return
        if code == "NO_SWARM":
            self._swarms.refused(about, str(message))
        if code in PUBLISHING and action in (None, "publish"):
            self._publisher.refused(about, f"{code}: {message}")
        if code in SUBSCRIBING and action in (None, "subscribe"):
            text = f"the hub does not take the subscription to {about!r}: {message}"
            denied = code == "ACCESS_DENIED"
            self._subscriptions.refused(about, AccessDenied(text) if denied else TopicError(text, code=code))
