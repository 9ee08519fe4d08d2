"""The hub pushes, as processes: ``hub --dial``, ``serve --listen``, and what of it outlasts either of them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from broker import keys
from broker.protocol.ticket import Ticket
from tests.cli.conftest import Start
from tests.cli.processes import PATIENCE, Running, broker, rows

pytestmark = pytest.mark.timeout(180)  # up to six processes, one after the other

APP = """
from broker import Spoke

app = Spoke("listener")

@app.operation("t.echo")
async def echo(text: str) -> str:
    await app.publish("t.heard", text)
    return text

@app.on("t.told")
async def told(event):
    await app.publish("t.passed", event.detail)
"""


def listen(start: Start, where: Path, *args: object) -> Running:
    """A spoke that listens, with its own identity; ``ready`` is what it says at once."""
    (where / "listener.py").write_text(APP)
    key = where / "spoke.key"
    keys.load_or_create(key)
    running = start("serve", "--listen", "--key", key, "--json", *args, "listener:app", cwd=where)
    running.ready = running.row()
    assert running.ready["event"] == "listening"
    return running


def a_hub(start: Start, *args: object) -> Running:
    running = start("hub", "--open", "--http", "127.0.0.1:0", "--json", *args)
    running.ready = running.row()
    return running


def echo(hub: Running, text: str) -> Any:
    """Calls until the spoke is there: nobody tells a caller from outside."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = broker("call", hub.ticket, "t.echo", json.dumps({"text": text}), "--json")
        if done.returncode == 0 or time.monotonic() > deadline:
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)


def test_a_dialled_spoke_answers_and_events_go_both_ways(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "spoke.ticket"
    spoke = listen(start, tmp_path, "--bind", "127.0.0.1:0", "--ticket-file", file)
    assert file.read_text().strip() == spoke.ready["ticket"]
    assert file.stat().st_mode & 0o077 == 0, "who has it may be its hub"
    hub = a_hub(start, "--dial", f"@{file}")
    ready = spoke.row()
    assert (ready["event"], ready["hub"], ready["operations"]) == ("ready", hub.ready["node_id"], ["t.echo"])
    sub = start("sub", hub.ticket, "t.*", "--count", 3, "--check", "--log-level", "info")
    while "subscribed to" not in sub.errors:
        time.sleep(0.01)
    assert echo(hub, "hello") == "hello"
    assert broker("pub", hub.ticket, "t.told", "7").returncode == 0
    got = sub.rest()
    events = {(row["type"], json.dumps(row["detail"])) for row in got if "type" in row}
    assert events == {("t.heard", '"hello"'), ("t.told", "7"), ("t.passed", "7")}
    assert {row["verdict"] for row in got if row.get("event") == "verdict"} == {"complete"}
    assert sub.end() == 0
    (row,) = [row for row in rows(broker("ls", hub.ticket, "spokes", "--json").stdout) if row["name"] == "listener"]
    assert row["node_id"] == spoke.ready["node_id"]


def test_a_spoke_that_is_killed_and_started_again_is_dialled_again(start: Start, tmp_path: Path) -> None:
    spoke = listen(start, tmp_path)
    hub = a_hub(start, "--dial", spoke.ready["ticket"])
    assert echo(hub, "one") == "one"
    spoke.end(signal.SIGKILL)
    addr = _addr(spoke.ready["ticket"])
    again = listen(start, tmp_path, "--bind", addr)
    assert again.ready["node_id"] == spoke.ready["node_id"]
    assert again.ready["ticket"] == spoke.ready["ticket"]
    assert again.row()["event"] == "ready"
    assert echo(hub, "two") == "two"


def test_it_comes_back_at_another_port_and_an_administrator_says_where(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "hub"
    spoke = listen(start, tmp_path)
    hub = a_hub(start, "--data", data, "--dial", spoke.ready["ticket"])
    assert spoke.row()["event"] == "ready"
    spoke.end(signal.SIGKILL)
    again = listen(start, tmp_path)
    assert again.ready["ticket"] != spoke.ready["ticket"]
    done = broker(
        *("call", hub.ticket, "hub.dial", json.dumps({"ticket": again.ready["ticket"]})),
        *("--key", data / "admin.key", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"node_id": spoke.ready["node_id"], "durable": True}
    assert again.row()["event"] == "ready"
    assert echo(hub, "two") == "two"
    denied = broker("call", hub.ticket, "hub.dial", json.dumps({"ticket": again.ready["ticket"]}))
    assert (denied.returncode, "ACCESS_DENIED" in denied.stderr) == (1, True)


def test_a_restarted_hub_finds_its_spokes_again(start: Start, tmp_path: Path) -> None:
    """Killed, so it wrote what it knows before; by bare NodeId, and by what an administrator has decided."""
    data = tmp_path / "hub"
    spoke = listen(start, tmp_path)
    node_id = spoke.ready["node_id"]
    hub = a_hub(start, "--data", data, "--dial", spoke.ready["ticket"])
    assert spoke.row()["event"] == "ready"
    while not (data / "peers.json").exists():
        time.sleep(0.01)
    hub.end(signal.SIGKILL)
    second = a_hub(start, "--data", data, "--dial", node_id)
    assert second.ticket == hub.ticket
    assert echo(second, "two") == "two"
    done = broker(
        *("call", second.ticket, "hub.dial", json.dumps({"node_id": node_id})), "--key", data / "admin.key", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert second.end(signal.SIGTERM) == 0, second.errors
    third = a_hub(start, "--data", data)
    assert echo(third, "three") == "three"


def test_what_cannot_be_dialled_is_a_config_error() -> None:
    done = broker("hub", "--http", "off", "--dial", "a" * 64)
    assert done.returncode == 2, done.stderr
    assert "not in the address book" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_a_listening_spoke_drains(start: Start, tmp_path: Path) -> None:
    spoke = listen(start, tmp_path)
    hub = a_hub(start, "--dial", spoke.ready["ticket"])
    assert spoke.row()["event"] == "ready"
    assert spoke.end(signal.SIGTERM) == 0
    assert "drained; nothing was dropped" in spoke.errors
    assert hub.end(signal.SIGTERM) == 0, hub.errors


def _addr(ticket: str) -> str:
    return Ticket.decode(ticket).addrs[0]
