"""``broker ls TICKET [spokes|operations|topics]``: what is there now. The hub's own operations tell it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from broker.cli.options import (
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
from broker.cli.output import LineWriter, table
from broker.cli.running import run
from broker.errors import ExecutionFailed

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["ls"]

Kind = Literal["spokes", "operations", "topics"]
KINDS: tuple[Kind, ...] = ("spokes", "operations", "topics")

PAGE_ROWS = 1_000

Columns = dict[str, Callable[[dict[str, Any]], Any]]

COLUMNS: dict[Kind, Columns] = {
    "spokes": {
        "name": lambda row: row.get("name"),
        "NodeId": lambda row: f"{row['node_id'][:10]}…",
        "transport": lambda row: row.get("transport"),
        "path": lambda row: row.get("path"),
        "RTT ms": lambda row: row.get("rtt_ms"),
        "queued": lambda row: row.get("queued"),
        "dropped": lambda row: row.get("dropped"),
        "behind": lambda row: row.get("lagging"),
    },
    "operations": {
        "operation": lambda row: row["operation"],
        "kind": lambda row: row.get("kind"),
        "spokes": lambda row: ", ".join(_name(spoke) for spoke in row.get("spokes", [])),
        "description": lambda row: (row.get("description") or "").partition("\n")[0],
    },
    "topics": {
        "topic": lambda row: row["topic"],
        "subscribers": lambda row: row.get("subscribers"),
        "carrier": lambda row: row.get("carrier"),
        "authors": lambda row: row.get("authors"),
        "events": lambda row: row.get("events"),
    },
}


def ls(
    ticket: TicketArgument,
    kind: Annotated[
        Kind | None,
        typer.Argument(metavar="[spokes|operations|topics]", help="All three if not given.", show_default=False),
    ] = None,
    json: Json = False,
    key: KeyFile = None,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Lists the spokes, operations and topics of a hub as they are now."""
    common = Common.start(
        json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
    )
    return run(_list(common, ticket, KINDS if kind is None else (kind,)))


async def _list(common: Common, ticket: str, kinds: tuple[Kind, ...]) -> int:
    writer = LineWriter()
    async with common.connect(ticket, "broker ls") as spoke:
        for kind in kinds:
            listed: list[Any] = []
            async for page in _pages(spoke, f"hub.{kind}"):
                # The one that asks is no news.
                rows = [row for row in page if kind != "spokes" or row["node_id"] != spoke.node_id]
                if common.json:
                    await writer.lines(rows)
                else:
                    listed += rows
            if not common.json:
                await writer.text(table(kind.capitalize(), COLUMNS[kind], listed))
    return 0


async def _pages(spoke: Spoke, operation: str) -> AsyncIterator[list[Any]]:
    """A hub that does not know pages answers with everything at once."""
    after = ""
    while True:
        page = await spoke.call(operation, {"after": after, "limit": PAGE_ROWS})
        if isinstance(page, list):
            yield page
            return
        yield page["rows"]
        before, after = after, page["next"]
        if after is None:
            return
        if after <= before:
            raise ExecutionFailed(f"{operation} gives the page after {before!r} again: the hub is at fault")


def _name(spoke: Any) -> str:
    return str(spoke.get("name") or spoke.get("node_id", "")[:10]) if isinstance(spoke, dict) else str(spoke)
