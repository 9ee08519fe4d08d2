"""What commands write: JSON lines or tables on stdout, notes and errors on stderr, logs beside them.

Standard output may be a pipe that nobody reads. A write that blocked would stop the event loop, and with it the
connection; so bytes are written when the other end has room, and the loop waits for that. Not here: what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Literal

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["ERROR_LINES", "LineWriter", "LogFormat", "LogLevel", "dumps", "error_lines", "note", "read_chunks", "table"]

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

ERROR_LINES: Final = 3
ERROR_LINE_CHARACTERS: Final = 500
"""Of a message that may come from far away; the rest is in the remote's log."""
PIPE_SAFE_BYTES: Final = select.PIPE_BUF
"""A pipe that poll calls writable takes this much without blocking."""
FILE_BYTES: Final = 1 << 20
READ_BYTES: Final = 1 << 18
DUMP: Final = orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """One line of JSON."""
    return orjson.dumps(value, option=DUMP) + b"\n"


class LineWriter:
    """Standard output for a command that runs in an event loop."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stdout.fileno() if fd is None else fd
        self.terminal = os.isatty(self._fd)
        self._poll: select.poll | None = None
        # Regular files and /dev/null cannot be waited for, and do not block.
        with contextlib.suppress(PermissionError):
            select.epoll().register(self._fd, select.EPOLLOUT)
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

    async def json(self, value: Any) -> None:
        """One object, one line."""
        await self.write(dumps(value))

    async def lines(self, values: Iterable[Any]) -> None:
        """Several at once."""
        await self.write(b"".join(map(dumps, values)))

    async def text(self, value: Any, *, wrap: bool = True) -> None:
        """Something of rich's, with colours on a terminal. ``wrap=False`` leaves whole what is there to be copied."""
        console = Console(highlight=False)
        with console.capture() as capture:
            console.print(value, soft_wrap=not wrap)
        await self.write(capture.get().encode())

    async def write(self, content: bytes) -> None:
        """All of it, in order. Raises BrokenPipeError when nobody will read it."""
        rest = memoryview(content)
        step = FILE_BYTES if self._poll is None else PIPE_SAFE_BYTES
        while rest:
            if self._poll is not None and not self._poll.poll(0):
                await _ready(self._fd, write=True)
            rest = rest[os.write(self._fd, rest[:step]) :]


async def read_chunks(fd: int) -> AsyncIterator[bytes]:
    """What comes from a file descriptor, as it comes, without blocking the loop."""
    waits = True
    while True:
        if waits:
            try:
                await _ready(fd, write=False)
            except PermissionError:  # a regular file: always ready
                waits = False
        chunk = os.read(fd, READ_BYTES)
        if not chunk:
            return
        yield chunk


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(fd)


def note(message: str) -> None:
    """A word to whoever is watching, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message))


def table(title: str, columns: dict[str, Callable[[dict[str, Any]], Any]], rows: Iterable[dict[str, Any]]) -> Table:
    """``columns`` is header -> how a row fills it; numbers stand to the right."""
    result = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    filled = [[fill(row) for fill in columns.values()] for row in rows]
    for place, header in enumerate(columns):
        numeric = bool(filled) and all(isinstance(cells[place], int | float) for cells in filled)
        result.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for cells in filled:
        result.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
    return result


def error_lines(message: str, code: str | None = None) -> list[str]:
    """An error as it is shown: what, whose fault, what next; never more than three lines."""
    text = f"error: {code}: {message}" if code else f"error: {message}"
    lines = [_shown(line) for line in text.splitlines() if line.strip()]
    if len(lines) > ERROR_LINES:
        lines = [*lines[: ERROR_LINES - 1], f"{lines[ERROR_LINES - 1]} …"]
    return lines


def _shown(line: str) -> str:
    # A message may come from a peer: no escape sequence of its reaches the terminal.
    plain = "".join(c if c.isprintable() else "�" for c in line)
    return plain if len(plain) <= ERROR_LINE_CHARACTERS else plain[:ERROR_LINE_CHARACTERS] + "…"


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def start_logging(level: LogLevel, format: LogFormat) -> None:
    """Logs of this package, and warnings of others, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter() if format == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("broker").setLevel(level.upper())
    if level == "debug":
        logging.getLogger("asyncio").setLevel(logging.INFO)
