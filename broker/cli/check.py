"""``broker check FILE``: validates a hub's config file, and lists the keys that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from broker.cli.options import Json
from broker.cli.output import dumps, table
from broker.config import describe_keys, load_config
from broker.errors import UsageError

__all__ = ["check"]


def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Lists every key, its variable and its default.")] = False,
    json: Json = False,
) -> None:
    """Validates a hub's config file: a mistake is named with its key and line."""
    if keys:
        _list_keys(json)
    elif file is None:
        raise UsageError("which file? Give a config file to check, or --keys for what can be in one")
    else:
        load_config(file)
        typer.echo(dumps({"event": "valid", "file": str(file)}) if json else f"{file} is valid\n", nl=False)


def _list_keys(json: bool) -> None:
    rows = [
        {"key": row.key, "variable": row.variable, "default": row.default, "description": row.description}
        for row in describe_keys()
    ]
    if json:
        for row in rows:
            typer.echo(dumps(row), nl=False)
        return
    columns = {header: (lambda row, header=header: row[header]) for header in ("key", "variable", "default")}
    Console().print(table("Keys of a hub's config", {**columns, "": lambda row: row["description"]}, rows))
