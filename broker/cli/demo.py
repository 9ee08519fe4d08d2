"""``broker demo``: a hub and a few spokes on this machine's own live data, and somebody who looks at them.

Hub, spokes and viewer are one process but talk over the network as anybody would: each has an endpoint and an identity
of its own. Not here: what is measured (lab/host.py), nor anything that the demo alone can do.
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
from broker.lab.host import READINGS, load, processors

if TYPE_CHECKING:
    from broker import Hub, Spoke

__all__ = ["demo"]

log = logging.getLogger("broker.cli")

INTERVAL = 1.0
"""Seconds between events, and between calls."""
OPERATIONS = tuple(READINGS)
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
    processors.percent()
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
