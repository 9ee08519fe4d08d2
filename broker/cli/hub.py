"""``broker hub``: runs a hub until it is told to stop, then drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from broker.cli.options import Json, LogFormatOption, LogLevelOption, read_ticket
from broker.cli.output import LineWriter, note, start_logging
from broker.cli.running import INTERRUPTED, run, stop_signal, wait_for_either
from broker.config import HubConfig, load_config

if TYPE_CHECKING:
    from broker import Hub

__all__ = ["hub"]

log = logging.getLogger("broker.cli")


def _flag(name: str, metavar: str, text: str, key: str = "") -> Any:
    """An option that is a key of the config too: its variable is read there, after the file and before the flags."""
    variable = "BROKER_" + (key or name.removeprefix("--").replace("-", "_")).upper()
    return typer.Option(name, metavar=metavar, help=f"{text} \\[{variable}]", show_default=False)


def hub(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="BROKER_CONFIG",
            metavar="F",
            help="TOML; `broker check` validates it.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, _flag("--data", "DIR", "Keeps the identity and the port: the ticket outlives a restart.")
    ] = None,
    key: Annotated[Path | None, _flag("--key", "F", "Identity file (`broker key new`).")] = None,
    bind: Annotated[str | None, _flag("--bind", "HOST:PORT", "UDP address; 127.0.0.1:0 if not given.")] = None,
    http: Annotated[
        str | None, _flag("--http", "HOST:PORT", "Metrics and health; 127.0.0.1:9464 if not given, off: none.")
    ] = None,
    relay: Annotated[
        list[str] | None, _flag("--relay", "URL", "A relay to be reachable through. Repeatable.", "relays")
    ] = None,
    relay_ca: Annotated[
        Path | None, _flag("--relay-ca", "F", "PEM file of who signs the relays' certificates; the web's if not given.")
    ] = None,
    lookup: Annotated[
        str | None, _flag("--lookup", "URL", "A pkarr service: says there where it is, asks there for NodeIds to dial.")
    ] = None,
    ticket_file: Annotated[Path | None, _flag("--ticket-file", "F", "Gets the ticket once the hub accepts.")] = None,
    join: Annotated[str | None, _flag("--join", "TICKET", "Joins the realm of another hub.")] = None,
    dial: Annotated[
        list[str] | None,
        _flag(
            "--dial", "TICKET", "A spoke (`serve --listen`) to dial, or the NodeId of one dialled before. Repeatable."
        ),
    ] = None,
    open_: Annotated[
        bool | None,
        typer.Option(
            "--open/--closed", help="Admits every NodeId that is not denied. \\[BROKER_OPEN]", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, _flag("--name", "NAME", "How the hub is shown.")] = None,
    drain_timeout: Annotated[
        float | None, _flag("--drain-timeout", "S", "To finish what is in flight when told to stop; 10 if not given.")
    ] = None,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Runs a hub. Each option is also a key of the config file and a variable (BROKER_BIND, ...)."""
    settings = load_config(
        config,
        overrides={
            "data": data,
            "key": key,
            "bind": bind,
            "http": http,
            "relays": relay,
            "relay_ca": relay_ca,
            "lookup": lookup,
            "ticket_file": ticket_file,
            "join": join,
            "dial": dial,
            "open": open_,
            "name": name,
            "drain_timeout": drain_timeout,
            "log_level": log_level,
            "log_format": log_format,
        },
    )
    start_logging(settings.log_level, settings.log_format)
    return run(_serve(_with_tickets(settings), json))


def _with_tickets(config: HubConfig) -> HubConfig:
    """``@FILE`` is read here: the hub itself takes tickets only."""
    join = read_ticket(config.join) if config.join else None
    return config.model_copy(update={"dial": tuple(map(read_ticket, config.dial)), "join": join})


async def _serve(config: HubConfig, json: bool) -> int:
    from broker import Hub

    writer = LineWriter()
    with stop_signal() as stop:
        async with Hub(config) as hub:
            await _announce(hub, writer, json)
            serving = asyncio.create_task(hub.serve_forever())
            try:
                stopped = await wait_for_either(serving, stop)
                if stopped is not None:
                    await _drain(hub, config.drain_timeout)
            finally:
                serving.cancel()
    # An interrupt is what 130 says; SIGTERM is how a supervisor asks for an orderly end, and gets one.
    return INTERRUPTED if stopped is signal.SIGINT else 0


async def _announce(hub: Hub, writer: LineWriter, json: bool) -> None:
    if json:
        await writer.json({"event": "ready", "node_id": hub.node_id, "ticket": hub.ticket, "http": hub.http_address})
        return
    if not writer.terminal:
        await writer.write(f"{hub.ticket}\n".encode())
        return
    file = hub.config.ticket_file
    ticket = escape(f"@{file}") if file else hub.ticket
    lines = [
        "[bold green]The hub accepts connections.[/]",
        "",
        f"[bold]hub[/]      {hub.node_id}",
        f"[bold]ticket[/]   {hub.ticket}",
        f"[bold]metrics[/]  http://{hub.http_address}/metrics" if hub.http_address else "[bold]metrics[/]  off",
        "",
        *([] if hub.config.open else ["Only NodeIds of its allow list may connect (--open lets everybody in).", ""]),
        "Next, in other terminals:",
        f"  broker ls {ticket}",
        f"  broker sub {ticket} 'demo.>'",
        f"  broker pub {ticket} demo.hello '{{\"n\": 1}}'",
    ]
    await writer.text("\n".join(lines), wrap=False)


async def _drain(hub: Hub, timeout: float) -> None:
    note(f"draining: no new connections, {timeout:g} s at most for what is in flight (again to stop at once)")
    left = {what: count for what, count in (await hub.drain(timeout)).items() if count}
    if left:
        note("dropped: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in left.items()))
    else:
        note("drained; nothing was dropped")
