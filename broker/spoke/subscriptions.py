"""All subscriptions of a spoke: which patterns the hub is asked for, and who gets what arrives.

Patterns are counted by reference: the first subscription to a pattern asks the hub, the last one leaves. Not here: what
happens inside a subscription (subscription.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from broker.errors import BrokerError, FrameError, TopicError
from broker.events import Event
from broker.protocol.routing import References, matches
from broker.protocol.sequence import Repair
from broker.protocol.wire import CloseCode
from broker.spoke.subscription import Policy, Subscription

__all__ = ["Subscriptions"]

log = logging.getLogger("broker.spoke")

PATTERNS_A_MESSAGE = 1_000
"""So that a subscribe fits in a frame, with its positions."""

STRICTNESS: tuple[Policy, ...] = ("disconnect", "drop_oldest", "block")

ROUTES = 10_000
"""Topics whose subscriptions are remembered; beyond it the memory starts anew."""

RUN_EVENTS = 1_024
"""Events handled as one: enough that what is done once does not count, few beside a subscription's queue."""


class Subscriptions:
    """``send`` hands the hub a control message, which it hears unless the connection ends. The owner of every
    subscription here."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        self._send = send
        self._all: dict[Subscription, None] = {}
        self._count = 0
        self._holders: dict[str, dict[Subscription, None]] = {}
        """Who wants a pattern."""
        self._wild: dict[str, None] = {}
        """Those of them that have wildcards."""
        self._paused: set[str] = set()
        """Patterns that the hub was told to pause."""
        self._holey: dict[Subscription, None] = {}
        """Subscriptions that may have holes."""
        self._references = References()
        self._routes: dict[str, list[Subscription]] = {}
        self._datagram_routes: dict[str, list[Subscription]] = {}
        self._woken: dict[Subscription, None] = {}
        self._repair_timer: asyncio.TimerHandle | None = None
        self._repair_at = 0.0
        self._connected = False
        self.received = self.repairs = 0
        self.gap_patience: dict[str, float] = {}
        """By topic, of those in whose swarm this spoke is: seconds before a gap is asked for."""
        self.swarm: Callable[[str], Awaitable[None]] = _no_swarm
        """Returns when the swarm of a topic is heard; set by the spoke."""
        self.ask_members: Callable[[Repair], bool] = lambda _hole: False
        """Asks others than the hub for a hole."""

    # The owner's side of a subscription.

    @property
    def connected(self) -> bool:
        return self._connected

    def begin(self, subscription: Subscription) -> None:
        if subscription in self._all:
            raise RuntimeError("this subscription has begun already")
        taken: list[str] = []
        try:
            for pattern in subscription.patterns:
                self._references.add(pattern)
                taken.append(pattern)
        except TopicError:
            for pattern in taken:
                self._references.remove(pattern)
            raise
        self._count += 1
        subscription.tag = str(self._count)
        subscription.began_at = time.monotonic()
        self._all[subscription] = None
        for pattern in subscription.patterns:
            self._holders.setdefault(pattern, {})[subscription] = None
            if "*" in pattern or ">" in pattern:
                self._wild[pattern] = None
        self._forget_routes()
        if self._connected:
            # Also for patterns that the hub knows already: where it begins is its own matter.
            self._subscribe(subscription, subscription.since)
        subscription.began = self._connected

    def end(self, subscription: Subscription) -> None:
        if subscription not in self._all:
            return
        del self._all[subscription]
        self._holey.pop(subscription, None)
        self._woken.pop(subscription, None)
        self._forget_routes()
        for pattern in subscription.patterns:
            del self._holders[pattern][subscription]
            if not self._holders[pattern]:
                del self._holders[pattern]
                self._wild.pop(pattern, None)
        last = [pattern for pattern in subscription.patterns if self._references.remove(pattern)]
        self._paused.difference_update(last)
        if last and self._connected:
            self._send("__unsubscribe", {"topics": last})
        self._mind_pauses([pattern for pattern in subscription.patterns if pattern in self._holders])

    def pause(self, subscription: Subscription) -> None:
        self._mind_pauses(subscription.patterns)

    def resume(self, subscription: Subscription, *, again: bool) -> None:
        if again and self._connected:
            self._subscribe(subscription, subscription.positions())
        else:
            self._mind_pauses(subscription.patterns)
        self._holey[subscription] = None
        self._mind_holes()

    def _mind_pauses(self, patterns: Iterable[str]) -> None:
        """The hub pauses a pattern while all that want it are paused: a program that is slow to read one subscription
        does not miss anything in another."""
        if not self._connected:
            return
        wanted = {pattern: all(one.paused for one in self._holders[pattern]) for pattern in patterns}
        pause = [pattern for pattern, full in wanted.items() if full and pattern not in self._paused]
        resume = [pattern for pattern, full in wanted.items() if not full and pattern in self._paused]
        self._paused.update(pause)
        self._paused.difference_update(resume)
        for type, some in (("topic.pause", pause), ("topic.resume", resume)):
            if some:
                self._send(type, {"topics": some})

    def refused(self, pattern: str, error: BrokerError) -> None:
        """The hub does not take a pattern: nothing would ever come, so those who wait for it are told."""
        for subscription in list(self._holders.get(pattern, ())):
            self.end(subscription)
            subscription.finish(error)

    def fail_all(self) -> None:
        for subscription in list(self._all):
            subscription.finish(None)

    def verdict_counts(self) -> dict[str, int]:
        """Sequences of all subscriptions by the first part of their verdict's word."""
        found: dict[str, int] = {}
        for subscription in self._all:
            for verdict in subscription.verdicts:
                word = verdict.word.partition("(")[0]
                found[word] = found.get(word, 0) + 1
        return found

    # What the link tells.

    def on_up(self) -> None:
        """Subscribes again, from where each subscription is."""
        self._connected = True
        self._paused.clear()
        now = time.monotonic()
        for subscription in self._all:
            since: Any = subscription.since
            if subscription.began:
                subscription.resumed(now, anew=True)
                positions = subscription.positions()
                # Who had heard of nobody from now on is due all that anybody sent meanwhile.
                since = positions if positions or since is None else since
            subscription.began = True
            self._subscribe(subscription, since)
        self._mind_pauses([pattern for one in self._all if one.paused for pattern in one.patterns])
        self._holey.update(self._all)
        self._mind_holes()

    def on_down(self) -> None:
        self._connected = False
        if self._repair_timer is not None:
            self._repair_timer.cancel()
            self._repair_timer = None
        self._holey.update(self._all)
        self._mind_holes()

    def on_events(self, messages: list[Event]) -> None:
        """Events in the order of arrival. Those that follow each other in one author's sequence are handled as one."""
        now = time.monotonic()
        self.received += len(messages)
        at = 0
        while at < len(messages):
            topic, detail, meta = messages[at]
            route = self._routes.get(topic)
            if route is None:
                route = self._route(topic)
            if meta is None or "author" not in meta:
                at += 1
                for subscription in route:
                    subscription.receive_unplaced(topic, detail, now)
                    self._woken[subscription] = None
                continue
            author, epoch, seq = _place_of_event(topic, meta)
            events = _run(messages, at, author, epoch, seq)
            at += len(events)
            for subscription in route:
                subscription.receive(topic, author, epoch, seq, events, now)
                self._woken[subscription] = None

    def on_datagram(self, event: Event) -> None:
        """An event without a place in a sequence."""
        for subscription in self._datagram_route(event.type):
            subscription.receive_datagram(event)
            self._woken[subscription] = None

    def wants(self, topic: str) -> bool:
        return bool(self._route(topic))

    def on_gossip(self, topic: str, author: str, epoch: str, seq: int, events: Sequence[Event], heard: float) -> None:
        """Events of the topic's swarm that follow each other in one sequence, which was first heard of at ``heard``."""
        now = time.monotonic()
        self.received += len(events)
        for subscription in self._route(topic):
            new = subscription.began_at <= heard
            subscription.receive(topic, author, epoch, seq, events, now, new=new)
            self._woken[subscription] = None

    def on_swarm_head(self, topic: str, author: str, epoch: str, seq: int, heard: float) -> None:
        """The newest number of a sequence, as its swarm says; also of an event that is to be had by stream alone."""
        now = time.monotonic()
        for subscription in self._route(topic):
            new = subscription.began_at <= heard
            subscription.announced(topic, author, epoch, seq, new=new, now=now)
            self._woken[subscription] = None

    def again(self, topic: str) -> None:
        """From here on the topic comes by stream alone: the hub goes on from what is known here."""
        if not self._connected:
            return
        now = time.monotonic()
        for subscription in self._route(topic):
            subscription.resumed(now, anew=False)
            patterns = [pattern for pattern in subscription.patterns if matches(pattern, topic)]
            self._subscribe(subscription, subscription.positions(), patterns)
            self._holey[subscription] = None
            if subscription.paused:
                self._mind_pauses(patterns)
        self._mind_holes()

    def on_head(self, detail: Any) -> None:
        topic, author, epoch, seq = _place_of(detail, "seq")
        baseline, now = detail.get("baseline") is True, time.monotonic()
        for subscription in self._meant(topic, detail.get("tag")):
            subscription.head(topic, author, epoch, seq, baseline=baseline, now=now)
            self._holey[subscription] = None
        self._mind_holes()

    def _meant(self, topic: str, tag: Any) -> list[Subscription]:
        """A head that answers a subscribe is for that subscription: another may have its baseline elsewhere."""
        route = self._route(topic)
        if tag is None:
            return route
        return [subscription for subscription in route if subscription.tag == tag]

    def on_lost(self, detail: Any) -> None:
        topic, author, epoch, first = _place_of(detail, "from")
        last = detail.get("to")
        if type(last) is not int:
            raise FrameError("topic.lost needs an integer 'to'", close_code=CloseCode.BAD_MESSAGE)
        now = time.monotonic()
        for subscription in self._route(topic):
            subscription.lost(topic, author, epoch, first, last, now)
            self._woken[subscription] = None

    def on_batch(self) -> None:
        """After each batch from the network: readers wake once, holes are asked for once."""
        if self._woken:
            for subscription in self._woken:
                subscription.wake()
                if subscription.next_due() is not None:
                    self._holey[subscription] = None
            self._woken.clear()
            self._mind_holes()

    # Inside.

    def _subscribe(self, subscription: Subscription, since: Any, some: Iterable[str] | None = None) -> None:
        """``some``: of its patterns; all of them if not given."""
        wanted = subscription.patterns if some is None else tuple(some)
        self._paused.difference_update(wanted)  # the hub takes a subscribe for a resume
        groups: dict[tuple[Policy, float], list[str]] = {}
        for pattern in wanted:
            groups.setdefault(self._options(pattern), []).append(pattern)
        for (policy, patience), patterns in groups.items():
            for first in range(0, len(patterns), PATTERNS_A_MESSAGE):
                detail = {
                    "topics": patterns[first : first + PATTERNS_A_MESSAGE],
                    "policy": policy,
                    "patience": patience,
                    "since": since,
                    "tag": subscription.tag,
                }
                self._send("__subscribe", detail)

    def _options(self, pattern: str) -> tuple[Policy, float]:
        """The hub keeps one policy a pattern: the strictest of those who want it."""
        return max(
            ((one.policy, one.patience) for one in self._holders[pattern]),
            key=lambda options: (STRICTNESS.index(options[0]), options[1]),
        )

    def _route(self, topic: str) -> list[Subscription]:
        if (route := self._routes.get(topic)) is not None:
            return route
        if len(self._routes) >= ROUTES:
            self._routes.clear()
        route = self._routes[topic] = [one for one in self._matching(topic) if not one.only_datagrams]
        return route

    def _datagram_route(self, topic: str) -> list[Subscription]:
        if (route := self._datagram_routes.get(topic)) is not None:
            return route
        if len(self._datagram_routes) >= ROUTES:
            self._datagram_routes.clear()
        route = self._datagram_routes[topic] = list(self._matching(topic))
        return route

    def _matching(self, topic: str) -> dict[Subscription, None]:
        found = dict(self._holders.get(topic, {}))
        for pattern in self._wild:
            if matches(pattern, topic):
                found.update(self._holders[pattern])
        return found

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._datagram_routes.clear()

    def _mind_holes(self) -> None:
        """One timer for the hole that is due first; the trackers space the askings. Without a hub the members of a
        topic's swarm can be asked, if there is one."""
        if not self._holey or not (self._connected or self.gap_patience):
            return
        due: float | None = None
        for subscription in list(self._holey):
            if (next_due := subscription.next_due()) is None:
                self._holey.pop(subscription, None)
            elif due is None or next_due < due:
                due = next_due
        if due is None:
            return
        if self._repair_timer is not None:
            if self._repair_at <= due:
                return
            self._repair_timer.cancel()
        self._repair_at = due
        self._repair_timer = asyncio.get_running_loop().call_later(max(due - time.monotonic(), 0.0), self._ask_repairs)

    def _ask_repairs(self) -> None:
        self._repair_timer = None
        now = time.monotonic()
        for subscription in list(self._holey):
            for hole in subscription.wanted(now):
                if not self._connected:
                    self.repairs += self.ask_members(hole)
                else:
                    self.repairs += 1
                    self._send("topic.repair", hole.to_json())
        self._mind_holes()


