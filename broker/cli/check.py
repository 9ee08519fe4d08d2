"""``broker check FILE``: validates a hub's or a relay's config file, and lists the keys that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from broker.cli.options import Json
from broker.cli.output import dumps, table
from broker.config import ENVIRONMENT_PREFIX, HubConfig, KeyDescription, Table, describe_keys, load
from broker.errors import UsageError

__all__ = ["check"]


def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Lists every key, its variable and its default.")] = False,
    relay: Annotated[bool, typer.Option("--relay", help="Of a relay, not of a hub.")] = False,
    json: Json = False,
) -> None:
    """Validates a config file: a mistake is named with its key and line."""
    from broker.relay import RELAY_PREFIX, RelayConfig

    model: type[Table]
    model, prefix = (RelayConfig, RELAY_PREFIX) if relay else (HubConfig, ENVIRONMENT_PREFIX)
    if keys:
        _list_keys("relay" if relay else "hub", describe_keys(model, prefix), json)
    elif file is None:
        raise UsageError("which file? Give a config file to check, or --keys for what can be in one")
    else:
        load(model, prefix, file)
        typer.echo(dumps({"event": "valid", "file": str(file)}) if json else f"{file} is valid\n", nl=False)


def _list_keys(whose: str, described: list[KeyDescription], json: bool) -> None:
    rows = [
        {"key": row.key, "variable": row.variable, "default": row.default, "description": row.description}
        for row in described
    ]
    if json:
        for row in rows:
            typer.echo(dumps(row), nl=False)
        return
    columns = {header: (lambda row, header=header: row[header]) for header in ("key", "variable", "default")}
    Console().print(table(f"Keys of a {whose}'s config", {**columns, "": lambda row: row["description"]}, rows))
