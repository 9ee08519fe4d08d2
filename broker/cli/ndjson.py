"""Lines of JSON from a file or stdin, as they come. A line that is not JSON is named with its file and number."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from broker.cli.output import read_chunks
from broker.errors import UsageError

__all__ = ["Progress", "json_lines"]

MAX_LINE_BYTES: Final = 64 << 20
"""No frame is longer; a file without line ends is seen before it fills the memory."""


class Progress:
    """A bar on stderr for a file of known size, where somebody can see it."""

    def __init__(self, bar: RichProgress | None) -> None:
        self._bar = bar

    @staticmethod
    def on_terminal(file: str, *, quiet: bool) -> Progress:
        if quiet or not sys.stderr.isatty():
            return Progress(None)
        columns = (BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
        size = os.path.getsize(file) if file != "-" and os.path.isfile(file) else None
        bar.add_task(file, total=size)
        return Progress(bar)

    @contextmanager
    def shown(self) -> Iterator[None]:
        if self._bar is None:
            yield
        else:
            with self._bar:
                yield

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], amount)


def json_lines(file: str, progress: Progress) -> AsyncIterator[list[Any]]:
    """Batches of the values in a file, or stdin for ``-``. Opens it at once; raises :class:`UsageError`."""
    if file == "-":
        return _values(0, "<stdin>", progress, close=False)
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{file} is a directory; --file takes a file of one JSON a line")
    return _values(fd, file, progress, close=True)


async def _values(fd: int, name: str, progress: Progress, *, close: bool) -> AsyncIterator[list[Any]]:
    number, rest = 0, b""
    try:
        with progress.shown():
            async for chunk in read_chunks(fd):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise UsageError(f"{name}:{number + len(lines) + 1}: a line of more than {MAX_LINE_BYTES} bytes")
                async for batch in _parsed(lines, name, number):
                    yield batch
                number += len(lines)
                progress.advance(len(chunk))
            async for batch in _parsed([rest], name, number):
                yield batch
    finally:
        if close:
            os.close(fd)


async def _parsed(lines: list[bytes], name: str, before: int) -> AsyncIterator[list[Any]]:
    """The values of good lines are handed on before a bad one is complained of. Empty lines are none."""
    values: list[Any] = []
    for number, line in enumerate(lines, before + 1):
        try:
            if line and not line.isspace():
                values.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            if values:
                yield values
            raise UsageError(f"{name}:{number}: not JSON: {error}\nthe lines before it are published") from None
    if values:
        yield values
