"""``broker serve``: runs a spoke that offers an app's operations, or commands, until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
import traceback
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker import keys
from broker.cli.execute import offer_commands
from broker.cli.options import (
    DrainTimeout,
    Json,
    KeyFile,
    LogFormatOption,
    LogLevelOption,
    RelayCaOption,
    RelaysOption,
    SpokeName,
    read_ticket,
    relay_urls,
)
from broker.cli.output import LineWriter, note, start_logging
from broker.cli.running import INTERRUPTED, run, stop_signal, wait_for_either
from broker.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["serve"]


def serve(
    first: Annotated[
        str | None, typer.Argument(metavar="[TICKET]", help="The hub's ticket, or @FILE.", show_default=False)
    ] = None,
    second: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE:APP]", help="Where the Spoke is, as in shop.stock:app.", show_default=False),
    ] = None,
    execs: Annotated[
        list[str] | None,
        typer.Option(
            "--exec", metavar="NAME=COMMAND", help="Offers a command: JSON on its stdin and stdout. Repeatable."
        ),
    ] = None,
    exec_streams: Annotated[
        list[str] | None,
        typer.Option("--exec-stream", metavar="NAME=COMMAND", help="The same, each line of its stdout an item."),
    ] = None,
    name: SpokeName = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="/metrics, /healthz and /readyz of this spoke.")
    ] = None,
    key: KeyFile = None,
    listen: Annotated[bool, typer.Option("--listen", help="Waits to be dialled (`broker hub --dial`).")] = False,
    bind: Annotated[str | None, typer.Option("--bind", metavar="HOST:PORT", help="This spoke's UDP address.")] = None,
    ticket_file: Annotated[
        Path | None, typer.Option("--ticket-file", metavar="F", help="With --listen: gets this spoke's ticket.")
    ] = None,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    lookup: Annotated[
        str | None,
        typer.Option(
            "--lookup",
            envvar="BROKER_LOOKUP",
            metavar="URL",
            help="A pkarr service where it looks for its hub, and with --listen says where it is.",
            show_default=False,
        ),
    ] = None,
    address_book: Annotated[
        Path | None,
        typer.Option(
            "--address-book",
            envvar="BROKER_ADDRESS_BOOK",
            metavar="F",
            help="Keeps where its hub was last, for the next start.",
            show_default=False,
        ),
    ] = None,
    drain_timeout: DrainTimeout = 10.0,
    json: Json = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Runs a spoke: TICKET MODULE:APP, TICKET --exec NAME=COMMAND, or --listen MODULE:APP. Reconnects for ever."""
    start_logging(log_level or "info", log_format or "text")
    ticket, module = (None, first) if listen else (first, second)
    if listen and second is not None:
        raise UsageError(
            "--listen takes no ticket: this spoke is dialled, by `broker hub --dial` with the one it prints"
        )
    if not listen and ticket is None:
        raise UsageError("which hub? Give its TICKET, or --listen to be dialled")
    if module is None and not execs and not exec_streams:
        raise UsageError("nothing to offer: give MODULE:APP or --exec NAME=COMMAND")
    secret = keys.load(key) if key is not None else None
    spoke = _spoke(module)
    given: dict[str, Any] = {"bind": bind, "relays": relay_urls(relay) or None, "relay_ca": relay_ca, "lookup": lookup}
    given |= {"accept": listen, "address_book": address_book}
    options = replace(spoke.options, **{key: value for key, value in given.items() if value is not None})
    spoke.configure(name=name, secret=secret, options=options)
    offer_commands(spoke, execs or [], exec_streams or [])
    server = _Server(spoke, LineWriter(), json, drain_timeout)
    if ticket is None:
        return run(server.listen(ticket_file, http))
    return run(server.serve(read_ticket(ticket), http))


def _spoke(module: str | None) -> Spoke:
    from broker import Spoke

    return Spoke() if module is None else load_app(module)


def load_app(path: str) -> Spoke:
    """The Spoke at ``module:attribute``, with the working directory importable."""
    from broker import Spoke

    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{path!r} is not MODULE:APP, as in shop.stock:app")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    app: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(app, part):
            raise UsageError(f"the module {module_name} has no {attribute}{_spokes_in(app, Spoke)}")
        app = getattr(app, part)
    if not isinstance(app, Spoke):
        raise UsageError(f"{path} is a {type(app).__name__}, not a Spoke")
    return app


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UsageError(f"there is no module {name}, looked for here ({Path.cwd()}) and on sys.path") from None
        raise UsageError(f"{name} needs the module {missing}, which is not installed") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        raise UsageError(f"importing {name} failed with {type(error).__name__}: {error}\nin {where}") from error


def _spokes_in(module: Any, kind: type) -> str:
    found = [name for name, value in vars(module).items() if isinstance(value, kind)]
    return f"; its Spokes are {', '.join(found)}" if found else ", nor any Spoke"


class _Server:
    """Runs a spoke until a signal, with its HTTP port, and drains it."""

    def __init__(self, spoke: Spoke, writer: LineWriter, json: bool, drain_timeout: float) -> None:
        self._spoke, self._writer, self._json, self._drain_timeout = spoke, writer, json, drain_timeout
        self._draining = False

    async def serve(self, ticket: str, http: str | None) -> int:
        return await self._until_stopped(lambda: self._spoke.run(ticket), http)

    async def listen(self, ticket_file: Path | None, http: str | None) -> int:
        return await self._until_stopped(lambda: self._be_dialled(ticket_file), http)

    async def _until_stopped(self, work: Any, http: str | None) -> int:
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_signal())
            address = await stack.enter_async_context(self._http(http)) if http else None
            running = asyncio.create_task(work())
            announcing = asyncio.create_task(self._announce(address))
            stack.push_async_callback(_ended, running, announcing)
            stopped = await wait_for_either(running, stop)
            if stopped is not None:
                await self._drain()
        return INTERRUPTED if stopped is signal.SIGINT else 0

    async def _be_dialled(self, ticket_file: Path | None) -> None:
        ticket = self._spoke.listen().encode()
        if ticket_file is not None:
            try:
                keys.write_atomically(ticket_file, ticket.encode() + b"\n", mode=0o600)  # who has it may be its hub
            except OSError as error:
                raise ConfigError(f"{ticket_file} cannot be written: {error.strerror}", key="--ticket-file") from None
        row = {"event": "listening", "node_id": self._spoke.node_id, "ticket": ticket}
        await (self._writer.json(row) if self._json else self._writer.write(f"{ticket}\n".encode()))
        await asyncio.Event().wait()

    async def _announce(self, http: str | None) -> None:
        """Says once that the hub has this spoke."""
        await self._spoke.wait_connected()
        row = {
            "event": "ready",
            "node_id": self._spoke.node_id,
            "hub": self._spoke.hub_node_id,
            "operations": self._spoke.operations,
            "http": http,
        }
        if self._json:
            await self._writer.json(row)
        else:
            note(f"connected to hub {self._spoke.hub_node_id[:10]}…, offering {', '.join(self._spoke.operations)}")

    async def _drain(self) -> None:
        self._draining = True
        cancelled = await self._spoke.drain(self._drain_timeout)
        note(f"dropped: {cancelled} calls that were being answered" if cancelled else "drained; nothing was dropped")

    def _http(self, address: str) -> Any:
        from broker.cli.spoke_http import spoke_http

        return spoke_http(address, self._spoke, not_yet=lambda: "draining" if self._draining else None)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
