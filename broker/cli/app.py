"""The root of the command line: the commands, and errors turned into lines and exit codes.

0 done; 1 the work failed; 2 wrong usage or config; 3 could not connect, refused or timed out; 130 interrupted. An error
is at most three lines on stderr. Not here: what a command does.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from broker.cli import admit, bench, call, check, demo, hub, key, lab, ls, pub, relay, serve, sub
from broker.cli.output import error_lines
from broker.cli.running import INTERRUPTED
from broker.errors import BrokerError, CallError, CallTimeout, Refused
from broker.version import VERSION

__all__ = ["app", "main"]

TIMED_OUT = 3
ADVICE = {
    "OPERATION_NOT_FOUND": "`broker ls TICKET operations` lists what is offered now",
    "TIMEOUT": "--timeout S waits longer; `broker ls TICKET` tells who is slow",
    "ACCESS_DENIED": "whoever runs the hub decides that",
}
"""What to do about a remote's answer; it knows what happened, but not that it is read here."""

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="broker",
    help="Spokes speak JSON events to a hub: calls, topics and streams with one identity. Try `broker demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"broker {VERSION}\n")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Shows the version.")] = False,
) -> None:
    """Options before the command."""


# A hub's and a relay's options are keys of a config, whose variables are read with it; the others' are
# BROKER_<COMMAND>_<OPTION>.
app.command(rich_help_panel="Run", context_settings=HELP)(hub.hub)
app.command(rich_help_panel="Run", context_settings=HELP)(relay.relay)
for command, panel in (
    (demo.demo, "Run"),
    (serve.serve, "Run"),
    (call.call, "Use"),
    (pub.pub, "Use"),
    (sub.sub, "Use"),
    (ls.ls, "Use"),
    (admit.invite, "Administer"),
    (admit.ban, "Administer"),
    (admit.unban, "Administer"),
    (admit.kick, "Administer"),
    (bench.bench, "Tools"),
    (check.check, "Tools"),
):
    settings = {"auto_envvar_prefix": f"BROKER_{command.__name__.upper()}", **HELP}
    app.command(rich_help_panel=panel, context_settings=settings)(command)
app.add_typer(key.app, rich_help_panel="Tools")
app.add_typer(lab.app, rich_help_panel="Tools")


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    try:
        status = app(args=list(sys.argv[1:] if args is None else args), prog_name="broker", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BaseException as error:
        return _failed(_innermost(error))


def _innermost(error: BaseException) -> BaseException:
    """The error itself, where a task group has wrapped it, or typer has made an exit of a broken pipe."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return error.__context__
    return error


def _failed(error: BaseException) -> int:
    if logging.getLogger("broker").getEffectiveLevel() <= logging.DEBUG:
        traceback.print_exception(error)
    match error:
        case BrokenPipeError():
            # Whoever read us has what they wanted. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        case KeyboardInterrupt():
            return INTERRUPTED
        case SystemExit(code=code):
            return code if isinstance(code, int) else 1
        case typer.Exit(exit_code=status):
            return status
        case typer.TyperException():
            return _wrong_usage(error)
        case BrokerError():
            advice = ADVICE.get(error.code) if isinstance(error, CallError) else None
            _complain("\n".join(filter(None, [str(error), advice])), _shown_code(error))
            return TIMED_OUT if isinstance(error, CallTimeout) else error.exit_status
        case OSError():
            _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            return 1
        case _:
            advice = "this is a fault of broker itself; --log-level debug shows where, for a report"
            _complain(f"{type(error).__name__}: {error}\n{advice}")
            return 1


def _shown_code(error: BrokerError) -> str | None:
    """The remote's word for it, where there is a remote that said one."""
    return error.code if isinstance(error, CallError | Refused) else None


def _wrong_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        Console(stderr=True).print(error.format_message())
        return 2
    command = context.command_path if context is not None else "broker"
    _complain(f"{error.format_message()}\n`{command} --help` shows how it is used")
    return 2


def _complain(message: str, code: str | None = None) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in error_lines(message, code):
        console.print(Text(line, style="red" if line.startswith("error: ") else ""))
