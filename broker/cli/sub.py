"""``broker sub``: events as lines of JSON, and at the end what became of each author's sequence."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from broker.cli.options import (
    CarrierOption,
    Common,
    ConnectTimeout,
    Json,
    KeyFile,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    RelaysOption,
    TicketArgument,
)
from broker.cli.output import LineWriter, dumps, note, table
from broker.cli.running import INTERRUPTED, run, stop_signal
from broker.errors import UsageError

if TYPE_CHECKING:
    from broker import Event, Verdict
    from broker.spoke.subscription import Subscription

__all__ = ["sub"]

log = logging.getLogger("broker.cli")

LOST = 1
"""Exit status when events are known to be lost: of --check, and of a --count that they kept from being reached."""
WHY_LOST = "the hub no longer had them, or this reader was too slow for its policy"
LOOK_INTERVAL = 0.25
"""Seconds between looks at what is lost while nothing comes: that an event is lost is no event."""


def sub(
    ticket: TicketArgument,
    topics: Annotated[
        list[str], typer.Argument(metavar="TOPIC...", help="Names or patterns: a.*, a.>", show_default=False)
    ],
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            metavar="N",
            min=1,
            help="Ends after so many, or with status 1 when what is lost leaves fewer.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", metavar="S", min=0.001, help="Ends after so long.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="SEQ|start", help="From this seq of each author on. [default: now]", show_default=False
        ),
    ] = None,
    carrier: CarrierOption = "auto",
    policy: Annotated[
        Literal["block", "drop_oldest", "disconnect"], typer.Option("--policy", help="When this reader is too slow.")
    ] = "block",
    patience: Annotated[
        float, typer.Option("--patience", metavar="S", min=0.0, help="How long it may hold up publishers (block).")
    ] = 2.0,
    check: Annotated[bool, typer.Option("--check", help="Ends with a verdict of each author: what was lost.")] = False,
    json: Json = False,
    key: KeyFile = None,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Prints events, one a line, until the count or the time is reached. With --check, status 1 if any were lost.
    Datagrams come too, without a number; --carrier datagram prints them alone."""
    if carrier == "gossip" and (wild := [topic for topic in topics if "*" in topic or ">" in topic]):
        raise UsageError(
            f"--carrier gossip takes the names of topics, not the pattern {wild[0]}; without it patterns work"
        )
    start = _since(since)
    common = Common.start(
        json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
    )

    async def main() -> int:
        async with (
            common.connect(ticket, "broker sub") as spoke,
            spoke.subscribe(*topics, since=start, policy=policy, patience=patience, carrier=carrier) as events,
        ):
            log.info("subscribed to %s", ", ".join(topics))
            return await _Reader(common, events, count, seconds).run(check)

    return run(main())


def _since(text: str | None) -> Literal["start"] | int | None:
    if text is None:
        return None
    if text == "start":
        return "start"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"--since {text}: give a seq from 1, or start")
    return int(text)


class _Reader:
    """Reads one subscription until the count, the time, or a signal."""

    def __init__(self, common: Common, events: Subscription, count: int | None, seconds: float | None) -> None:
        self._events, self._count, self._printed = events, count, 0
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._writer = LineWriter()
        self._plain = common.plain(self._writer)

    async def run(self, check: bool) -> int:
        """The exit status."""
        with stop_signal() as stop:
            try:
                await self._read(stop)
            finally:
                lost = await self._show_verdicts() if check else 0
        if stop.done():
            return INTERRUPTED
        if self._count is not None and self._printed < self._count and self._reached():
            note(f"{self._printed} of {self._count} events came, the others are lost: {WHY_LOST}")
            return LOST
        return LOST if lost else 0

    async def _read(self, stop: asyncio.Future[signal.Signals]) -> None:
        batches = aiter(self._events.batches())
        while not self._reached() and (batch := await self._next(batches, stop)) is not None:
            if self._count is not None:
                batch = batch[: self._count - self._printed]
            self._printed += len(batch)
            if self._plain:
                await self._writer.write(b"".join(map(_line, batch)))
            else:
                await self._writer.text(Text("\n").join(map(_pretty, batch)))

    async def _next(
        self, batches: AsyncIterator[list[Event]], stop: asyncio.Future[signal.Signals]
    ) -> list[Event] | None:
        """Nothing is cancelled while it is being written, so that no line is ever cut."""
        arrival = asyncio.ensure_future(anext(batches, None))
        try:
            while True:
                rest = math.inf if self._ends is None else max(0.0, self._ends - time.monotonic())
                look = rest if self._count is None else min(rest, LOOK_INTERVAL)
                timeout = None if look == math.inf else look
                await asyncio.wait((arrival, stop), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if arrival.done():
                    return arrival.result()
                if stop.done() or rest <= look or self._reached():
                    return None
        finally:
            arrival.cancel()

    def _reached(self) -> bool:
        """As many as were asked for have come, or those that have not are known to be lost."""
        if self._count is None or self._printed >= self._count:
            return self._count is not None
        return not self._events.queued and self._printed + _lost(self._events.verdicts) >= self._count

    async def _show_verdicts(self) -> int:
        """How many events are lost."""
        verdicts = self._events.verdicts
        if self._plain:
            await self._writer.lines([*map(_verdict_row, verdicts), *_datagram_rows(self._events)])
        else:
            await self._writer.text(_verdict_table(verdicts))
            for row in _datagram_rows(self._events):
                note(f"{row['datagrams']} datagrams came, {row['dropped']} of them too fast for this reader")
        if lost := _lost(verdicts):
            note(f"{lost} events are lost: {WHY_LOST}")
        return lost


def _lost(verdicts: list[Verdict]) -> int:
    return sum(sum(last - first + 1 for first, last in one.lost) - one.merged for one in verdicts)


def _line(event: Event) -> bytes:
    return dumps({"type": event.type, "detail": event.detail, "meta": event.meta})


def _pretty(event: Event) -> Text:
    at = event.meta.get("ts")
    when = time.strftime("%H:%M:%S", time.localtime(at / 1000)) if isinstance(at, int | float) else "--:--:--"
    return Text.assemble(
        (when, "dim"),
        " ",
        (event.type, "bold cyan"),
        (f" {event.author[:8]}{f'#{event.seq}' if event.reliable else ' datagram'} ", "dim"),
        dumps(event.detail)[:-1].decode(),
    )


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "event": "verdict",
        "topic": verdict.topic,
        "author": verdict.author,
        "epoch": verdict.epoch,
        "received": verdict.received,
        "duplicates": verdict.duplicates,
        "repaired": verdict.repaired,
        "lost": [list(span) for span in verdict.lost],
        "missing": [list(span) for span in verdict.missing],
        "verdict": verdict.word,
    }


def _datagram_rows(events: Subscription) -> list[dict[str, Any]]:
    """They are in no sequence: one row for all of them, if any came or were asked for."""
    if not events.datagrams and not events.only_datagrams:
        return []
    return [{"event": "datagrams", "datagrams": events.datagrams, "dropped": events.datagrams_dropped}]


def _verdict_table(verdicts: list[Verdict]) -> Any:
    columns = {
        "topic": lambda row: row["topic"],
        "author": lambda row: f"{row['author'][:10]}…",
        "received": lambda row: row["received"],
        "duplicates": lambda row: row["duplicates"],
        "verdict": lambda row: row["verdict"],
    }
    return table("Verdicts", columns, map(_verdict_row, verdicts))
