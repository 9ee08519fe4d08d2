"""``broker pub``: one event, or one for each line of a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.ndjson import Progress, json_lines
from broker.cli.options import (
    Carrier,
    CarrierOption,
    Common,
    ConnectTimeout,
    DrainTimeout,
    Json,
    KeyFile,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    RelaysOption,
    TicketArgument,
    read_json,
)
from broker.cli.output import LineWriter
from broker.cli.running import INTERRUPTED, run, stop_signal, wait_for_either
from broker.errors import UsageError

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["pub"]

DATAGRAMS_A_TURN = 64
"""Sent before the network has its turn: far below what QUIC holds of them."""


def pub(
    ticket: TicketArgument,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="One event's JSON.", show_default=False)] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE|-", help="One event a line (NDJSON).", show_default=False),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", min=0.001, help="Events a second.", show_default=False)
    ] = None,
    carrier: CarrierOption = "auto",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.001, help="Seconds to wait for the hub's acknowledgement.")
    ] = 60.0,
    json: Json = False,
    key: KeyFile = None,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    drain_timeout: DrainTimeout = 10.0,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Publishes one event, or one for each line of a file, and ends when the hub has acknowledged all of them. With
    --carrier datagram each is sent once, and nobody acknowledges it."""
    if data is not None and file is not None:
        raise UsageError("give the event as DATA or a --file of them, not both")
    common = Common.start(
        json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
    )
    if file is not None:
        events = json_lines(file, Progress.on_terminal(file, quiet=json))
    else:
        events = _one(read_json(data, "DATA"))
    publishing = _Publishing(topic, carrier, rate, timeout)
    return run(_pub(common, ticket, events, publishing, drain_timeout))


async def _one(value: Any) -> AsyncIterator[list[Any]]:
    yield [value]


@dataclass(slots=True)
class _Publishing:
    """What was asked for, and how far it is."""

    topic: str
    carrier: Carrier
    rate: float | None
    timeout: float
    count: int = 0
    first: int = 0
    last: int = 0
    epoch: str = ""
    dropped: int = 0

    async def all(self, spoke: Spoke, batches: AsyncIterator[list[Any]]) -> None:
        started = time.monotonic()
        async for batch in batches:
            for detail in batch:
                await self._one(spoke, detail)
                if self.rate is not None:
                    await asyncio.sleep(max(0.0, started + self.count / self.rate - time.monotonic()))
            await asyncio.sleep(0)  # publishing alone does not let the network have its turn
        self.dropped = spoke.counts()["datagrams_unsent"]

    async def _one(self, spoke: Spoke, detail: Any) -> None:
        self.epoch, seq = await spoke.publish(self.topic, detail, carrier=self.carrier, timeout=self.timeout)
        self.count += 1
        self.first, self.last = self.first or seq, seq
        if self.carrier == "datagram" and self.count % DATAGRAMS_A_TURN == 0:
            await asyncio.sleep(0)

    def summary(self, author: str) -> dict[str, Any]:
        return {
            "event": "published",
            "count": self.count,
            "first_seq": self.first,
            "last_seq": self.last,
            "epoch": self.epoch,
            "author": author,
            **({"carrier": "datagram", "dropped": self.dropped} if self.carrier == "datagram" else {}),
        }


async def _pub(
    common: Common, ticket: str, events: AsyncIterator[list[Any]], publishing: _Publishing, drain_timeout: float
) -> int:
    writer = LineWriter()
    async with common.connect(ticket, "broker pub") as spoke:
        started = time.monotonic()
        with stop_signal() as stop:
            work = asyncio.create_task(publishing.all(spoke, events))
            try:
                interrupted = await wait_for_either(work, stop)
            except UsageError:
                # A bad line in the middle: what went before it is published, and said to be.
                if publishing.count:
                    await _finish(common, writer, spoke, publishing, publishing.timeout, started)
                raise
            finally:
                work.cancel()
            timeout = publishing.timeout if interrupted is None else drain_timeout
            await _finish(common, writer, spoke, publishing, timeout, started)
    return 0 if interrupted is None else INTERRUPTED


async def _finish(
    common: Common, writer: LineWriter, spoke: Spoke, publishing: _Publishing, timeout: float, started: float
) -> None:
    await spoke.flush(timeout)  # of datagrams there is nothing to wait for
    if common.plain(writer):
        await writer.json(publishing.summary(spoke.node_id))
        return
    seconds = time.monotonic() - started
    if publishing.carrier == "datagram":
        await writer.text(
            f"{publishing.count - publishing.dropped:,} datagrams on {publishing.topic} sent, "
            f"{publishing.dropped:,} dropped here; nobody acknowledges them"
        )
        return
    await writer.text(
        f"{publishing.count:,} events on {publishing.topic}, acknowledged by the hub in {seconds:.2f} s "
        f"({publishing.count / seconds:,.0f}/s): seq {publishing.first} to {publishing.last}, epoch {publishing.epoch}"
    )
