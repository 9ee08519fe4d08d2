"""How the demo is shown: a live table on a terminal, lines of text in a pipe, lines of JSON when asked for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.cli.output import LineWriter, dumps

if TYPE_CHECKING:
    from broker import Event, Hub, Verdict

__all__ = ["View", "make_view"]

KEPT_LATENCIES = 1_000
SHOWN_OUTPUT = 60
REFRESH_PER_SECOND = 4


@dataclass(slots=True)
class _Operation:
    calls: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    last: str = ""


class View:
    """Counts what happens. The subclasses show it."""

    def __init__(self, hub: Hub, writer: LineWriter) -> None:
        self._hub, self._writer = hub, writer
        self._events: dict[str, int] = {}
        self._latest: dict[str, Any] = {}
        self._operations: dict[str, _Operation] = {}
        self._verdicts: Sequence[Verdict] = ()

    async def begin(self) -> None:
        """The hub is there."""

    async def event(self, event: Event, verdicts: Sequence[Verdict]) -> None:
        """One more event, and the verdicts so far."""
        self._events[event.type] = self._events.get(event.type, 0) + 1
        self._latest[event.type] = event.detail
        self._verdicts = verdicts

    async def called(self, operation: str, seconds: float, output: Any) -> None:
        """A call has ended, with its output or an exception."""
        row = self._operations.setdefault(operation, _Operation())
        row.calls += 1
        row.failed += isinstance(output, Exception)
        row.seconds = [*row.seconds[-KEPT_LATENCIES:], seconds]
        row.last = str(output) if isinstance(output, Exception) else dumps(output)[:-1].decode()

    async def end(self) -> None:
        """The last word: a summary."""
        await self._writer.write(self._summary_line().encode() + b"\n")

    def summary(self) -> dict[str, Any]:
        seconds = [one for row in self._operations.values() for one in row.seconds]
        return {
            "event": "summary",
            "spokes": len(self._events),
            "events": sum(self._events.values()),
            "calls": sum(row.calls for row in self._operations.values()),
            "failed_calls": sum(row.failed for row in self._operations.values()),
            "call_p50_ms": round(statistics.median(seconds) * 1000, 3) if seconds else None,
            "verdicts": sorted({verdict.word for verdict in self._verdicts}),
        }

    def _summary_line(self) -> str:
        s = self.summary()
        verdicts = ", ".join(s["verdicts"]) or "none"
        return (
            f"{s['events']} events of {s['spokes']} spokes (verdicts: {verdicts}); "
            f"{s['calls']} calls, {s['failed_calls']} failed, p50 {s['call_p50_ms']} ms"
        )

    def _addresses(self) -> list[str]:
        http = self._hub.http_address
        return [f"ticket   {self._hub.ticket}", f"metrics  http://{http}/metrics" if http else "metrics  off"]


class JsonView(View):
    """Each happening is an object."""

    async def begin(self) -> None:
        hub = self._hub
        row = {"event": "ready", "node_id": hub.node_id, "ticket": hub.ticket, "http": hub.http_address}
        await self._writer.json(row)

    async def event(self, event: Event, verdicts: Sequence[Verdict]) -> None:
        await super().event(event, verdicts)
        await self._writer.json({"type": event.type, "detail": event.detail, "meta": event.meta})

    async def called(self, operation: str, seconds: float, output: Any) -> None:
        await super().called(operation, seconds, output)
        row: dict[str, Any] = {"event": "call", "operation": operation, "ms": round(seconds * 1000, 3)}
        row |= {"error": str(output)} if isinstance(output, Exception) else {"output": output}
        await self._writer.json(row)

    async def end(self) -> None:
        await self._writer.json(self.summary())


class LineView(View):
    """Plain lines, for pipes and logs."""

    async def begin(self) -> None:
        await self._writer.write("\n".join([f"hub      {self._hub.node_id}", *self._addresses(), ""]).encode())

    async def event(self, event: Event, verdicts: Sequence[Verdict]) -> None:
        await super().event(event, verdicts)
        await self._writer.write(f"event  {event.type:<24} #{event.seq:<5} {dumps(event.detail).decode()}".encode())

    async def called(self, operation: str, seconds: float, output: Any) -> None:
        await super().called(operation, seconds, output)
        shown = self._operations[operation].last
        await self._writer.write(f"call   {operation:<24} {seconds * 1000:5.2f} ms {shown:.200}\n".encode())


class LiveView(View):
    """Tables that are drawn again as things change."""

    def __init__(self, hub: Hub, writer: LineWriter) -> None:
        super().__init__(hub, writer)
        self.live = Live(get_renderable=self._draw, refresh_per_second=REFRESH_PER_SECOND)

    async def begin(self) -> None:
        # Above what is drawn again, in one piece: a ticket is there to be copied.
        self.live.console.print(Text("\n".join([*self._addresses(), ""])), soft_wrap=True)

    def _draw(self) -> Group:
        hint = Text(
            "broker ls TICKET, broker sub TICKET 'host.>', broker call TICKET host.memory; Ctrl-C ends", style="dim"
        )
        return Group(self._topics(), self._calls(), hint)

    def _topics(self) -> Table:
        words = {verdict.topic: verdict.word for verdict in self._verdicts}
        table = Table("topic", "events", "cpu %", "load", "verdict", title="Events", title_justify="left", expand=True)
        for topic in sorted(self._events):
            detail = self._latest[topic]
            load = " ".join(f"{value:.2f}" for value in detail["load"])
            table.add_row(topic, str(self._events[topic]), str(detail["cpu_percent"]), load, words.get(topic, ""))
        return table

    def _calls(self) -> Table:
        table = Table(
            "operation", "calls", "failed", "p50 ms", "output", title="Calls", title_justify="left", expand=True
        )
        for name, row in sorted(self._operations.items()):
            p50 = f"{statistics.median(row.seconds) * 1000:.2f}"
            table.add_row(name, str(row.calls), str(row.failed), p50, Text(row.last[:SHOWN_OUTPUT]))
        return table


@contextmanager
def make_view(hub: Hub, writer: LineWriter, json: bool) -> Iterator[View]:
    """The view that fits where the output goes."""
    if json:
        yield JsonView(hub, writer)
    elif not writer.terminal:
        yield LineView(hub, writer)
    else:
        view = LiveView(hub, writer)
        with view.live:
            yield view
