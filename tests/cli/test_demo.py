"""The demo: as lines of JSON, as text, on a terminal; and when its port is taken."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from tests.cli.conftest import Start
from tests.cli.processes import COMMAND, PATIENCE, broker, environment, rows

FREE = ("--http", "127.0.0.1:0")


def test_a_demo_shows_calls_and_events() -> None:
    done = broker("demo", "--spokes", 2, "--seconds", 2.5, "--json", *FREE)
    assert (done.returncode, done.stderr) == (0, "")
    ready, *happenings, summary = rows(done.stdout)
    assert ready["event"] == "ready"
    assert ready["ticket"].startswith("hub1")
    events = [row for row in happenings if "type" in row]
    assert {row["type"] for row in events} == {"host.host-1.load", "host.host-2.load"}
    calls = {row["operation"]: row for row in happenings if row.get("event") == "call"}
    assert set(calls) >= {"host.load", "host.memory"}
    assert calls["host.memory"]["output"]["total"] == psutil.virtual_memory().total
    assert all(row["ms"] > 0 for row in calls.values())
    assert summary["event"] == "summary"
    assert (summary["events"], summary["failed_calls"], summary["verdicts"]) == (len(events), 0, ["complete"])


def test_a_demo_in_a_pipe_is_plain() -> None:
    done = broker("demo", "--spokes", 1, "--seconds", 1.5, *FREE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["hub", "ticket", "metrics"]
    assert any(line.startswith("event  host.host-1.load") for line in lines)
    assert lines[-1].endswith(" ms")


def test_a_demo_is_interrupted(start: Start) -> None:
    demo = start("demo", "--spokes", 1, "--json", *FREE)
    assert demo.row()["event"] == "ready"
    while "type" not in demo.row():
        pass
    demo.process.send_signal(signal.SIGINT)
    assert demo.rest()[-1]["event"] == "summary"
    assert demo.end() == 130
    assert demo.errors == ""


def test_a_demo_takes_another_port_when_its_own_is_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # taken by somebody else: as good
            taken.bind(("127.0.0.1", 9464))
            taken.listen()
        done = broker("demo", "--spokes", 1, "--seconds", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)[0]["http"] != "127.0.0.1:9464"
    refused = broker("demo", "--seconds", 1, "--http", "192.0.2.1:1")
    assert refused.returncode == 3


def on_terminal(*args: object, env: dict[str, str]) -> tuple[int, str]:
    """What a command shows on a terminal of its own."""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**env, "TERM": "xterm-256color"},
    ) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(controller, 65_536):
                shown += chunk
        os.close(controller)
        return process.wait(PATIENCE), shown.decode()


def test_a_demo_on_a_terminal() -> None:
    status, shown = on_terminal("demo", "--spokes", 2, "--seconds", 3, *FREE, env=environment())
    assert status == 0
    assert "\x1b[" in shown
    for word in ("ticket", "hub1", "/metrics", "host.host-2.load", "host.memory", "complete", "p50"):
        assert word in shown
    assert "Traceback" not in shown


def test_commands_on_a_terminal(start: Start, tmp_path: Path) -> None:
    hub = start("hub", "--open", "--http", "off", "--json")
    ticket = hub.row()["ticket"]
    env = environment()
    file = tmp_path / "e.ndjson"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(1_000)))
    status, shown = on_terminal("pub", ticket, "a.b", "--file", file, env=env)
    assert (status, "1,000 events on a.b" in shown) == (0, True)
    status, shown = on_terminal("sub", ticket, "a.*", "--since", "start", "--count", 3, "--check", env=env)
    assert status == 0
    assert "Verdicts" in shown
    status, shown = on_terminal("call", ticket, "hub.topics", env=env)
    assert (status, '"topic"' in shown) == (0, True)
    status, shown = on_terminal("call", ticket, "hub.topics", "--json", env=env)
    assert json.loads(shown)[0]["topic"] == "a.b"
    status, shown = on_terminal("bench", ticket, "--calls", 100, "--events", 100, "--subscribers", 2, env=env)
    assert status == 0
    assert "deliveries/s to " in shown.replace("\x1b[0m", "")
