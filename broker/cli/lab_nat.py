"""``broker lab nat``: who gets through which NATs, and how; ``lab probe``, its caller; ``lab router`` and ``lab
certificate``, for the same in containers.

Not here: the lab, what a caller measures, what a router does (broker/lab).
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from broker.cli.options import (
    ConnectTimeout,
    Json,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    TicketArgument,
    read_ticket,
)
from broker.cli.output import LineWriter, dumps, note, start_logging, table
from broker.cli.running import INTERRUPTED, in_thread, run, stop_signal, wait_for_either

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker.lab.internet import Nat
    from broker.lab.nat import NatLab, Pair

__all__ = ["certificate", "nat", "probe", "router"]


def nat(
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="HUB/SPOKE",
            help="port-keeping, symmetric or udp-blocked, each. Repeatable. [default: all]",
            show_default=False,
        ),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, max=1_000, help="Of each pair.")] = 1,
    watch: Annotated[float, typer.Option("--watch", metavar="S", min=0.1, help="For a path to become direct.")] = 3.0,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.1, help="Of calls after that.")] = 2.0,
    inflight: Annotated[int, typer.Option("--inflight", metavar="N", min=1, max=1_024, help="Calls at a time.")] = 16,
    logs: Annotated[
        Path | None, typer.Option("--logs", metavar="DIR", help="Keeps what the programs say.", show_default=False)
    ] = None,
    json: Json = False,
) -> int:
    """Puts a hub behind one NAT and spokes behind others, a relay between them, and says who gets through, and how.

    Needs root, for network namespaces. Nothing outside of them is touched, and nothing stays."""
    from broker.lab.internet import NATS
    from broker.lab.nat import NatLab, parse_pair

    pairs = [parse_pair(one) for one in pair or ()] or [(hub, spoke) for hub in NATS for spoke in NATS]
    directory = logs or Path(tempfile.mkdtemp(prefix="broker-nat-"))
    stop = threading.Event()
    lab = NatLab(directory, watch=watch, seconds=seconds, inflight=inflight, stop=stop)
    try:
        return run(_measure(lab, pairs, runs, stop, json))
    finally:
        if logs is None:
            shutil.rmtree(directory, ignore_errors=True)


async def _measure(lab: NatLab, pairs: list[tuple[Nat, Nat]], runs: int, stop: threading.Event, json: bool) -> int:
    """Status 1 if one did not end as it should."""
    from broker.lab.nat import Pair

    writer, measured = LineWriter(), list[Pair]()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.disable = json or not sys.stderr.isatty()
    with bar:
        shown = bar.add_task("builds the lab", total=len(pairs) * runs)
        try:
            await in_thread(lab.open, stop)
            for hub_nat, spoke_nat in pairs:
                bar.update(shown, description=f"{hub_nat} / {spoke_nat}")
                measured.append(pair := Pair(hub_nat, spoke_nat))
                for _ in range(runs):
                    await in_thread(partial(lab.run, pair), stop)
                    bar.advance(shown)
                if json:
                    await writer.json(pair.row())
        finally:
            await in_thread(lab.close, stop)
    if not json:
        await _show(measured, writer)
    return 0 if all(one.passed for one in measured) else 1


COLUMNS = {
    "hub": "hub_nat",
    "spoke": "spoke_nat",
    "path": "path",
    "first byte": "first_byte_ms",
    "direct": "direct_ms",
    "calls/s": "calls_per_s",
    "failed": "failed",
}


async def _show(pairs: Iterable[Pair], writer: LineWriter) -> None:
    rows = [pair.row() for pair in pairs]
    columns: dict[str, Callable[[dict[str, Any]], Any]] = {head: itemgetter(key) for head, key in COLUMNS.items()}
    await writer.text(
        table("Hub and spoke behind NAT: path, ms to the first byte and to a direct path, calls", columns, rows)
    )
    for row in rows:
        if not row["passed"]:
            why = "; ".join(row["faults"]) or f"paths: {row['paths']}, calls failed: {row['failed']}"
            note(f"{row['hub_nat']} / {row['spoke_nat']} is not as it should be: {why}")


def probe(
    ticket: TicketArgument,
    watch: Annotated[float, typer.Option("--watch", metavar="S", min=0)] = 3.0,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0)] = 2.0,
    inflight: Annotated[int, typer.Option("--inflight", metavar="N", min=1, max=1_024)] = 16,
    rate: Annotated[float, typer.Option("--rate", metavar="N", min=0, help="Calls a second until it is stopped.")] = 0,
    relay_ca: RelayCaOption = None,
    connect_timeout: ConnectTimeout = 30.0,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Calls lab.echo, and says as JSON what it sees of its way to the hub."""
    from broker import Spoke, SpokeOptions
    from broker.lab.probe import Probe

    start_logging(log_level or "info", log_format or "text")
    spoke = Spoke("probe", options=replace(SpokeOptions(), relay_ca=relay_ca))
    return run(
        _probe(Probe(spoke, _say), spoke, read_ticket(ticket), (watch, seconds, inflight, rate), connect_timeout)
    )


async def _probe(
    probe: Any, spoke: Any, ticket: str, load: tuple[float, float, int, float], connect_timeout: float
) -> int:
    watch, seconds, inflight, rate = load
    with stop_signal() as stop:
        try:
            async with probe.at(ticket, connect_timeout):
                await probe.wait_direct(watch)
                if not rate:
                    await probe.flat_out(seconds, inflight)
                    return 0
                stopping = asyncio.Event()
                calling = asyncio.create_task(probe.steadily(rate, stopping))
                await wait_for_either(calling, stop)
                stopping.set()
                await calling
        finally:
            await spoke.close()
    return INTERRUPTED if stop.done() and stop.result() is signal.SIGINT else 0


def _say(row: dict[str, Any]) -> None:
    sys.stdout.buffer.write(dumps(row))
    sys.stdout.buffer.flush()


def router(
    outside: Annotated[str, typer.Argument(metavar="HOST", help="One on the public segment.")],
    nat: Annotated[str, typer.Option("--nat", metavar="NAT", help="port-keeping, symmetric or udp-blocked.")],
) -> int:
    """Makes this container a router, until it is stopped."""
    from broker.lab.nat import parse_nat
    from broker.lab.router import route

    note(f"a router, {nat}: what goes out by {route(parse_nat(nat), outside)} has its address")
    return run(_stopped())


async def _stopped() -> int:
    with stop_signal() as stop:
        return INTERRUPTED if await stop is signal.SIGINT else 0


def certificate(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Names or addresses.")],
) -> int:
    """Makes ca.pem, NAME.pem and NAME.key, unless they are there."""
    from broker.lab.authority import issued_once

    note(f"{issued_once(directory, name, hosts).cert}")
    return 0
