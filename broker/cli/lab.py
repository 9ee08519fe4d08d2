"""``broker lab``: the testbed's commands. Not here: what a node or an observer does (broker/lab)."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker import keys
from broker.cli import lab_chaos, lab_nat
from broker.cli.lab_chaos import DIRECTORY, Directory, columns
from broker.cli.options import (
    Json,
    KeyFile,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    SpokeName,
    TicketArgument,
    read_ticket,
)
from broker.cli.output import LineWriter, note, start_logging, table
from broker.cli.running import INTERRUPTED, run, stop_signal, wait_for_either
from broker.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from broker import Spoke

__all__ = ["app"]

app = typer.Typer(name="lab", help="The testbed: nodes with a load to order.", no_args_is_help=True)

Http = Annotated[
    str | None, typer.Option("--http", metavar="HOST:PORT", help="/metrics, /healthz and /readyz.", show_default=False)
]


@app.command()
def node(
    ticket: TicketArgument,
    name: SpokeName = None,
    rate: Annotated[float, typer.Option("--rate", metavar="N", min=0, help="Events a second.")] = 1.0,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", min=0, max=900_000, help="Added to an event.")] = 0,
    calls: Annotated[float, typer.Option("--calls", metavar="N", min=0, help="Calls a second, to any node.")] = 1.0,
    http: Http = None,
    key: KeyFile = None,
    relay_ca: RelayCaOption = None,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Runs a spoke with this host's live data and a load to order. Waits for a ticket file that is not there yet."""
    from broker.lab.node import Load, make_node, work

    start_logging(log_level or "info", log_format or "text")
    load = Load(events=rate, bytes=size, calls=calls)
    secret = keys.load(key) if key is not None else None
    spoke = make_node(name or socket.gethostname(), secret, relay_ca=relay_ca)
    return run(_Role(spoke, ticket, http, json).serve(lambda: work(spoke, load)))


