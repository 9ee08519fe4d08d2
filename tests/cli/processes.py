"""Real processes of the command ``broker``, for tests that look at it from outside.

A test waits for what a process says (its ready line), never for time; every process is ended by its own handle.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "broker")
PATIENCE = 40.0
"""Seconds after which a process that should have ended is a failure."""


def environment(**more: str) -> dict[str, str]:
    """Ours from the source tree, without variables of whoever runs the tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}


def broker(
    *args: object, input: str = "", cwd: Path | None = None, patience: float = PATIENCE, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        input=input,
        capture_output=True,
        text=True,
        timeout=patience,
        cwd=cwd,
        env=environment(**env),
        check=False,
    )


def rows(text: str) -> list[Any]:
    """Lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]


class Running:
    """A command that goes on. Use as a context manager: it is killed at the end if it still runs."""

    def __init__(
        self, *args: object, errors: Path, cwd: Path | None = None, output: Path | None = None, **env: str
    ) -> None:
        self._errors = errors
        self.ready: dict[str, Any] = {}
        with errors.open("wb") as stderr, (output or Path(os.devnull)).open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, args)],
                stdin=subprocess.PIPE,
                stdout=file if output else subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=environment(**env),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    @property
    def ticket(self) -> str:
        return str(self.ready["ticket"])

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def row(self) -> Any:
        """The next line of JSON on stdout."""
        line = self.stdout.readline()
        assert line, f"ended with {self.process.wait()}: {self.errors}"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """What it writes until it ends."""
        return rows(self.stdout.read().decode())

    def end(self, number: signal.Signals | None = None) -> int:
        """Its exit status, after a signal or by itself."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)
