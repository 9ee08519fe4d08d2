"""Arguments and options that several commands share, and what becomes of them. Not here: any command."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer

from broker import keys
from broker.cli.output import LineWriter, LogFormat, LogLevel, start_logging
from broker.errors import TicketError, UsageError

if TYPE_CHECKING:
    from broker import Spoke

__all__ = [
    "Carrier",
    "CarrierOption",
    "Common",
    "ConnectTimeout",
    "DrainTimeout",
    "Json",
    "KeyFile",
    "LogFormatOption",
    "LogLevelOption",
    "RelayCaOption",
    "RelaysOption",
    "SpokeName",
    "TicketArgument",
    "read_json",
    "read_ticket",
    "relay_urls",
]

TicketArgument = Annotated[
    str, typer.Argument(metavar="TICKET", help="The hub's ticket, or @FILE that has it.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, and nothing else there.")]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option("--log-level", envvar="BROKER_LOG_LEVEL", help="Logs go to stderr.", show_default=False),
]
LogFormatOption = Annotated[
    LogFormat | None, typer.Option("--log-format", envvar="BROKER_LOG_FORMAT", show_default=False)
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar="BROKER_KEY",
        metavar="FILE",
        help="Identity file (`broker key new FILE`). Without it, a new identity each time.",
        show_default=False,
    ),
]
SpokeName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="How this spoke is shown in `broker ls`.", show_default=False),
]
ConnectTimeout = Annotated[
    float,
    typer.Option(
        "--connect-timeout", envvar="BROKER_CONNECT_TIMEOUT", metavar="S", min=0.1, help="Seconds to reach the hub."
    ),
]
RelaysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--relay",
        envvar="BROKER_RELAYS",
        metavar="URL",
        help="A relay to use beside the ticket's. Repeatable.",
        show_default=False,
    ),
]
RelayCaOption = Annotated[
    Path | None,
    typer.Option(
        "--relay-ca",
        envvar="BROKER_RELAY_CA",
        metavar="F",
        help="PEM file of who signs the relays' certificates; the web's if not given.",
        show_default=False,
    ),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        envvar="BROKER_DRAIN_TIMEOUT",
        metavar="S",
        min=0.0,
        help="Seconds to finish what is in flight when told to stop.",
    ),
]
Carrier = Literal["auto", "stream", "gossip", "datagram"]
CarrierOption = Annotated[Carrier, typer.Option("--carrier", help="The way that events take.")]

log = logging.getLogger("broker.cli")

MAX_TICKET_FILE = 65_536
"""A wrong path to something large is seen without reading it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """How a client command talks to its user and to the hub."""

    json: bool
    key: Path | None = None
    name: str | None = None
    connect_timeout: float = 10.0
    relays: tuple[str, ...] = ()
    relay_ca: Path | None = None

    @staticmethod
    def start(
        json: bool,
        level: LogLevel | None,
        format: LogFormat | None,
        *,
        key: Path | None = None,
        name: str | None = None,
        connect_timeout: float = 10.0,
        relay: list[str] | None = None,
        relay_ca: Path | None = None,
    ) -> Common:
        """From the options, with logging begun."""
        start_logging(level or "warning", format or "text")
        return Common(
            json=json,
            key=key,
            name=name,
            connect_timeout=connect_timeout,
            relays=relay_urls(relay),
            relay_ca=relay_ca,
        )

    @property
    def secret(self) -> bytes | None:
        return keys.load(self.key) if self.key is not None else None

    def connect(self, ticket: str, default_name: str) -> AbstractAsyncContextManager[Spoke]:
        """A session with the ticket's hub."""
        from broker import connect
        from broker.spoke.options import SpokeOptions

        log.info("connecting")
        return connect(
            read_ticket(ticket),
            name=self.name or default_name,
            secret=self.secret,
            timeout=self.connect_timeout,
            options=SpokeOptions(relays=self.relays, relay_ca=self.relay_ca),
        )

    def plain(self, writer: LineWriter) -> bool:
        """Whether output is for programs: asked for, or no terminal to look at."""
        return self.json or not writer.terminal


def relay_urls(options: list[str] | None) -> tuple[str, ...]:
    """Of ``--relay``, or of the variable, where commas may stand between them. Raises UsageError."""
    from broker.config import relay_url

    urls = [url.strip() for text in options or () for url in text.split(",") if url.strip()]
    try:
        return tuple(map(relay_url, urls))
    except ValueError as error:
        raise UsageError(f"--relay: {error}") from None


def read_ticket(argument: str) -> str:
    """A ticket argument's text; of ``@FILE``, the file's."""
    if not argument.startswith("@"):
        return argument
    path = argument[1:]
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TICKET_FILE + 1)
    except OSError as error:
        raise TicketError(
            f"the ticket file {path} cannot be read: {error.strerror}\n"
            "a hub writes it with `broker hub --ticket-file FILE` once it accepts connections"
        ) from None
    if len(content) > MAX_TICKET_FILE or not content.strip():
        raise TicketError(f"{path} is not a ticket file: {'too long' if content.strip() else 'it is empty'}")
    return content.decode("utf-8", "replace").strip()


def read_json(argument: str | None, what: str) -> Any:
    """A JSON argument; ``@FILE`` and ``-`` (stdin) are read."""
    if argument is None:
        return None
    try:
        if argument == "-":
            text: bytes | str = sys.stdin.buffer.read()
        else:
            text = Path(argument[1:]).read_bytes() if argument.startswith("@") else argument
        return orjson.loads(text)
    except OSError as error:
        raise UsageError(f"{what} cannot be read from {argument[1:]}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise UsageError(
            f"{what} is not JSON: {error}\ntext needs its own quotes inside the shell's, as in '\"hello\"'"
        ) from None