async def _no_swarm(topic: str) -> None:
    raise TopicError(f"{topic}: this spoke does not gossip", code="NO_SWARM")


def _place_of_event(topic: str, meta: dict[str, Any]) -> tuple[str, str, int]:
    try:
        author, epoch, seq = meta["author"], meta["epoch"], meta["seq"]
    except KeyError as missing:
        raise FrameError(
            f"an event of {topic} has no {missing} in its meta", close_code=CloseCode.BAD_MESSAGE
        ) from None
    if type(seq) is not int or type(author) is not str or type(epoch) is not str:
        raise FrameError(f"an event of {topic} has a malformed meta", close_code=CloseCode.BAD_MESSAGE)
    return author, epoch, seq


def _run(messages: list[Event], at: int, author: str, epoch: str, seq: int) -> list[Event]:
    """The event ``messages[at]``, and what comes after it both there and in its sequence."""
    topic, end = messages[at].type, at + 1
    most = min(at + RUN_EVENTS, len(messages))
    while end < most:
        kind, _, meta = messages[end]
        seq += 1
        if kind != topic or meta is None:
            break
        get = meta.get
        number = get("seq")
        if number != seq or type(number) is not int or get("author") != author or get("epoch") != epoch:
            break
        end += 1
    return messages[at:end]


def _place_of(detail: Any, key: str) -> tuple[str, str, str, int]:
    if isinstance(detail, dict):
        topic, author, epoch, seq = detail.get("topic"), detail.get("author"), detail.get("epoch"), detail.get(key)
        if type(topic) is str and type(author) is str and type(epoch) is str and type(seq) is int:
            return topic, author, epoch, seq
    raise FrameError(f"a topic message needs topic, author, epoch and {key}", close_code=CloseCode.BAD_MESSAGE)
