"""Runs the blocks of one document, in order, in a directory of its own. What a tag means: blocks.py."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.docs.blocks import Block, DocumentError, Kind

POLL = 0.02
STOP_SECONDS = 15.0
BACKGROUND = re.compile(r"^(?P<command>.*[^&\s])\s*&\s*(?:#\s*until:\s*(?P<until>.*\S)\s*|#.*)?$", re.DOTALL)
WAITS_FOR = re.compile(r"(?:^|\s)@([\w./-]+)")
# Keeps what a reader's shell would keep between two commands: variables and the directory.
SHELL = """
set -a; {{ source {state}/variables; cd "$(cat {state}/cwd)"; }} 2>/dev/null
trap 'code=$?; export -p > {state}/variables; pwd > {state}/cwd; exit $code' EXIT
{command}
"""


@dataclass(frozen=True)
class Command:
    text: str
    line: int
    output: str | None = None


def commands(block: Block) -> Iterator[Command]:
    """A console block's commands are those after ``$ ``; a bash block's are as long as bash needs them to be."""
    if block.kind is Kind.CONSOLE or re.search(r"^\$ ", block.text, re.MULTILINE):
        yield from _console_commands(block)
        return
    pending: list[str] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        pending.append(line)
        if _complete(text := "\n".join(pending)):
            if not _is_blank(text):
                yield Command(text, number - len(pending) + 1)
            pending = []
    if pending:
        yield Command("\n".join(pending), block.line)  # bash says itself what is wrong with it


def _console_commands(block: Block) -> Iterator[Command]:
    command, start, output = "", 0, list[str]()
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            if command:
                yield Command(command, start, "\n".join(output) or None)
            command, start, output = line[2:], number, []
        elif line.startswith("> ") and command and not output:
            command += "\n" + line[2:]
        elif command:
            output.append(line)
        elif line.strip():
            raise DocumentError(block, f"output before any command: {line!r}")
    if command:
        yield Command(command, start, "\n".join(output).strip() or None)


def _is_blank(text: str) -> bool:
    return all(not line.strip() or line.lstrip().startswith("#") for line in text.splitlines())


def _complete(text: str) -> bool:
    if text.endswith("\\"):
        return False
    check = subprocess.run(["bash", "-n", "-c", text], capture_output=True)
    return check.returncode == 0 and not check.stderr  # an open here-document is only a warning


def matches(pattern: str, output: str) -> bool:
    """As doctest's ELLIPSIS, but blanks at line ends do not count."""
    wanted = r".*".join(re.escape(part) for part in _trim(pattern).split("..."))
    return re.fullmatch(wanted, _trim(output), re.DOTALL) is not None


