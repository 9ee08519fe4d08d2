"""``broker call TICKET OPERATION [INPUT]``: one answer, a stream of them, or one from each spoke."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

import typer
from rich.text import Text

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
    read_json,
)
from broker.cli.output import LineWriter, table
from broker.cli.running import run
from broker.errors import CallError, UsageError

__all__ = ["call"]

ROLL_CALL_TIMEOUT = 1.0
CALL_TIMEOUT = 30.0


def call(
    ticket: TicketArgument,
    operation: Annotated[str, typer.Argument(metavar="OPERATION", show_default=False)],
    input: Annotated[
        str | None, typer.Argument(metavar="[INPUT]", help="JSON; @FILE and - (stdin) are read.", show_default=False)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="S",
            min=0.001,
            help=f"Seconds for the answer (default {CALL_TIMEOUT:g}; {ROLL_CALL_TIMEOUT:g} with --all).",
            show_default=False,
        ),
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Asks every spoke that offers it; ends with who is missing.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Prints each item of a subscription as it comes.")] = False,
    json: Json = False,
    key: KeyFile = None,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Calls an operation and prints its output, one JSON a line."""
    if everyone and stream:
        raise UsageError("--all and --stream are two different questions; choose one")
    common = Common.start(
        json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
    )
    value = read_json(input, "INPUT")
    if everyone:
        return run(_roll_call(common, ticket, operation, value, timeout or ROLL_CALL_TIMEOUT))
    if stream:
        return run(_stream(common, ticket, operation, value, timeout))
    return run(_call(common, ticket, operation, value, timeout or CALL_TIMEOUT))


async def _call(common: Common, ticket: str, operation: str, value: Any, seconds: float) -> int:
    writer = LineWriter()
    async with common.connect(ticket, "broker call") as spoke:
        output = await spoke.call(operation, value, timeout=seconds)
        await _show(common, writer, output)
    return 0


async def _stream(common: Common, ticket: str, operation: str, value: Any, seconds: float | None) -> int:
    writer = LineWriter()
    async with (
        common.connect(ticket, "broker call") as spoke,
        # It ends the call when this command ends before it.
        aclosing(cast("AsyncGenerator[Any]", spoke.stream(operation, value, timeout=seconds))) as items,
    ):
        async for item in items:
            await _show(common, writer, item)
    return 0


async def _show(common: Common, writer: LineWriter, value: Any) -> None:
    if common.plain(writer):
        await writer.json(value)
    else:
        from rich.json import JSON

        await writer.text(JSON.from_data(value))


async def _roll_call(common: Common, ticket: str, operation: str, value: Any, seconds: float) -> int:
    writer = LineWriter()
    async with common.connect(ticket, "broker call") as spoke:
        result = await spoke.roll_call(operation, value, timeout=seconds)
    rows = [_row(answer.node_id, answer.name, answer.output, answer.error) for answer in result.answers]
    missing = [{"node_id": one.node_id, "name": one.name} for one in result.missing]
    if common.plain(writer):
        await writer.lines([*rows, {"event": "missing", "spokes": missing}])
        return 0
    columns = {
        "spoke": lambda row: row["name"] or row["node_id"][:10],
        "output": lambda row: row.get("output"),
        "error": lambda row: row["error"]["message"] if "error" in row else "",
    }
    await writer.text(table(operation, columns, rows))
    names = ", ".join(one.name or one.node_id[:10] for one in result.missing)
    await writer.text(Text(f"missing after {seconds:g} s: {names or 'nobody'}"))
    return 0


def _row(node_id: str, name: str | None, output: Any, error: CallError | None) -> dict[str, Any]:
    row: dict[str, Any] = {"node_id": node_id, "name": name}
    if error is not None:
        return {**row, "error": {"code": error.code, "message": error.message}}
    return {**row, "output": output}
