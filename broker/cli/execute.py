"""Commands as operations: ``--exec NAME=COMMAND`` of ``broker serve``.

The input goes to the command's stdin as JSON, its stdout is the output. No shell is in between: the command is split
as a shell would, and run. It has a process group of its own, which is killed when the call ends before it does. Not
here: the spoke.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from broker.errors import ExecutionFailed, UsageError

if TYPE_CHECKING:
    from broker import Spoke
    from broker.spoke.operations import Call

__all__ = ["Command", "offer_commands"]

MAX_OUTPUT_BYTES: Final = 1_000_000
"""Below the default frame limit of 1 MiB, with room for the envelope."""
STDERR_TAIL_BYTES: Final = 2_000
"""The end of stderr is where programs say why they failed."""
READ_BYTES: Final = 65_536
KILL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Command:
    """One ``NAME=COMMAND``."""

    operation: str
    argv: tuple[str, ...]

    @staticmethod
    def parse(text: str, option: str) -> Command:
        """Raises :class:`UsageError`, also when there is no such program."""
        operation, equals, line = text.partition("=")
        if not equals or not operation.strip():
            raise UsageError(f"{option} {text!r}: give it as NAME=COMMAND, as in {option} 'uptime=cat /proc/uptime'")
        try:
            argv = tuple(shlex.split(line))
        except ValueError as error:
            raise UsageError(f"{option} {operation}: the command cannot be split: {error}") from None
        if not argv:
            raise UsageError(f"{option} {operation}: the command is empty")
        if shutil.which(argv[0]) is None:
            raise UsageError(
                f"{option} {operation}: there is no program {argv[0]!r}\nno shell is in between; "
                f"for pipes and variables write {operation}=sh -c '...'"
            )
        return Command(operation.strip(), argv)

    async def once(self, input: Any, call: Call) -> Any:
        """The handler of a query: the whole of stdout is one JSON value."""
        async with self._process(input) as (process, stderr):
            stdout = await self._bounded(process)
            self._check(await process.wait(), await stderr)
        return self._value(stdout)

    async def items(self, input: Any, call: Call) -> AsyncIterator[Any]:
        """The handler of a subscription: each line of stdout is an item."""
        async with self._process(input) as (process, stderr):
            assert process.stdout is not None
            async for line in _lines(self.operation, process.stdout):
                if line.strip():
                    yield self._value(line)
            self._check(await process.wait(), await stderr)

    @asynccontextmanager
    async def _process(self, input: Any) -> AsyncIterator[tuple[Process, asyncio.Task[bytes]]]:
        """The process, which has its input, and the end of its stderr when there is one."""
        process = await self._start()
        feeding = asyncio.create_task(_feed(process, orjson.dumps(input)))
        stderr = asyncio.create_task(_tail(process))
        try:
            yield process, stderr
        finally:
            # Also after a good end: what it left running in its group would outlive every call.
            await asyncio.shield(_kill(process, feeding, stderr))

    async def _start(self) -> Process:
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(*self.argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True)
        )
        try:
            # Cancelled while it connects the pipes, asyncio waits for ever for their end (seen with 3.11).
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.shield(_kill(await asyncio.shield(starting)))
            raise
        except OSError as error:
            raise ExecutionFailed(f"{self.argv[0]} cannot be started: {error.strerror}") from None

    async def _bounded(self, process: Process) -> bytes:
        assert process.stdout is not None
        content = bytearray()
        while chunk := await process.stdout.read(READ_BYTES):
            content += chunk
            if len(content) > MAX_OUTPUT_BYTES:
                raise ExecutionFailed(f"{self.operation}: the command printed more than {MAX_OUTPUT_BYTES} bytes")
        return bytes(content)

    def _check(self, status: int, stderr: bytes) -> None:
        if status == 0:
            return
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        text = stderr.decode("utf-8", "replace").strip()
        raise ExecutionFailed(
            f"{self.operation}: {self.argv[0]} {how}" + (f": {text}" if text else ""),
            details={"status": status, "stderr": text},
        )

    def _value(self, text: bytes) -> Any:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            start = text[:80].decode("utf-8", "replace")
            raise ExecutionFailed(
                f"{self.operation}: {self.argv[0]} did not print JSON ({error}); it begins {start!r}"
            ) from None


def offer_commands(spoke: Spoke, once: list[str], streams: list[str]) -> None:
    """Adds the commands of ``--exec`` and ``--exec-stream`` to what a spoke offers."""
    for text in once:
        command = Command.parse(text, "--exec")
        _offer(spoke, command, "mutation")
    for text in streams:
        command = Command.parse(text, "--exec-stream")
        _offer(spoke, command, "subscription")


def _offer(spoke: Spoke, command: Command, kind: Any) -> None:
    handler = command.items if kind == "subscription" else command.once
    try:
        spoke.offer(command.operation, handler, kind=kind, description=f"runs {shlex.join(command.argv)}")
    except ValueError as error:
        raise UsageError(str(error)) from None


async def _kill(process: Process, *helpers: asyncio.Task[Any]) -> None:
    """Ends a process and its group. asyncio says that it ended only when its pipes have, so they are read out."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for helper in helpers:
        helper.cancel()
    await asyncio.gather(*helpers, return_exceptions=True)
    with contextlib.suppress(TimeoutError):  # a child of a group of its own may hold a pipe for as long as it likes
        async with asyncio.timeout(KILL_SECONDS):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(READ_BYTES):
                    pass
            await process.wait()


async def _feed(process: Process, content: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read its input
        process.stdin.write(content)
        await process.stdin.drain()
    process.stdin.close()


async def _tail(process: Process) -> bytes:
    assert process.stderr is not None
    content = b""
    while chunk := await process.stderr.read(READ_BYTES):
        content = (content + chunk)[-STDERR_TAIL_BYTES:]
    return content


async def _lines(operation: str, stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    while chunk := await stream.read(READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MAX_OUTPUT_BYTES:
            raise ExecutionFailed(f"{operation}: the command printed a line of more than {MAX_OUTPUT_BYTES} bytes")
    yield rest
