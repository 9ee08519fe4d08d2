"""The lab as a person uses it, on loopback: up, who is there, down, and what is said when that cannot be."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import broker, rows
from tests.cli.test_lab import until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "lab"
    if (tmp_path / "lab/state.json").exists():
        broker("lab", "down", "--dir", tmp_path / "lab")


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and b"broker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_lab_comes_up_and_leaves_nothing_but_logs(directory: Path) -> None:
    up = broker("lab", "up", "--plain", "--spokes", 2, "--hubs", 1, "--dir", directory, "--json")
    assert up.returncode == 0, up.stderr
    members = {row["name"]: row for row in rows(up.stdout)}
    assert {"hub1", "spoke1", "spoke2", "observer"} <= set(members)

    def received() -> bool:
        try:
            with urllib.request.urlopen(members["observer"]["http"] + "/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return False
        counts = [float(line.split()[1]) for line in lines if line.startswith("broker_observer_events_received_total")]
        return sum(counts) > 3

    until(received)
    again = broker("lab", "up", "--plain", "--dir", directory)
    assert (again.returncode, "there is a lab" in again.stderr) == (2, True)
    status = rows(broker("lab", "status", "--dir", directory, "--json").stdout)
    assert all(row["running"] for row in status)
    down = broker("lab", "down", "--dir", directory)
    assert down.returncode == 0, down.stderr
    assert not any(_alive(row["pid"]) for row in status)
    assert [path.name for path in directory.iterdir()] == ["logs"]


def test_a_process_of_somebody_else_is_not_ended(directory: Path) -> None:
    up = broker("lab", "up", "--plain", "--spokes", 1, "--hubs", 1, "--dir", directory, "--json")
    assert up.returncode == 0, up.stderr
    state = directory / "state.json"
    pid = rows(up.stdout)[0]["pid"]
    state.write_text(state.read_text().replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
    status = {row["name"]: row for row in rows(broker("lab", "status", "--dir", directory, "--json").stdout)}
    assert not status["hub1"]["running"]
    state.write_text(state.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {pid}'))
    assert broker("lab", "down", "--dir", directory).returncode == 0


def test_no_lab_no_scenario_no_plain_links(directory: Path) -> None:
    missing = broker("lab", "down", "--dir", directory)
    assert (missing.returncode, "`broker lab up` makes one" in missing.stderr) == (2, True)
    unknown = broker("lab", "chaos", "--scenario", "sunshine", "--dir", directory)
    assert (unknown.returncode, "there is no scenario sunshine" in unknown.stderr) == (2, True)
    listed = rows(broker("lab", "chaos", "--list", "--json").stdout)
    assert len(listed) >= 20
