"""Which event loop a program of ours runs on, and how the extension's network work gets its turns.

The extension needs somebody to run its runtime. In a loop made here, the loop's own thread does: the selector waits for
sockets of asyncio and of the extension in one call, so that a frame reaches Python without a hand-over between threads
(measured in docs/decisions/0002). In anybody else's loop a thread of the extension does it; nothing has to be
set up for that. Not here: what is done with what arrives (border.py).
"""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from broker import _gossip_ext as ext

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["new_event_loop", "run", "run_network", "watch"]

T = TypeVar("T")

INBOXES_A_TURN = 2
"""Of a process with many endpoints: what they bring is read by the program while it is in the processor's cache."""

DEFAULT_GC, GC_OBJECTS = 700, 50_000
"""A drain of the inbox makes some ten thousand objects that all live until they are read. At Python's own threshold the
collector walks them again and again: measured, 4.1 us an event in batches of 512 beside 1.5 us."""


class DrivingSelector(selectors.BaseSelector):
    """An epoll selector that runs the extension's runtime while it waits, and looks at the inboxes itself: so an
    arrival costs no eventfd, which is three system calls."""

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()
        self.inboxes: dict[ext.Endpoint, Callable[[], None]] = {}
        self.call_soon: Callable[..., object]
        self._more = False

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._inner.get_map()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        readable = ext.drive(self._inner.fileno(), 0 if self._more else timeout, True)
        woken = list(islice((endpoint for endpoint in self.inboxes if endpoint.pending()), INBOXES_A_TURN))
        for endpoint in woken:
            self.call_soon(self._wake, endpoint)  # runs in this turn of the loop, like a descriptor's callback
            self.inboxes[endpoint] = self.inboxes.pop(endpoint)  # the others have their turn first
        self._more = len(woken) == INBOXES_A_TURN
        return self._inner.select(0) if readable else []

    def _wake(self, endpoint: ext.Endpoint) -> None:
        if (wake := self.inboxes.get(endpoint)) is not None:  # else it was left alone meanwhile
            wake()

    def close(self) -> None:
        ext.forget(self._inner.fileno())
        self._inner.close()


class DrivingLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on a :class:`DrivingSelector`."""

    def __init__(self) -> None:
        self.driving = DrivingSelector()
        super().__init__(self.driving)
        self.driving.call_soon = self.call_soon


def watch(loop: asyncio.AbstractEventLoop, endpoint: ext.Endpoint, wake: Callable[[], None]) -> Callable[[], None]:
    """Calls ``wake`` on ``loop`` whenever the endpoint's inbox has items, and makes sure that the runtime gets its
    turns: from the loop itself, or from the extension's thread. Returns what ends the calls."""
    run_network(loop)
    if isinstance(loop, DrivingLoop):
        loop.driving.inboxes[endpoint] = wake
    else:
        loop.add_reader(endpoint.fileno(), wake)
    return lambda: _unwatch(loop, endpoint)


def run_network(loop: asyncio.AbstractEventLoop) -> None:
    """Makes sure that the extension's runtime gets its turns while ``loop`` runs."""
    if not isinstance(loop, DrivingLoop):
        ext.start_thread()


def _unwatch(loop: asyncio.AbstractEventLoop, endpoint: ext.Endpoint) -> None:
    if isinstance(loop, DrivingLoop):
        loop.driving.inboxes.pop(endpoint, None)
    elif not loop.is_closed():
        loop.remove_reader(endpoint.fileno())


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop that our commands run on."""
    return DrivingLoop()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """``asyncio.run`` on :func:`new_event_loop`, with the garbage collector set to look for cycles less often."""
    if gc.get_threshold()[0] == DEFAULT_GC:  # else the program has its own mind
        gc.set_threshold(GC_OBJECTS, *gc.get_threshold()[1:])
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)
