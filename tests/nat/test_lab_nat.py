"""``broker lab nat`` as a person uses it: its table, what it says when it cannot be, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from broker.lab.authority import LIFE, issued_once
from broker.lab.internet import sweep
from broker.lab.nat import Pair, Run, expected, parse_pair
from tests.cli.processes import COMMAND, ROOT, Running, broker, environment, rows
from tests.faults.gossiping import until

KEYS = {"hub_nat", "spoke_nat", "path", "first_byte_ms", "direct_ms", "calls_per_s"}


def _run(path: str, failed: int = 0) -> Run:
    return Run(path, 20.0, 30.0 if path == "direct" else None, 100, failed, 50.0, 1.0)


def test_a_pair_passes_when_each_run_ends_on_the_path_that_it_should_and_no_call_fails() -> None:
    assert Pair("port-keeping", "port-keeping", [_run("direct"), _run("direct")]).passed
    assert not Pair("port-keeping", "port-keeping", [_run("direct"), _run("relay")]).passed
    assert Pair("port-keeping", "symmetric", [_run("relay")]).passed
    assert not Pair("port-keeping", "symmetric", [_run("relay", failed=1)]).passed
    assert not Pair("port-keeping", "symmetric", [_run("relay")], ["the hub ended"]).passed
    assert not Pair("port-keeping", "symmetric").passed


def test_a_row_has_medians_and_says_none_where_nothing_was() -> None:
    row = Pair("symmetric", "udp-blocked", faults=["caller was not done"]).row()
    assert row.keys() >= KEYS
    assert (row["path"], row["first_byte_ms"], row["direct_ms"], row["passed"]) == ("none", None, None, False)
    row = Pair("port-keeping", "port-keeping", [_run("direct"), _run("direct"), _run("relay")]).row()
    assert (row["path"], row["direct_ms"], row["paths"]) == ("direct", 30.0, {"direct": 2, "relay": 1})


def test_what_a_caller_says_becomes_a_run() -> None:
    calls = {"event": "calls", "path": "direct", "calls": 9, "failed": {"TIMEOUT": 2}, "left_out": 1,
             "calls_per_s": 4.5, "p50_ms": 0.4}  # fmt: skip
    said = [
        {"event": "path", "path": "relay", "ms": 11.0}, {"event": "answer", "ms": 12.0},
        {"event": "path", "path": "direct", "ms": 20.0}, {"event": "path", "path": "relay", "ms": 30.0},
        {"event": "path", "path": "direct", "ms": 40.0}, calls,
    ]  # fmt: skip
    assert Run.of(said) == Run("direct", 12.0, 20.0, 9, 3, 4.5, 0.4)


@pytest.mark.parametrize("text", ["symmetric", "symmetric/", "port-keeping/sieve"])
def test_a_pair_that_there_is_not_is_refused(text: str) -> None:
    done = broker("lab", "nat", "--pair", text)
    assert (done.returncode, "HUB_NAT/SPOKE_NAT" in done.stderr) == (2, True)
    assert parse_pair("symmetric/port-keeping") == ("symmetric", "port-keeping")


def test_without_root_or_tools_it_says_what_is_missing(tmp_path: Path) -> None:
    done = broker("lab", "nat", PATH=str(tmp_path))
    assert (done.returncode, "apt-get install iproute2 nftables" in done.stderr) == (2, True)


def _spaces(prefix: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(prefix)]


@pytest.mark.system
@pytest.mark.timeout(180)
def test_the_table_is_as_it_must_be(tmp_path: Path) -> None:
    """Direct where holes can be punched, by relay elsewhere, and no call fails. `broker lab nat` has all nine pairs."""
    pairs = [("port-keeping", "port-keeping"), ("symmetric", "symmetric"), ("udp-blocked", "port-keeping")]
    chosen = [word for pair in pairs for word in ("--pair", "/".join(pair))]
    command = [*COMMAND, "lab", "nat", "--json", "--seconds", "1", "--watch", "2", "--logs", str(tmp_path), *chosen]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=170, check=False, cwd=ROOT
    )
    table = rows(done.stdout)
    assert done.returncode == 0, (table, done.stderr)
    assert [(row["hub_nat"], row["spoke_nat"]) for row in table] == pairs
    for row in table:
        assert row.keys() >= KEYS
        wanted = expected(row["hub_nat"], row["spoke_nat"])
        assert (row["path"], row["failed"], row["direct_ms"] is None) == (wanted, 0, wanted == "relay")
        assert row["calls_per_s"] > 0
        assert row["direct_ms"] is None or row["direct_ms"] < 1_000


@pytest.mark.system
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGINT, "server"), (signal.SIGTERM, "relay"), (signal.SIGKILL, "relay")]
)
def test_it_leaves_nothing_when_it_is_interrupted(tmp_path: Path, number: signal.Signals, when: str) -> None:
    """One that is killed leaves it to the next."""
    log = tmp_path / f"logs/{when}.log"
    with Running("lab", "nat", "--json", "--seconds", 60, "--logs", tmp_path, errors=tmp_path / "errors") as lab:
        until(lambda: log.exists() and '"ready"' in log.read_text(), 60)
        prefix = json.loads((tmp_path / "state.json").read_text())["network"]["prefix"]
        assert len(_spaces(prefix)) == 8, "the segment, a relay, three routers and who is behind them"
        assert lab.end(number) == (-number if number == signal.SIGKILL else 130), lab.errors
    if number == signal.SIGKILL:
        assert len(_spaces(prefix)) == 8
        sweep()
    assert not _spaces(prefix)


def test_no_network_but_a_containers_own_becomes_a_router() -> None:
    """A host that nobody knows: without the refusal it would be the one that is missed, and nothing more."""
    done = broker("lab", "router", "nobody.invalid", "--nat", "symmetric")
    assert (done.returncode, "a router is a container of its own" in done.stderr) == (2, True)


def test_a_certificate_stays_until_it_is_for_another_host_or_old(tmp_path: Path) -> None:
    def made(host: str) -> tuple[bytes, bytes]:
        issued = issued_once(tmp_path, "relay", [host])
        return issued.cert.read_bytes(), (tmp_path / "ca.pem").read_bytes()

    first = made("192.0.2.1")
    assert made("192.0.2.1") == first
    second = made("192.0.2.2")
    assert not set(second) & set(first)
    old = (tmp_path / "relay.pem").stat().st_mtime - LIFE.total_seconds() / 2
    os.utime(tmp_path / "relay.pem", (old, old))
    assert not set(made("192.0.2.2")) & set(second)