@app.command()
def observer(
    ticket: TicketArgument,
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC...", help="Topics or patterns.")],
    name: SpokeName = None,
    http: Http = None,
    relay_ca: RelayCaOption = None,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Reads everything on the topics; its /metrics say what became of it: complete, repaired or lost."""
    from broker import Spoke, SpokeOptions
    from broker.lab.observer import VerdictCollector

    start_logging(log_level or "info", log_format or "text")
    spoke = Spoke(name or "observer", options=SpokeOptions(relay_ca=relay_ca))
    events = spoke.subscribe(*topics)

    async def read() -> None:
        async with events:
            async for _ in events.batches():
                pass

    return run(_Role(spoke, ticket, http, json, (VerdictCollector(lambda: events.verdicts),)).serve(read))


@app.command(hidden=True)
def misfit(ticket: TicketArgument, kind: Annotated[str, typer.Argument(metavar="json|words|answers")]) -> int:
    """Runs a peer that breaks the rules."""
    from broker.lab.misfit import KINDS, misbehave

    if kind not in KINDS:
        raise UsageError(f"{kind}: one of {', '.join(KINDS)}")
    start_logging("warning", "text")
    return run(_until_stopped(misbehave(read_ticket(ticket), kind)))


async def _until_stopped(work: Coroutine[Any, Any, None]) -> int:
    with stop_signal() as stop:
        working = asyncio.create_task(work)
        try:
            await wait_for_either(working, stop)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    return 0


# The lab as a whole. Breaking it: lab_chaos.py.

app.command()(lab_chaos.chaos)
app.command()(lab_chaos.havoc)

# Networks with routers that translate: lab_nat.py.

app.command()(lab_nat.nat)
for one in (lab_nat.probe, lab_nat.router, lab_nat.certificate):
    app.command(hidden=True)(one)


@app.command()
def up(
    hubs: Annotated[
        int | None, typer.Option("--hubs", metavar="N", min=1, max=9, help="2 if not given; 1 with --nat.")
    ] = None,
    spokes: Annotated[int, typer.Option("--spokes", metavar="N", min=1, max=100)] = 20,
    rate: Annotated[float, typer.Option("--rate", metavar="N", min=0, help="Events a second and spoke.")] = 5.0,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", min=0, max=900_000, help="Added to an event.")] = 0,
    calls: Annotated[float, typer.Option("--calls", metavar="N", min=0, help="Calls a second and spoke.")] = 1.0,
    plain: Annotated[bool, typer.Option("--plain", help="All on loopback: no root, and no broken links.")] = False,
    nat: Annotated[bool, typer.Option("--nat", help="The hub behind a router, the others behind another.")] = False,
    directory: Directory = DIRECTORY,
    json: Json = False,
) -> int:
    """Starts hubs, spokes, an observer and (where it is installed) Prometheus as processes of this machine."""
    from broker.lab.cluster import build

    if nat and plain:
        raise UsageError("--nat needs routers, --plain has none: give one of them")
    count = hubs or (1 if nat else 2)
    cluster = build(directory, hubs=count, spokes=spokes, rate=rate, size=size, calls=calls, plain=plain, nat=nat)
    return run(_show(cluster.rows(), json))


@app.command()
def status(directory: Directory = DIRECTORY, json: Json = False) -> int:
    """Who is there, and where its log is."""
    from broker.lab.cluster import Cluster

    return run(_show(Cluster.load(directory).rows(), json))


@app.command()
def down(directory: Directory = DIRECTORY) -> int:
    """Ends everything that `lab up` has started. The logs stay."""
    from broker.lab.cluster import Cluster

    Cluster.load(directory).down()
    note(f"gone; the logs are in {directory / 'logs'}")
    return 0


async def _show(rows: list[dict[str, Any]], json: bool) -> int:
    writer = LineWriter()
    if json or not writer.terminal:
        await writer.lines(rows)
    else:
        await writer.text(table("Lab", columns("name", "role", "running", "http", "log"), rows))
    return 0


@dataclass(frozen=True, slots=True)
class _Role:
    """A spoke of the testbed, from its start to a signal."""

    spoke: Spoke
    ticket: str
    http: str | None
    json: bool
    collectors: tuple[Collector, ...] = ()

    async def serve(self, work: Callable[[], Awaitable[Any]]) -> int:
        from broker.cli.spoke_http import spoke_http

        waiting: list[str] = []
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signal())
            address = None
            if self.http:
                page = spoke_http(
                    self.http,
                    self.spoke,
                    not_yet=lambda: waiting[-1] if waiting else None,
                    collectors=self.collectors,
                )
                address = await stack.enter_async_context(page)
            stack.push_async_callback(self.spoke.close)
            working = asyncio.create_task(self._work(work, waiting, address))
            try:
                stopped = await wait_for_either(working, stop)
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        return INTERRUPTED if stopped is signal.SIGINT else 0

    async def _work(self, work: Callable[[], Awaitable[Any]], waiting: list[str], http: str | None) -> None:
        from broker.lab.node import replaced, ticket_when_there

        writer = LineWriter()

        async def wait(why: str) -> None:
            if not waiting:
                note(why)
                if self.json:
                    await writer.json({"event": "waiting", "reason": why, "http": http})
            waiting[:] = [why]

        self.spoke.start(ticket := await ticket_when_there(self.ticket, wait))
        waiting.clear()
        tasks = [
            asyncio.create_task(self._serve(work, writer, http)),
            asyncio.create_task(replaced(self.ticket, self.spoke, ticket)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, work: Callable[[], Awaitable[Any]], writer: LineWriter, http: str | None) -> None:
        await self.spoke.wait_connected()
        if self.json:
            row = {"event": "ready", "node_id": self.spoke.node_id, "hub": self.spoke.hub_node_id, "http": http}
            await writer.json(row)
        await work()
