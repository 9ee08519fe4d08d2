"""All subscriptions of a spoke: which patterns the hub is asked for, and who gets what arrives.

Patterns are counted by reference: the first subscription to a pattern asks the hub, the last one leaves. Not here: what
happens inside a subscription (subscription.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from broker.errors import FrameError
from broker.events import Event
from broker.protocol.codec import Message
from broker.protocol.routing import References, check_pattern, matches
from broker.protocol.wire import CloseCode
from broker.spoke.subscription import Subscription

__all__ = ["Subscriptions"]

log = logging.getLogger("broker.spoke")

ROUTES = 10_000
"""Topics whose subscriptions are remembered; beyond it the memory starts anew."""


class Subscriptions:
    """``send`` hands the hub a control message. The owner of every subscription here."""

    def __init__(self, send: Callable[[str, Any], bool]) -> None:
        self._send = send
        self._all: list[Subscription] = []
        self._references = References()
        self._routes: dict[str, list[Subscription]] = {}
        self._woken: set[Subscription] = set()
        self._repair_timer: asyncio.TimerHandle | None = None
        self._repair_at = 0.0
        self._connected = False
        self._unplaced = 0
        self.received = 0

    # The owner's side of a subscription.

    @property
    def connected(self) -> bool:
        return self._connected

    def begin(self, subscription: Subscription) -> None:
        for pattern in subscription.patterns:
            check_pattern(pattern)
        self._all.append(subscription)
        self._routes.clear()
        first = [pattern for pattern in subscription.patterns if self._references.add(pattern)]
        # A further subscription to a pattern asks again only for what has been: the hub sends the rest already.
        wanted = first if subscription.since is None else list(subscription.patterns)
        if wanted and self._connected:
            self._subscribe(subscription, wanted, subscription.since)
        subscription.began = self._connected

    def end(self, subscription: Subscription) -> None:
        if subscription not in self._all:
            return
        self._all.remove(subscription)
        self._routes.clear()
        last = [pattern for pattern in subscription.patterns if self._references.remove(pattern)]
        if last and self._connected:
            self._send("__unsubscribe", {"topics": last})

    def pause(self, subscription: Subscription) -> None:
        if self._connected:
            self._send("topic.pause", {"topics": list(subscription.patterns)})

    def resume(self, subscription: Subscription, *, again: bool) -> None:
        if not self._connected:
            return
        if again:
            self._subscribe(subscription, list(subscription.patterns), subscription.positions())
        else:
            self._send("topic.resume", {"topics": list(subscription.patterns)})

    def fail_all(self) -> None:
        for subscription in list(self._all):
            subscription.finish(None)

    # What the link tells.

    def on_up(self) -> None:
        """Subscribes again, from where each subscription is."""
        self._connected = True
        now = time.monotonic()
        for subscription in self._all:
            if subscription.began:
                subscription.resumed(now)
            subscription.began = True
            positions = subscription.positions()
            self._subscribe(subscription, list(subscription.patterns), positions or subscription.since)
            if subscription.paused:
                self.pause(subscription)

    def on_down(self) -> None:
        self._connected = False
        if self._repair_timer is not None:
            self._repair_timer.cancel()
            self._repair_timer = None

    def on_event(self, message: Message) -> None:
        topic = message.type
        route = self._routes.get(topic)
        if route is None:
            route = self._route(topic)
        meta = message.meta
        if meta is None or "author" not in meta:
            meta = self._place()
        try:
            author, epoch, seq = meta["author"], meta["epoch"], meta["seq"]
        except KeyError as missing:
            raise FrameError(f"an event of {topic} has no {missing} in its meta", close_code=CloseCode.BAD_MESSAGE) from None
        if type(seq) is not int or type(author) is not str or type(epoch) is not str:
            raise FrameError(f"an event of {topic} has a malformed meta", close_code=CloseCode.BAD_MESSAGE)
        event = Event(topic, message.detail, meta)
        now = time.monotonic()
        self.received += 1
        for subscription in route:
            subscription.receive(topic, author, epoch, seq, event, now)
            self._woken.add(subscription)

    def on_head(self, detail: Any) -> None:
        topic, author, epoch, seq = _place_of(detail, "seq")
        baseline, now = detail.get("baseline") is True, time.monotonic()
        for subscription in self._route(topic):
            subscription.head(topic, author, epoch, seq, baseline=baseline, now=now)
        self._mind_holes()

    def on_lost(self, detail: Any) -> None:
        topic, author, epoch, first = _place_of(detail, "from")
        last = detail.get("to")
        if type(last) is not int:
            raise FrameError("topic.lost needs an integer 'to'", close_code=CloseCode.BAD_MESSAGE)
        now = time.monotonic()
        for subscription in self._route(topic):
            subscription.lost(topic, author, epoch, first, last, now)
            self._woken.add(subscription)

    def on_batch(self) -> None:
        """After each batch from the network: readers wake once, holes are asked for once."""
        if self._woken:
            for subscription in self._woken:
                subscription.wake()
            self._woken.clear()
            self._mind_holes()

    # Inside.

    def _subscribe(self, subscription: Subscription, patterns: list[str], since: Any) -> None:
        self._send(
            "__subscribe",
            {
                "topics": patterns,
                "policy": subscription.policy,
                "patience": subscription.patience,
                "since": since,
            },
        )

    def _route(self, topic: str) -> list[Subscription]:
        if (route := self._routes.get(topic)) is not None:
            return route
        if len(self._routes) >= ROUTES:
            self._routes.clear()
        route = [s for s in self._all if any(matches(pattern, topic) for pattern in s.patterns)]
        self._routes[topic] = route
        return route

    def _place(self) -> dict[str, Any]:
        """A place for an event of a hub that gives none (an upstream hub): the order of arrival on this connection."""
        self._unplaced += 1
        return {"author": "", "epoch": "0" * 16, "seq": self._unplaced}

    def _mind_holes(self) -> None:
        """One timer for the hole that is due first; the trackers space the askings."""
        dues = [due for subscription in self._all if (due := subscription.next_due()) is not None]
        if not dues or not self._connected:
            return
        due = min(dues)
        if self._repair_timer is not None:
            if self._repair_at <= due:
                return
            self._repair_timer.cancel()
        self._repair_at = due
        self._repair_timer = asyncio.get_running_loop().call_later(max(due - time.monotonic(), 0.0), self._ask_repairs)

    def _ask_repairs(self) -> None:
        self._repair_timer = None
        if self._connected:
            now = time.monotonic()
            for subscription in self._all:
                for hole in subscription.wanted(now):
                    self._send("topic.repair", hole.to_json())
            self._mind_holes()


def _place_of(detail: Any, key: str) -> tuple[str, str, str, int]:
    if isinstance(detail, dict):
        topic, author, epoch, seq = detail.get("topic"), detail.get("author"), detail.get("epoch"), detail.get(key)
        if type(topic) is str and type(author) is str and type(epoch) is str and type(seq) is int:
            return topic, author, epoch, seq
    raise FrameError(f"a topic message needs topic, author, epoch and {key}", close_code=CloseCode.BAD_MESSAGE)

