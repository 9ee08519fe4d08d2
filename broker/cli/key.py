"""``broker key new|show FILE``: an identity in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker import keys
from broker.cli.options import Json
from broker.cli.output import dumps

__all__ = ["app"]

app = typer.Typer(name="key", help="Ed25519 identities in files that only their owner can read.", no_args_is_help=True)

KeyPath = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]


@app.command()
def new(
    file: KeyPath,
    force: Annotated[bool, typer.Option("--force", help="Replaces an identity that is there.")] = False,
    json: Json = False,
) -> None:
    """Makes an identity (mode 0600) and prints its NodeId."""
    _show(file, keys.create(file, overwrite=force), json)


@app.command()
def show(file: KeyPath, json: Json = False) -> None:
    """Prints the NodeId of an identity. The secret stays in the file."""
    _show(file, keys.load(file), json)


def _show(file: Path, secret: bytes, json: bool) -> None:
    from broker import _gossip_ext as ext

    node_id = ext.node_id(secret)
    line = dumps({"node_id": node_id, "file": str(file)}) if json else node_id.encode() + b"\n"
    typer.echo(line, nl=False)
