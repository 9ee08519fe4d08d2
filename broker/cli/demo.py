"""``broker demo``: a hub and a few spokes on this machine's own live data, and somebody who looks at them.

Hub, spokes and viewer are one process but talk over the network as anybody would: each has an endpoint and an identity
of its own. What they show is measured when it is asked for (psutil). Not here: anything that the demo alone can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.demo_view import View, make_view
from broker.cli.options import Json, LogFormatOption, LogLevelOption
from broker.cli.output import LineWriter, start_logging
from broker.cli.running import INTERRUPTED, run, stop_signal, wait_for_either
from broker.config import HubConfig
from broker.errors import BindError, CallError

if TYPE_CHECKING:
    from broker import Hub, Spoke

__all__ = ["demo"]

log = logging.getLogger("broker.cli")

INTERVAL = 1.0
"""Seconds between events, and between calls."""
OPERATIONS = ("host.load", "host.memory", "host.disks", "host.processes")
FIRST_LOOK = 0.1
"""Seconds over which the first reading of the processors is taken."""
HTTP = "127.0.0.1:9464"


def demo(
    spokes: Annotated[int, typer.Option("--spokes", metavar="N", min=1, max=100)] = 3,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0.1,
            help="Ends after so long. [default: when interrupted]",
            show_default=False,
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help=f"[default: {HTTP}, or a free port]", show_default=False),
    ] = None,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Runs a hub with spokes that tell this machine's load, memory, disks and processes, and shows what goes on."""
    start_logging(log_level or "warning", log_format or "text")
    return run(_demo(spokes, seconds, http, json))


async def _demo(count: int, seconds: float | None, http: str | None, json: bool) -> int:
    from broker import connect

    writer = LineWriter()
    _processors.percent()
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(stop_signal())
        hub = await stack.enter_async_context(_hub(http))
        view = stack.enter_context(make_view(hub, writer, json))
        await view.begin()
        for number in range(1, count + 1):
            await stack.enter_async_context(_host(f"host-{number}", hub.ticket))
        viewer = await stack.enter_async_context(connect(hub.ticket, name="viewer"))
        looking = asyncio.create_task(_look(viewer, view))
        stack.push_async_callback(_ended, looking)
        stopped = await wait_for_either(looking, stop, seconds)
        await view.end()
    return INTERRUPTED if stopped is signal.SIGINT else 0


@asynccontextmanager
async def _hub(http: str | None) -> AsyncIterator[Hub]:
    """On the usual HTTP port if it is free: another hub on this machine must not stop a demo."""
    from broker import Hub

    hub = Hub(HubConfig(open=True, http=HTTP if http is None else http))
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(hub)
        except BindError:
            if http is not None:
                raise
            hub = await stack.enter_async_context(Hub(HubConfig(open=True, http="127.0.0.1:0")))
        yield hub


@asynccontextmanager
async def _host(name: str, ticket: str) -> AsyncIterator[None]:
    from broker import Spoke

    spoke = Spoke(name)
    for operation in OPERATIONS:
        spoke.offer(operation, _measured(operation), kind="query", description=READINGS[operation].__doc__)
    serving = asyncio.create_task(spoke.run(ticket))
    telling = asyncio.create_task(_tell(spoke, f"host.{name}.load"))
    try:
        await spoke.wait_connected(10.0)
        yield
    finally:
        await spoke.close()
        await _ended(serving, telling)


async def _tell(spoke: Spoke, topic: str) -> None:
    while True:
        await asyncio.gather(spoke.publish(topic, load()), asyncio.sleep(INTERVAL))


def _measured(operation: str) -> Any:
    async def handler(_input: Any, _call: Any) -> Any:
        # Reading every process takes tens of milliseconds: not on the loop.
        return await asyncio.to_thread(READINGS[operation])

    return handler


async def _look(viewer: Spoke, view: View) -> None:
    """Reads every event, and calls an operation after the other."""
    async with viewer.subscribe("host.>", since="start") as events, asyncio.TaskGroup() as group:
        group.create_task(_call_in_turn(viewer, view))
        async for event in events:
            await view.event(event, events.verdicts)


async def _call_in_turn(viewer: Spoke, view: View) -> None:
    turn = 0
    while True:
        operation = OPERATIONS[turn % len(OPERATIONS)]
        began = time.perf_counter()
        try:
            output: Any = await viewer.call(operation, timeout=5.0)
        except CallError as error:
            output = error
        await view.called(operation, time.perf_counter() - began, output)
        turn += 1
        await asyncio.sleep(INTERVAL / 2)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


# What a host tells of itself.


class _Processors:
    """How busy they are. psutil tells it since the last look; of two looks at once the second would see nothing."""

    def __init__(self) -> None:
        self._at, self._percent = 0.0, 0.0

    def percent(self) -> float:
        import psutil

        now = time.monotonic()
        if now - self._at >= INTERVAL / 2:
            self._percent = psutil.cpu_percent(interval=None if self._at else FIRST_LOOK)
            self._at = now
        return self._percent


_processors = _Processors()


def load() -> dict[str, Any]:
    """Load averages and the use of the processors in the last second."""
    import psutil

    one, five, fifteen = psutil.getloadavg()
    return {"load": [round(one, 2), round(five, 2), round(fifteen, 2)], "cpu_percent": _processors.percent()}


def memory() -> dict[str, Any]:
    """Memory and swap, in bytes."""
    import psutil

    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {"total": ram.total, "available": ram.available, "percent": ram.percent, "swap_used": swap.used}


def disks() -> list[dict[str, Any]]:
    """Mounted file systems and how full they are."""
    import psutil

    rows = []
    for partition in psutil.disk_partitions():
        with contextlib.suppress(OSError):  # a mount that this user may not look into
            usage = psutil.disk_usage(partition.mountpoint)
            rows.append({"mount": partition.mountpoint, "total": usage.total, "percent": usage.percent})
    return rows


def processes() -> dict[str, Any]:
    """How many processes there are, and the five that hold the most memory."""
    import psutil

    rows = [process.info for process in psutil.process_iter(["pid", "name", "memory_info"])]
    rows.sort(key=lambda info: info["memory_info"].rss if info["memory_info"] else 0, reverse=True)
    largest = [
        {"pid": info["pid"], "name": info["name"], "rss": info["memory_info"].rss}
        for info in rows[:5]
        if info["memory_info"]
    ]
    return {"count": len(rows), "largest": largest}


READINGS = {"host.load": load, "host.memory": memory, "host.disks": disks, "host.processes": processes}
