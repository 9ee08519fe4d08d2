"""The seam itself: three methods that every transport has, the event they carry, and the table of who listens.

A type is a topic (``orders.created``), a pattern of topics when it is listened for (``orders.*``, ``orders.>``), or
one of the wire's own words (``call.requested``); a pattern matches topics only. Three types in the wire's reserved
space never travel. A target dispatches them to its own listeners, and what a peer sends under these names is refused:

* ``ERROR`` (``__error``): something went wrong; ``detail`` is the exception, a :class:`broker.errors.BrokerError`.
* ``CLOSE`` (``__close``): the target's last event; ``detail`` is a :class:`Close`. Who asks later is told at once.
* ``DRAIN`` (``__drain``): a target that refused an event has room again; ``detail`` is None.

They are not called ``error`` and ``close`` as upstream's are, since those are names that any peer may give to a topic.
Not here: any transport.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from broker.errors import BrokerError
from broker.protocol.routing import check_pattern, check_topic, matches
from broker.protocol.wire import RESERVED_PREFIXES

__all__ = ["CLOSE", "DRAIN", "ERROR", "Close", "Event", "EventTarget", "Listener", "Listeners", "check_event"]

log = logging.getLogger("broker.targets")

ERROR: Final = "__error"
CLOSE: Final = "__close"
DRAIN: Final = "__drain"
LOCAL_TYPES: Final = frozenset((ERROR, CLOSE, DRAIN))

CHECKED_TYPES = 4_096
"""Types that were found good are remembered, so that a busy topic's name is read once."""


class Event:
    """What is dispatched and heard. ``meta`` is the wire's routing data (author, epoch, seq ...), or None: upstream's
    events have none. Listeners share one event: they read it, and change nothing in it."""

    __slots__ = ("detail", "meta", "type")

    def __init__(self, type: str, detail: Any = None, meta: dict[str, Any] | None = None) -> None:
        self.type, self.detail, self.meta = type, detail, meta

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return (self.type, self.detail, self.meta) == (other.type, other.detail, other.meta)

    __hash__ = None  # type: ignore[assignment]  # equal by value, and the value is JSON, which can be changed

    def __repr__(self) -> str:
        meta = "" if self.meta is None else f", {self.meta!r}"
        return f"Event({self.type!r}, {self.detail!r}{meta})"


Listener = Callable[[Event], None]


class EventTarget(Protocol):
    """Where events are sent to, and heard from."""

    def add_event_listener(self, type: str, listener: Listener) -> None:
        """``listener`` is called with each event of that type, or whose topic matches that pattern, in order. Adding it
        again changes nothing. Raises TopicError for a type that nobody may publish."""

    def remove_event_listener(self, type: str, listener: Listener) -> None:
        """From now on it hears nothing more of that type. Unknown ones are ignored."""

    def dispatch_event(self, event: Event, *, reliable: bool = True) -> bool:
        """Takes the event, or returns False: the path is full, nothing was sent, and ``DRAIN`` (or ``CLOSE``) follows
        when there is room. ``reliable=False`` may lose or reorder it. Raises TopicError, EventTooLarge, ValueError
        (not JSON), and Closed or ConnectionLost after the end."""


class Close(NamedTuple):
    """How a target ended. ``error`` is None when somebody meant it to end (code 0)."""

    code: int | None
    """The close code; None when the path died without a word."""
    reason: str
    remote: bool
    """Whether the other side ended it."""
    error: BrokerError | None


@lru_cache(CHECKED_TYPES)
def _check_topic(type: str) -> None:
    if not type.startswith(RESERVED_PREFIXES):
        check_topic(type)


def check_event(event: Event) -> None:
    """Raises TopicError unless the event's type is a topic or one of the wire's words, ValueError for the local
    types."""
    if event.type in LOCAL_TYPES:
        raise ValueError(f"{event.type} is what a target tells its own listeners; it is not dispatched")
    _check_topic(event.type)


class Listeners:
    """Who listens to what, for one target. Calls are made on the caller's stack, in the order of addition."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self) -> None:
        # Tuples are replaced, never changed: a listener may add and remove while an event goes round.
        self._exact: dict[str, tuple[Listener, ...]] = {}
        self._patterns: dict[str, tuple[Listener, ...]] = {}

    def __len__(self) -> int:
        return sum(len(listeners) for table in (self._exact, self._patterns) for listeners in table.values())

    def __contains__(self, type: str) -> bool:
        return type in self._exact or type in self._patterns

    def add(self, type: str, listener: Listener) -> bool:
        """False when it was there already."""
        if not type.startswith(RESERVED_PREFIXES):
            check_pattern(type)
        table = self._table(type)
        before = table.get(type, ())
        if listener in before:
            return False
        table[type] = (*before, listener)
        return True

    def remove(self, type: str, listener: Listener) -> bool:
        """False when it was not there."""
        table = self._table(type)
        before = table.get(type, ())
        after = tuple(other for other in before if other != listener)
        if after:
            table[type] = after
        elif before:
            del table[type]
        return len(after) < len(before)

    def emit(self, event: Event) -> None:
        """Calls whoever listens. One that raises is logged; it stops neither the others nor the connection."""
        for listener in self._exact.get(event.type, ()):
            if listener in self._exact.get(event.type, ()):  # not removed by an earlier one
                _call(listener, event)
        if self._patterns and not event.type.startswith(RESERVED_PREFIXES):
            for pattern, listeners in list(self._patterns.items()):
                if matches(pattern, event.type):
                    for listener in listeners:
                        if listener in self._patterns.get(pattern, ()):
                            _call(listener, event)

    def _table(self, type: str) -> dict[str, tuple[Listener, ...]]:
        return self._patterns if "*" in type or ">" in type else self._exact


def _call(listener: Listener, event: Event) -> None:
    try:
        listener(event)
    except Exception:
        log.exception("a listener of %s raised", event.type)
