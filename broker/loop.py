"""Which event loop a program of ours runs on, and how the extension's network work gets its turns.

The extension needs somebody to run its runtime. In a loop made here, the loop's own thread does: the selector waits for
sockets of asyncio and of the extension in one call, so that a frame reaches Python without a hand-over between threads
(measured in docs/decisions/0002). In anybody else's loop a thread of the extension does it; nothing has to be
set up for that. Not here: what is done with what arrives (border.py).
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from broker import _gossip_ext as ext

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["ensure_driven", "new_event_loop", "run"]

T = TypeVar("T")


class DrivingSelector(selectors.BaseSelector):
    """An epoll selector that runs the extension's runtime while it waits."""

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._inner.get_map()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ext.drive(self._inner.fileno(), timeout)
        return self._inner.select(0)

    def close(self) -> None:
        self._inner.close()


class DrivingLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop on a :class:`DrivingSelector`."""

    def __init__(self) -> None:
        super().__init__(DrivingSelector())


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop that our commands run on."""
    return DrivingLoop()


def ensure_driven(loop: asyncio.AbstractEventLoop) -> None:
    """Makes sure that the runtime gets its turns while ``loop`` runs: by itself, or by the extension's thread."""
    if not isinstance(loop, DrivingLoop):
        ext.start_thread()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """``asyncio.run`` on :func:`new_event_loop`."""
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)
