"""``broker relay``: runs an iroh relay until it is told to stop, then drains. Not here: the relay (broker/relay.py)."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import Json, LogFormatOption, LogLevelOption
from broker.cli.output import LineWriter, note, start_logging
from broker.cli.running import INTERRUPTED, run, stop_signal
from broker.config import load

if TYPE_CHECKING:
    from broker.relay import RelayConfig, RelayServer

__all__ = ["relay"]


def _flag(name: str, metavar: str, text: str) -> Any:
    """An option that is a key of the config too: its variable is read there, after the file and before the flags."""
    variable = "BROKER_RELAY_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, metavar=metavar, help=f"{text} \\[{variable}]", show_default=False)


def relay(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="BROKER_RELAY_CONFIG", metavar="F", help="TOML.")
    ] = None,
    bind: Annotated[
        str | None, _flag("--bind", "HOST:PORT", "TCP and UDP address; 127.0.0.1:3340 if not given.")
    ] = None,
    tls_cert: Annotated[Path | None, _flag("--tls-cert", "F", "PEM chain. Without it plain http, for a lab.")] = None,
    tls_key: Annotated[Path | None, _flag("--tls-key", "F", "Its PEM key.")] = None,
    http: Annotated[
        str | None, _flag("--http", "HOST:PORT", "Metrics and health; 127.0.0.1:9465 if not given, off: none.")
    ] = None,
    name: Annotated[str | None, _flag("--name", "HOST", "The host in the URL that it prints.")] = None,
    open_: Annotated[
        bool | None,
        typer.Option("--open/--closed", help="Admits every NodeId. \\[BROKER_RELAY_OPEN]", show_default=False),
    ] = None,
    allow: Annotated[list[str] | None, _flag("--allow", "NODE_ID", "Admits a NodeId. Repeatable.")] = None,
    allow_file: Annotated[
        Path | None, _flag("--allow-file", "F", "NodeIds, one a line; read again when it changes.")
    ] = None,
    drain_timeout: Annotated[
        float | None,
        _flag("--drain-timeout", "S", "To close its connections in order when told to stop; 10 if not given."),
    ] = None,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Runs a relay: NodeIds reach each other through it, whatever NAT they are behind."""
    from broker.relay import RELAY_PREFIX, RelayConfig

    settings = load(
        RelayConfig,
        RELAY_PREFIX,
        config,
        overrides={
            "bind": bind,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "http": http,
            "name": name,
            "open": open_,
            "allow": allow,
            "allow_file": allow_file,
            "drain_timeout": drain_timeout,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    start_logging(settings.log_level, settings.log_format)
    return run(_serve(settings, json))


async def _serve(config: RelayConfig, json: bool) -> int:
    from broker.relay import RelayServer

    writer = LineWriter()
    with stop_signal() as stop:
        async with RelayServer(config) as server:
            await _announce(server, writer, json)
            stopped = await stop
            _tell(server)
    return INTERRUPTED if stopped is signal.SIGINT else 0


async def _announce(server: RelayServer, writer: LineWriter, json: bool) -> None:
    row = {
        "event": "ready",
        "url": server.url,
        "address": server.relay.address(),
        "quic": server.relay.quic_address(),
        "http": server.http_address,
    }
    if json:
        await writer.json(row)
    elif not writer.terminal:
        await writer.write(f"{server.url}\n".encode())
    else:
        metrics = f"http://{server.http_address}/metrics" if server.http_address else "off"
        lines = [
            "[bold green]The relay serves.[/]",
            "",
            f"[bold]relay[/]    {server.url}",
            f"[bold]ports[/]    {row['address']} TCP"
            + (f", {row['quic']} UDP" if row["quic"] else "; NO TLS, for a lab"),
            f"[bold]metrics[/]  {metrics}",
            "",
            "Next, where the hub is:",
            f"  broker hub --relay {server.url} --bind 0.0.0.0:0",
        ]
        await writer.text("\n".join(lines), wrap=False)


def _tell(server: RelayServer) -> None:
    """A relay has nothing in flight that would wait for it: packets are passed on as they come, and its clients stay
    for as long as it lets them. So it says whom it leaves, and goes."""
    server.draining = True
    clients = server.relay.counters()["clients"]
    note(
        f"stopping; cut off: {clients} clients, which go on by a direct path or another relay"
        if clients
        else "stopping"
    )
