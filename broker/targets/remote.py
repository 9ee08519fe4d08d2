"""An event target with a peer behind it, whatever carries the frames: JSON in and out, listeners, subscriptions by
reference.

Nothing is delivered before the first listener is there, and then not before the loop's next turn: add all that
belong together in one go. Not here: how bytes travel (iroh_endpoint.py, iroh_streams.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

from broker.errors import BrokerError, Closed, ConnectionLost, EventTooLarge, FrameError
from broker.protocol.codec import decode, encode
from broker.protocol.wire import RESERVED_PREFIXES, CloseCode
from broker.targets.event_target import (
    CLOSE,
    DRAIN,
    ERROR,
    LOCAL_TYPES,
    Close,
    Event,
    Listener,
    Listeners,
    check_event,
)

__all__ = ["Carrier", "Receiver", "RemoteEventTarget"]

TELL_PATTERNS = 256
"""Patterns in one ``__subscribe``: 256 of the longest topics are 64 KiB, far below the frame limit."""


class Receiver(Protocol):
    """What a carrier tells. Nothing comes before :meth:`Carrier.listen`, and nothing after ``ended``."""

    def received(self, frames: list[bytes]) -> None: ...
    def received_datagram(self, payload: bytes) -> None: ...
    def drained(self) -> None: ...
    def ended(self, close: Close) -> None: ...


class Carrier(Protocol):
    """One connection that carries frames. ``send`` is False when its bounded queue is full, and ``drained`` follows."""

    max_frame_bytes: int

    @property
    def node_id(self) -> str: ...
    def attach(self, receiver: Receiver) -> None: ...
    def listen(self) -> None: ...
    def send(self, payload: bytes) -> bool: ...
    def send_datagram(self, payload: bytes) -> None: ...
    def fail(self, error: FrameError) -> None:
        """Ends the connection now: the peer broke the rules."""

    async def end(self, code: int, reason: str) -> None:
        """Ends it when what is queued has been sent, or a second later. Returns when it is gone."""


class RemoteEventTarget:
    """The :class:`~broker.targets.event_target.EventTarget` of one connection, which it owns."""

    def __init__(self, carrier: Carrier, *, subscribe: bool) -> None:
        self._carrier, self._subscribe = carrier, subscribe
        self._listeners = Listeners()
        self._told: set[str] = set()
        # Patterns whose first listener came or last one left since the peer was told; a dict for its order.
        self._untold: dict[str, None] = {}
        self._close: Close | None = None
        self._closing = False
        self._listening = False
        carrier.attach(self)

    @property
    def remote_node_id(self) -> str:
        """The peer's NodeId: its Ed25519 public key, proven by the handshake."""
        return self._carrier.node_id

    @property
    def closed(self) -> Close | None:
        """How it ended, or None while it lives."""
        return self._close

    def add_event_listener(self, type: str, listener: Listener) -> None:
        if not self._listeners.add(type, listener):
            return
        if self._close is not None and type == CLOSE:
            listener(Event(CLOSE, self._close))
        if not self._listening:
            self._listening = True
            self._carrier.listen()
        self._changed(type)

    def remove_event_listener(self, type: str, listener: Listener) -> None:
        if self._listeners.remove(type, listener):
            self._changed(type)

    def dispatch_event(self, event: Event, *, reliable: bool = True) -> bool:
        check_event(event)
        if self._closing or self._close is not None:
            raise _after_the_end(self._close)
        payload = encode(event.type, event.detail, event.meta)
        if not reliable:
            self._carrier.send_datagram(payload)
            return True
        if len(payload) > self._carrier.max_frame_bytes:
            raise _too_large(event.type, len(payload), self._carrier.max_frame_bytes)
        return self._carrier.send(payload)

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Ends the connection after what was dispatched has left. A second call does nothing."""
        if self._close is None:
            self._closing = True
            await self._carrier.end(code, reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What the carrier tells.

    def received(self, frames: list[bytes]) -> None:
        for frame in frames:
            if self._close is not None:
                return  # a listener closed it
            try:
                message = decode(frame)
            except FrameError as error:
                self._carrier.fail(error)
                return
            self._deliver(Event(*message))

    def received_datagram(self, payload: bytes) -> None:
        try:
            message = decode(payload)
        except FrameError as error:
            # It came without a promise: whoever listens hears of it, and the stream goes on.
            self._listeners.emit(Event(ERROR, error))
        else:
            self._deliver(Event(*message))

    def drained(self) -> None:
        self._tell()
        self._listeners.emit(Event(DRAIN))

    def ended(self, close: Close) -> None:
        self._close = close
        self._untold.clear()
        if close.error is not None:
            self._listeners.emit(Event(ERROR, close.error))
        self._listeners.emit(Event(CLOSE, close))

    # Inside.

    def _deliver(self, event: Event) -> None:
        if event.type in LOCAL_TYPES:
            about = {"code": "UNKNOWN_TYPE", "message": "this type does not travel", "about": event.type}
            # A peer that sends such and does not read either finds the queue full: then it is not told.
            self._carrier.send(encode("hub.error", about))
        else:
            self._listeners.emit(event)

    def _changed(self, type: str) -> None:
        """A listener came or left: the peer is told when it was the type's first or last."""
        if (
            self._subscribe
            and not type.startswith(RESERVED_PREFIXES)
            and (type in self._listeners) != (type in self._told)
        ):
            self._untold[type] = None
            self._tell()

    def _tell(self) -> None:
        """Says ``__subscribe`` and ``__unsubscribe`` for what has changed. What the full path refuses stays to be
        said."""
        if self._closing or self._close is not None:
            return
        for patterns in _chunks(self._untold):
            came = [pattern for pattern in patterns if pattern in self._listeners and pattern not in self._told]
            left = [pattern for pattern in patterns if pattern not in self._listeners and pattern in self._told]
            if came and not self._carrier.send(encode("__subscribe", {"topics": came})):
                return
            self._told.update(came)
            if left and not self._carrier.send(encode("__unsubscribe", {"topics": left})):
                return
            self._told.difference_update(left)
            for pattern in patterns:
                del self._untold[pattern]


def _chunks(patterns: dict[str, None]) -> Iterator[list[str]]:
    while chunk := list(islice(patterns, TELL_PATTERNS)):
        yield chunk


def _after_the_end(close: Close | None) -> BrokerError:
    if close is not None and isinstance(close.error, ConnectionLost):
        return ConnectionLost(str(close.error), close_code=close.code, reason=close.reason)
    return Closed(
        f"the event target is closed: {close.reason}" if close and close.reason else "the event target is closed"
    )


def _too_large(type: str, size: int, limit: int) -> EventTooLarge:
    return EventTooLarge(
        f"the event {type} is {size} bytes as a frame and the limit is {limit}; send less, or a reference to it",
        size=size,
        limit=limit,
    )
