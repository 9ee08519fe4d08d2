"""The target that stays in the process: what is dispatched is heard before ``dispatch_event`` returns.

The twin of the others in tests and the default of a program that needs no network. Events are not copied and need not
be JSON.
"""

from __future__ import annotations

from broker.errors import Closed
from broker.targets.event_target import CLOSE, Close, Event, Listener, Listeners, check_event

__all__ = ["MemoryEventTarget", "create_memory_event_target"]


class MemoryEventTarget:
    """An event target without a wire. It is never full, so it never refuses."""

    def __init__(self) -> None:
        self._listeners = Listeners()
        self._close: Close | None = None

    @property
    def closed(self) -> Close | None:
        """How it ended, or None while it lives."""
        return self._close

    def add_event_listener(self, type: str, listener: Listener) -> None:
        if self._listeners.add(type, listener) and type == CLOSE and self._close is not None:
            listener(Event(CLOSE, self._close))

    def remove_event_listener(self, type: str, listener: Listener) -> None:
        self._listeners.remove(type, listener)

    def dispatch_event(self, event: Event, *, reliable: bool = True) -> bool:
        check_event(event)
        if self._close is not None:
            raise Closed("the event target was closed")
        self._listeners.emit(event)
        return True

    async def close(self, code: int = 0, reason: str = "") -> None:
        """Tells the listeners of ``CLOSE``; a second call does nothing."""
        if self._close is None:
            self._close = Close(code, reason, remote=False, error=None)
            self._listeners.emit(Event(CLOSE, self._close))


def create_memory_event_target() -> MemoryEventTarget:
    """A new target, connected to nothing but itself."""
    return MemoryEventTarget()
