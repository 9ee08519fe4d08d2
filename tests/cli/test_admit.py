"""`broker invite`, `ban`, `unban` and `kick` from outside, and a hub that is killed in between."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Start
from tests.cli.processes import Running, broker, rows

HUB = ("hub", "--http", "off", "--json")


def a_hub(start: Start, data: Path, *more: str) -> Running:
    hub = start(*HUB, "--data", data, *more)
    hub.ready = hub.row()
    return hub


def node_id(key: Path) -> str:
    return str(json.loads(broker("key", "new", key, "--json").stdout)["node_id"])


def admin(data: Path, *args: object) -> dict[str, Any]:
    done = broker(*args, "--json", "--key", data / "admin.key")
    assert done.returncode == 0, done.stderr
    (row,) = rows(done.stdout)
    return dict(row)


def test_an_invite_is_spent_once_also_after_the_hub_was_killed(start: Start, tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "spoke.key"
    hub = a_hub(start, data)
    node_id(key)
    assert broker("ls", hub.ticket, "--key", key).returncode == 3
    spent, unspent = (admin(data, "invite", hub.ticket, "--scopes", "a,b", "--ttl", "60")["ticket"] for _ in range(2))
    assert broker("ls", spent, "--key", key).returncode == 0
    hub.process.send_signal(signal.SIGKILL)
    hub.process.wait()
    hub = a_hub(start, data)
    done = broker("ls", spent)
    assert (done.returncode, "spent, expired or not of this hub" in done.stderr) == (3, True), done.stderr
    assert broker("ls", hub.ticket, "--key", key).returncode == 0
    assert broker("ls", unspent).returncode == 0
    assert broker("ls", unspent).returncode == 3


def test_a_ban_is_told_and_lasts_until_it_is_taken_back(start: Start, tmp_path: Path) -> None:
    data, key = tmp_path / "data", tmp_path / "spoke.key"
    hub, id = a_hub(start, data, "--open"), node_id(key)
    sub = start("sub", hub.ticket, "a.b", "--key", key, "--json")
    wait_for(hub, data, lambda spokes: id in spokes)
    assert admin(data, "kick", hub.ticket, id) == {"event": "kick", "node_id": id, "connections": 1}
    wait_for(hub, data, lambda spokes: id in spokes)
    answer = admin(data, "ban", hub.ticket, id.upper())
    assert (answer["node_id"], answer["changed"], answer["durable"]) == (id, True, True)
    assert id not in spokes_of(hub, data)
    hub.process.send_signal(signal.SIGKILL)
    hub.process.wait()
    hub = a_hub(start, data, "--open")
    done = broker("ls", hub.ticket, "--key", key)
    assert (done.returncode, "banned" in done.stderr) == (3, True), done.stderr
    assert broker("ls", hub.ticket).returncode == 0
    assert admin(data, "unban", hub.ticket, id)["admitted"] is True
    wait_for(hub, data, lambda spokes: id in spokes)
    sub.process.kill()


def spokes_of(hub: Running, data: Path) -> set[str]:
    done = broker("ls", hub.ticket, "spokes", "--json", "--key", data / "admin.key")
    return {row["node_id"] for row in rows(done.stdout)}


def wait_for(hub: Running, data: Path, true: Any) -> None:
    """Asks until it is so; the test's own time limit ends it."""
    while not true(spokes_of(hub, data)):
        pass


@pytest.mark.parametrize("command", ["invite", "ban", "unban", "kick"])
def test_who_may_not_is_told_who_may(start: Start, tmp_path: Path, command: str) -> None:
    hub = a_hub(start, tmp_path / "data", "--open")
    done = broker(command, hub.ticket, *(() if command == "invite" else ("a" * 64,)))
    assert done.returncode == 1
    assert "ACCESS_DENIED" in done.stderr
    assert "admission.admins" in done.stderr
    assert "admin.key" in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert not done.stdout


def test_a_node_id_that_is_none_is_wrong_usage() -> None:
    done = broker("ban", "hub1abc", "xyz")
    assert done.returncode == 2
    assert "64 hex digits" in done.stderr


def test_without_json_an_invite_is_its_ticket_and_nothing_else(start: Start, tmp_path: Path) -> None:
    hub = a_hub(start, tmp_path / "data")
    done = broker("invite", hub.ticket, "--key", tmp_path / "data" / "admin.key")
    assert done.stdout.startswith("hub1")
    assert len(done.stdout.split()) == 1
    assert broker("ls", done.stdout.strip()).returncode == 0
