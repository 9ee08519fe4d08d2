"""The testbed's roles as processes: a node that waits for its ticket, its load, and an observer that says the truth."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.conftest import Start
from tests.cli.processes import PATIENCE, Running, broker


def _samples(address: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _why_not(address: str) -> str:
    """The reason that /readyz gives."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{address}/readyz", timeout=5)
    with caught.value as answer:
        return str(json.load(answer)["reason"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_an_observer_counts_what_nodes_tell(start: Start, hub: Running) -> None:
    observer = start("lab", "observer", hub.ticket, "lab.>", "--http", "127.0.0.1:0", "--json")
    address = observer.row()["http"]
    node = start("lab", "node", hub.ticket, "--name", "n.1", "--rate", 20, "--size", 500, "--calls", 10, "--json")
    assert node.row()["hub"] == hub.ready["node_id"]
    until(lambda: _samples(address)[("broker_observer_events_received_total",)] >= 10)
    seen = _samples(address)
    assert seen[("broker_observer_sequences", "complete")] == 1
    assert all(seen[("broker_observer_sequences", word)] == 0 for word in ("repaired", "lost", "unknown"))
    assert seen[("broker_observer_events_lost_total",)] == 0
    hub_metrics = _samples(hub.ready["http"])
    assert hub_metrics[("broker_events_published_total", "stream", "lab.n-1.load")] >= 10
    until(lambda: _samples(hub.ready["http"])[("broker_calls_total", "OK", "host.load")] >= 5)
    assert node.end(signal.SIGTERM) == 0, node.errors
    assert observer.end(signal.SIGTERM) == 0, observer.errors


def test_a_node_waits_for_its_ticket_and_says_so(start: Start, tmp_path: Path, hub: Running) -> None:
    file = tmp_path / "ticket"
    node = start("lab", "node", f"@{file}", "--http", "127.0.0.1:0", "--json")
    waiting = node.row()
    assert (waiting["event"], waiting["reason"]) == ("waiting", _why_not(waiting["http"]))
    assert waiting["reason"].startswith(f"waiting for a ticket in {file}: ")
    assert "No such file" in waiting["reason"]
    file.write_text(hub.ticket[:20])  # not whole yet
    file.write_text(hub.ticket)
    ready = node.row()
    assert ready["hub"] == hub.ready["node_id"]
    with urllib.request.urlopen(f"http://{ready['http']}/readyz", timeout=5) as answer:
        assert json.load(answer) == {"status": "ready"}
    assert node.end(signal.SIGINT) == 130


def test_a_node_whose_hub_lost_its_identity_says_so(start: Start, tmp_path: Path) -> None:
    """The volume with the hub's data is gone, that with the tickets is not."""
    file = tmp_path / "ticket"
    options = ("hub", "--open", "--json", "--http", "off", "--ticket-file", file)
    first = start(*options, "--data", tmp_path / "old", "--bind", "127.0.0.1:0")
    old = first.row()
    node = start("lab", "node", f"@{file}", "--http", "127.0.0.1:0", "--json")
    assert node.row()["hub"] == old["node_id"]
    assert first.end(signal.SIGTERM) == 0, first.errors
    port = json.loads((tmp_path / "old/state.json").read_bytes())["port"]
    new = start(*options, "--data", tmp_path / "new", "--bind", f"127.0.0.1:{port}").row()
    assert node.process.wait(PATIENCE) == 3
    assert f"has the ticket of the hub {new['node_id'][:10]} now, not of {old['node_id'][:10]}" in node.errors
    assert "start this node again" in node.errors
    stale = broker("call", old["ticket"], "hub.spokes")
    assert stale.returncode == 3
    assert f"127.0.0.1:{port} is another NodeId than the ticket's" in stale.stderr
    assert "take its present ticket" in stale.stderr


def test_a_node_says_why_it_has_no_hub(start: Start, tmp_path: Path, hub: Running) -> None:
    node = start("lab", "node", hub.ticket, "--http", "127.0.0.1:0", "--json")
    address = node.row()["http"]
    assert hub.end(signal.SIGTERM) == 0
    until(lambda: not _ready(address))
    assert _why_not(address).startswith("no connection to the hub: ")
    assert "the connection to the hub ended" in _why_not(address) or "the hub did not answer" in _why_not(address)


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
