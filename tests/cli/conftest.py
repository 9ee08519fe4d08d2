"""A hub process to talk to, and processes beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.cli.processes import Running

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command that goes on; all are gone after the test."""
    numbers = count()
    with ExitStack() as stack:

        def start(*args: object, cwd: Path | None = None, output: Path | None = None, **env: str) -> Running:
            errors = tmp_path / f"stderr-{next(numbers)}"
            return stack.enter_context(Running(*args, errors=errors, cwd=cwd, output=output, **env))

        yield start


@pytest.fixture
def hub(start: Start) -> Iterator[Running]:
    """An open hub that has said its ready line: ``hub.ready``."""
    running = start("hub", "--open", "--http", "127.0.0.1:0", "--json")
    running.ready = running.row()
    yield running
    if running.process.poll() is None:
        assert running.end(signal.SIGTERM) == 0, running.errors
    assert "Traceback" not in running.errors
