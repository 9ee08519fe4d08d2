"""``broker invite``, ``ban``, ``unban``, ``kick``: admission of a running hub, by its own operations.

Who may is the hub's to say: it knows its administrators by NodeId, so these need ``--key``. Not here: what the lists
do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

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
from broker.cli.output import LineWriter
from broker.cli.running import run
from broker.errors import UsageError

__all__ = ["ban", "invite", "kick", "unban"]

NodeIdArgument = Annotated[
    str, typer.Argument(metavar="NODE_ID", help="64 hex digits; `broker ls TICKET spokes --json`.", show_default=False)
]


def invite(
    ticket: TicketArgument,
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scopes", metavar="NAME[,NAME]", help="What it will have. Repeatable.", show_default=False),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", metavar="S", min=0.001, help="Seconds until it is void (a day).", show_default=False),
    ] = None,
    json: Json = False,
    key: KeyFile = None,
    connect_timeout: ConnectTimeout = 10.0,
    relay: RelaysOption = None,
    relay_ca: RelayCaOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> int:
    """Prints a ticket that admits one NodeId, once: the first that connects with it."""
    common = Common.start(
        json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
    )
    names = [name.strip() for text in scopes or () for name in text.split(",") if name.strip()]
    return run(_invite(common, ticket, {"scopes": names} | ({} if ttl is None else {"ttl": ttl})))


async def _invite(common: Common, ticket: str, input: dict[str, Any]) -> int:
    writer = LineWriter()
    async with common.connect(ticket, "broker invite") as spoke:
        answer = await spoke.call("hub.invite", input)
    if common.json:
        await writer.json(answer)
    elif not writer.terminal:
        await writer.write(f"{answer['ticket']}\n".encode())
    else:
        until = datetime.fromtimestamp(answer["expires"], UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        lasts = "" if answer["durable"] else "; gone when this hub stops, which has no --data"
        await writer.text(f"{answer['ticket']}\n\nadmits one NodeId, once, until {until}{lasts}")
    return 0


def _change_of(verb: str, text: str) -> Callable[..., int]:
    """The command that changes what one NodeId may: they differ in the word alone."""

    def command(
        ticket: TicketArgument,
        node_id: NodeIdArgument,
        json: Json = False,
        key: KeyFile = None,
        connect_timeout: ConnectTimeout = 10.0,
        relay: RelaysOption = None,
        relay_ca: RelayCaOption = None,
        log_level: LogLevelOption = None,
        log_format: LogFormatOption = None,
    ) -> int:
        common = Common.start(
            json, log_level, log_format, key=key, connect_timeout=connect_timeout, relay=relay, relay_ca=relay_ca
        )
        return run(_change(common, ticket, verb, _checked(node_id)))

    command.__name__, command.__doc__ = verb, text
    return command


ban = _change_of("ban", "Ends a NodeId's connections and refuses it from now on.")
unban = _change_of("unban", "Takes a ban back: the NodeId is admitted again if it was before, or if the hub is open.")
kick = _change_of("kick", "Ends a NodeId's connections. It may come back at once.")


def _checked(node_id: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", node_id):
        where = "`broker ls TICKET spokes --json` lists them"
        raise UsageError(f"{node_id[:80]!r} is not a NodeId, which is 64 hex digits\n{where}")
    return node_id.lower()


async def _change(common: Common, ticket: str, verb: str, node_id: str) -> int:
    writer = LineWriter()
    async with common.connect(ticket, f"broker {verb}") as spoke:
        answer = await spoke.call(f"hub.{verb}", {"node_id": node_id})
    if common.plain(writer):
        await writer.json({"event": verb, **answer})
    else:
        await writer.text(_told(verb, answer))
    return 0


def _told(verb: str, answer: dict[str, Any]) -> str:
    lasts = "" if answer.get("durable", True) else "; until this hub stops, which has no --data"
    ended = f"{answer.get('connections', 0)} of its connections ended"
    match verb:
        case "kick":
            return f"{ended}; it may come back"
        case "ban":
            return f"banned{lasts}; {ended}" if answer["changed"] else "it was banned already"
        case _:
            word = "no ban on it any more" if answer["changed"] else "it was not banned"
            return f"{word}{lasts}; it is {'admitted' if answer['admitted'] else 'not admitted: invite it'}"
