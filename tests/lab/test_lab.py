"""The lab as a person uses it, on loopback: up, who is there, down, and what is said when that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.lab import cluster
from broker.lab.cluster import Cluster, Member
from broker.lab.hands import LabHands
from broker.lab.internet import Internet, Lan
from broker.lab.network import Network
from broker.lab.scenario import scenarios
from tests.cli.processes import broker, rows
from tests.cli.test_lab import until

pytestmark = pytest.mark.timeout(180)
"""A lab and five commands, each a process."""


LAB_PATIENCE = 90.0


def lab(*args: object) -> subprocess.CompletedProcess[str]:
    return broker("lab", *args, patience=LAB_PATIENCE)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "lab"
    if (tmp_path / "lab/state.json").exists():
        lab("down", "--dir", tmp_path / "lab")


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and b"broker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_lab_comes_up_and_leaves_nothing_but_logs(directory: Path) -> None:
    up = lab("up", "--plain", "--spokes", 2, "--hubs", 1, "--dir", directory, "--json")
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
    again = lab("up", "--plain", "--dir", directory)
    assert (again.returncode, "there is a lab" in again.stderr) == (2, True)
    status = rows(lab("status", "--dir", directory, "--json").stdout)
    assert all(row["running"] for row in status)
    down = lab("down", "--dir", directory)
    assert down.returncode == 0, down.stderr
    assert not any(_alive(row["pid"]) for row in status)
    assert [path.name for path in directory.iterdir()] == ["logs"]


def _replace_pid(directory: Path, name: str, pid: int) -> int:
    """In the lab's memory. Returns what was there."""
    file = directory / "state.json"
    state = json.loads(file.read_text())
    (member,) = (row for row in state["members"] if row["name"] == name)
    before, member["pid"] = int(member["pid"]), pid
    file.write_text(json.dumps(state))
    return before


def test_a_process_of_somebody_else_is_not_ended(directory: Path) -> None:
    up = lab("up", "--plain", "--spokes", 1, "--hubs", 1, "--dir", directory, "--json")
    assert up.returncode == 0, up.stderr
    pid = _replace_pid(directory, "hub1", os.getpid())
    status = {row["name"]: row for row in rows(lab("status", "--dir", directory, "--json").stdout)}
    assert not status["hub1"]["running"]
    _replace_pid(directory, "hub1", pid)
    assert lab("down", "--dir", directory).returncode == 0


def test_no_lab_no_scenario_no_plain_links(directory: Path) -> None:
    missing = lab("down", "--dir", directory)
    assert (missing.returncode, "`broker lab up` makes one" in missing.stderr) == (2, True)
    unknown = lab("chaos", "--scenario", "sunshine", "--dir", directory)
    assert (unknown.returncode, "there is no scenario sunshine" in unknown.stderr) == (2, True)
    listed = rows(lab("chaos", "--list", "--json").stdout)
    assert len(listed) >= 20


def test_a_hub_that_gives_no_invite_in_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "INVITE_WITHIN", 0.01)
    built = Cluster(tmp_path, network=None)
    with pytest.raises(UsageError, match=r"did not write .*tickets/hub1 within 0\.01 s"):
        built.invite("hub2")
    built.ticket("hub1").parent.mkdir()
    built.ticket("hub1").write_text("x")
    with pytest.raises(UsageError, match=r"gave no invite for hub2 within 0\.01 s; .*logs/hub1\.log says why"):
        built.invite("hub2")


def test_a_lab_behind_nat_is_found_again_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "tickets").mkdir()
    internet = Internet("bl000", "10.99.9")
    internet.hosts.update(home=2, away=3, relay=4)
    for router, host in (("home", "hub1"), ("away", "spoke1")):
        internet.lans[router] = lan = Lan(internet, router)
        lan.hosts[host] = 2
    built = Cluster(tmp_path, network=internet)
    built.trusting = ("--relay-ca", "ca.pem")
    built.save()
    found = Cluster.load(tmp_path)
    assert found.internet is not None
    assert found.trusting == built.trusting
    assert found.internet.state() == internet.state()
    assert found.internet.address("spoke1") == "192.168.3.2"
    assert found.internet.routers(["spoke1", "relay"]) == ["away"]


def test_scenarios_say_which_lab_they_are_for(tmp_path: Path) -> None:
    known = scenarios()
    for network, fits, not_this, why in (
        (Internet("bl000", "10.99.9"), "direct-cut", "kill-both-hubs", "without routers, this one is --nat"),
        (Network("bl000", "10.99.9"), "cut-hub", "direct-cut", "behind NAT: `broker lab up --nat` makes one"),
    ):
        built = Cluster(tmp_path, network=network)
        built.members["prometheus"] = Member("prometheus", "prometheus", "127.0.0.1:1", [])
        hands = LabHands(built, 1)
        hands.check(known[fits])
        with pytest.raises(UsageError, match=why):
            hands.check(known[not_this])


def test_a_lab_behind_nat_has_one_hub_and_is_not_plain(directory: Path) -> None:
    plain = lab("up", "--nat", "--plain", "--dir", directory)
    assert (plain.returncode, "--nat needs routers, --plain has none" in plain.stderr) == (2, True)
    two = lab("up", "--nat", "--hubs", 2, "--dir", directory)
    assert (two.returncode, "behind NAT there is one hub" in two.stderr) == (2, True)
    assert not directory.exists()
