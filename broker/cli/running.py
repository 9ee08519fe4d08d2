"""How a command's coroutine runs: the event loop, and what SIGINT and SIGTERM do to it.

Two kinds of command. One does its work and ends: a signal cancels it, status 130. The other serves until it is told
to stop: a signal asks it to drain, a second one ends it at once. Both kinds need handlers of the loop itself, since the
loop may be waiting inside the extension, where Python's own handlers do not run. Not here: what draining is.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["INTERRUPTED", "in_thread", "run", "stop_signal", "wait_for_either"]

T = TypeVar("T")

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_handlers: list[Callable[[signal.Signals], Any]] = []
"""The last one handles. A process has one set of signal handlers, so this is the process's too."""


def run(main: Coroutine[Any, Any, int]) -> int:
    """The exit status of a command."""
    from broker.loop import run as run_loop

    return run_loop(_cancelled_by_signals(main))


async def _cancelled_by_signals(main: Coroutine[Any, Any, int]) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(main)
    for number in SIGNALS:
        loop.add_signal_handler(number, _handle, number)
    with _handled_by(lambda _: task.cancel()):
        try:
            return await task
        except asyncio.CancelledError:
            return INTERRUPTED
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def _handle(number: signal.Signals) -> None:
    if _handlers:  # else it came when all was over: the loop may have it still to run after its handlers are gone
        _handlers[-1](number)


@contextmanager
def _handled_by(handler: Callable[[signal.Signals], Any]) -> Iterator[None]:
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)


@contextmanager
def stop_signal() -> Iterator[asyncio.Future[signal.Signals]]:
    """Inside, the first signal is the future's result; the second one cancels the task that is in here."""
    task = asyncio.current_task()
    stop: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def handle(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number)
        elif task is not None:
            task.cancel()

    with _handled_by(handle):
        yield stop


async def wait_for_either(
    work: asyncio.Task[Any], stop: asyncio.Future[signal.Signals], timeout: float | None = None
) -> signal.Signals | None:
    """The signal, or None when ``work`` ended first (what it raised is raised) or the time was up. ``work`` goes on."""
    await asyncio.wait((work, stop), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
    return stop.result() if stop.done() else None


async def in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """What blocks, while signals are still heard. Who is cancelled sets ``stop`` and waits until ``work`` has put
    everything back, however often it is cancelled."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait((working,))
        except asyncio.CancelledError as error:
            cancelled = error
            stop.set()
    if cancelled is not None:
        working.exception()  # it was told to stop: whatever it says of that is no news
        raise cancelled
    return working.result()