def _trim(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


class Background:
    """A command that goes on while the document does: the leader of a process group of its own."""

    def __init__(self, block: Block, command: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.block, self.command, self.process, self.log = block, command, process, log

    def wait_ready(self, until: str | None, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._ready(until):
            ended = self.process.poll()
            if ended is not None and not self._ready(until):
                raise DocumentError(self.block, f"{self.command!r} ended with {ended} too early:\n{self.output()}")
            if time.monotonic() > deadline:
                wanted = f"print {until!r}" if until else "print a line"
                raise DocumentError(self.block, f"{self.command!r} did not {wanted} in {timeout} s:\n{self.output()}")
            time.sleep(POLL)

    def _ready(self, until: str | None) -> bool:
        return until in self.output() if until else "\n" in self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> str | None:
        """End it, by its own group. Returns what was wrong: it had failed before, or did not end when asked."""
        ended = self.process.poll()
        complaint = f"{self.command!r} had ended with {ended}:\n{self.output()}" if ended else None
        if ended is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                complaint = f"{self.command!r} did not end within {STOP_SECONDS} s of SIGTERM:\n{self.output()}"
        _kill_group(self.process)
        return complaint


def _kill_group(process: subprocess.Popen[Any]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what the leader has left behind
    process.wait()


class Document:
    """The state that the blocks of one document share. Use as a context manager: it ends what was started."""

    def __init__(self, directory: Path, *, makefile: str = "", timeout: float = 90.0) -> None:
        self.directory, self.makefile, self.timeout = directory, makefile, timeout
        self.cwd = directory / "work"
        self._state = directory / "state"
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._background: list[Background] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.cwd.mkdir()
        self._state.mkdir()
        (self._state / "variables").touch()
        (self._state / "cwd").write_text(str(self.cwd))
        self._runner = self._stack.enter_context(asyncio.Runner())
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()
        # Last started, first stopped: a client goes before its server.
        complaints = [(one, complaint) for one in reversed(self._background) if (complaint := one.stop())]
        if complaints and kind is None:
            raise DocumentError(complaints[0][0].block, complaints[0][1])

    def run(self, block: Block) -> None:
        match block.kind:
            case Kind.PYTHON:
                self._python(block)
            case Kind.BASH | Kind.CONSOLE:
                for command in commands(block):
                    self._shell(block, command)
            case Kind.MAKE:
                self._make(block)
            case Kind.NOT_RUN:
                pass

    def _python(self, block: Block) -> None:
        source = "\n" * (block.line - 1) + block.text  # so that a traceback names the document's own line
        previous = Path.cwd()
        os.chdir(self.cwd)
        try:
            code = compile(source, block.document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, self._namespace)
            if inspect.iscoroutine(result):
                self._runner.run(asyncio.wait_for(result, self.timeout))
        except Exception as error:
            raise DocumentError(block, f"{type(error).__name__}: {error}") from error
        finally:
            os.chdir(previous)

    def _shell(self, block: Block, command: Command) -> None:
        block = Block(block.document, command.line, block.tag, command.text)
        self._wait_for_files(block)
        if match := BACKGROUND.match(command.text):
            self._start(block, match["command"], match["until"])
            return
        script = SHELL.format(state=self._state, command=command.text)
        with self._spawn(script, subprocess.PIPE) as process:
            try:
                output = process.communicate(timeout=self.timeout)[0].decode(errors="replace")
            except subprocess.TimeoutExpired:
                _kill_group(process)
                raise DocumentError(block, f"{command.text!r} did not end within {self.timeout} s") from None
        if process.returncode != 0:
            raise DocumentError(block, f"{command.text!r} ended with {process.returncode}:\n{output}")
        if command.output is not None and not matches(command.output, output):
            raise DocumentError(block, f"{command.text!r} printed\n{output}\nand not\n{command.output}")

    def _wait_for_files(self, block: Block) -> None:
        deadline = time.monotonic() + self.timeout
        here = Path((self._state / "cwd").read_text().strip())
        for name in WAITS_FOR.findall(block.text):
            while not (here / name).exists():
                if time.monotonic() > deadline:
                    raise DocumentError(block, f"{name} was not there within {self.timeout} s")
                time.sleep(POLL)

    def _start(self, block: Block, command: str, until: str | None) -> None:
        log = self.directory / f"background-{len(self._background)}.log"
        # A bash that has one simple command becomes that command: the signal at the end reaches it, not a shell.
        entered = f'set -a; source {self._state}/variables; cd "$(cat {self._state}/cwd)"'
        script = f"{entered}; exec bash -c {shlex.quote(command)}"
        with log.open("wb") as out:
            background = Background(block, command, self._spawn(script, out.fileno()), log)
        self._background.append(background)
        background.wait_ready(until, self.timeout)

    def _spawn(self, script: str, out: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=self.cwd,
            env=self._environment(),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        """A reader's: the venv first in PATH, a home without files, nothing that configures the broker from outside."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("BROKER_", "XDG_", "PYTEST_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "HOME": str(self.directory), "TERM": "dumb", "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
        return inherited | own

    def _make(self, block: Block) -> None:
        targets = set(re.findall(r"^([\w-]+):", self.makefile, re.MULTILINE))
        for number, line in enumerate(block.text.splitlines(), block.line):
            words = line.partition("#")[0].split()
            if not words:
                continue
            asked = [word for word in words[1:] if "=" not in word]
            if words[0] != "make" or not set(asked) <= targets:
                here = Block(block.document, number, block.tag, line)
                raise DocumentError(here, f"{line!r} is not a make line with targets of the Makefile")
