"""The testbed as a person uses it: up, look, scale, break, look again, down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest

from grafana.boards import BOARDS
from grafana.draw import dashboard
from tests.cluster.testbed import Testbed, run, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

CHAOS_PATIENCE = 300.0
"""Seconds for two scenarios: each may take its SETTLE three times (broker/lab/chaos.py)."""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    bed = Testbed(f"brokertest{os.getpid()}")
    try:
        bed.build()
        bed.up(spokes=3)
        yield bed
    finally:
        bed.down()


def _targets_up(bed: Testbed, spokes: int) -> bool:
    up = [labels["job"] for labels, value in bed.query("up") if value == 1]
    return {job: up.count(job) for job in ("hub", "spoke", "observer")} == {"hub": 2, "spoke": spokes, "observer": 1}


def _flows(bed: Testbed) -> None:
    """Events reach the observer, and calls are answered, from now on."""
    received, answered = "sum(broker_observer_events_received_total)", 'sum(broker_calls_total{code="OK"})'
    before = bed.known(received), bed.known(answered)
    until(lambda: bed.value(received) > before[0] + 50 and bed.value(answered) > before[1] + 10, "traffic flows")


def _settled(bed: Testbed, sequences: int) -> None:
    """So many sequences are known, all of them are whole at one moment, and none has lost anything."""
    good = 'sum(broker_observer_sequences{verdict=~"complete|repaired"})'
    whole = f"{good} == sum(broker_observer_sequences)"
    until(lambda: bed.value(whole) >= sequences, f"{sequences} sequences, all of them complete or repaired")
    assert bed.value("sum(broker_observer_events_lost_total)") == 0


def test_the_testbed_comes_up_and_traffic_flows(testbed: Testbed) -> None:
    until(lambda: _targets_up(testbed, 3), "all targets are up in Prometheus")
    _flows(testbed)
    _settled(testbed, 3)


def test_scaled_nodes_appear_by_themselves(testbed: Testbed) -> None:
    (hub,) = testbed.compose("ps", "-q", "hub2").split()
    invite = run("docker", "exec", hub, "cat", "/invites/hub2")
    testbed.up(spokes=10)
    assert run("docker", "exec", hub, "cat", "/invites/hub2") == invite, "another invite for the same first hub"
    until(lambda: _targets_up(testbed, 10), "ten nodes are up in Prometheus")
    until(lambda: testbed.value("sum(broker_spokes_connected)") >= 11, "all have a hub")
    _settled(testbed, 10)


def test_the_hubs_are_one_realm(testbed: Testbed) -> None:
    """A node of the second hub publishes; the observer, at the first, gets it."""
    (hub,) = testbed.compose("ps", "-q", "hub2").split()
    before = testbed.known("sum(broker_observer_sequences)")
    run("docker", "exec", hub, "python3", "-m", "broker", "pub", "@/tickets/hub2", "lab.from-hub2", "{}")
    until(lambda: testbed.value("sum(broker_observer_sequences)") > before, "an event of hub2 at the observer")


def test_every_panel_shows_something(testbed: Testbed) -> None:
    """Each expression of each dashboard, on this Prometheus. What may be empty says why (grafana/boards/)."""
    _all_show(testbed, "")


def _all_show(bed: Testbed, profile: str) -> None:
    """The panels for which this profile is needed; no word: those for which none is."""
    wanted: dict[tuple[str, ...], str] = {
        (board.title, panel.title, legend): re.sub(r"\$\w+", ".*", expression)
        for board in BOARDS
        for panels in board.rows.values()
        for panel in panels
        for legend, expression in panel.queries.items()
        if not panel.empty and panel.profile == profile
    }
    assert wanted
    # A share of two rates has no value in an interval without events: each must have one at some time.
    until(lambda: not _drop(wanted, bed), ("panels that show nothing", wanted))


def _drop(wanted: dict[tuple[str, ...], str], bed: Testbed) -> dict[tuple[str, ...], str]:
    """Takes out what gives series now. Returns the rest."""
    for key in [key for key, expression in wanted.items() if bed.query(expression)]:
        del wanted[key]
    return wanted


def test_prometheus_evaluates_every_rule(testbed: Testbed) -> None:
    """None of them in error; each `record:` gives series; annotations are queries that can be asked."""
    groups = until(lambda: (testbed.api("rules") or {}).get("groups"), "rules")
    rules = [rule for group in groups for rule in group["rules"]]
    assert [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    recorded: dict[tuple[str, ...], str] = {
        ("rule", rule["name"]): rule["name"] for rule in rules if rule["type"] == "recording"
    }
    assert len(recorded) >= 3
    until(lambda: not _drop(recorded, testbed), ("rules that give no series", recorded))
    for board in BOARDS:
        for annotation in json.loads(dashboard(board))["annotations"]["list"]:
            assert testbed.api("query", query=annotation["expr"]) is not None, annotation


def test_a_hub_that_is_killed_comes_back_and_nothing_is_lost(testbed: Testbed) -> None:
    testbed.compose("kill", "hub1")
    until(lambda: testbed.value('sum(up{job="hub"})') == 1, "Prometheus sees that a hub is gone")
    until(lambda: testbed.query('ALERTS{alertname="HubDown", alertstate="firing"}'), "the alert fires")
    testbed.compose("start", "hub1")
    until(lambda: testbed.value("min(broker_spoke_connected)") == 1, "all nodes have their hub again")
    _flows(testbed)
    _settled(testbed, 10)


def test_the_chaos_profile_breaks_hubs_and_says_so(testbed: Testbed) -> None:
    """From inside the hubs' containers, a hub is killed or paused, twice: the one that most nodes are at."""
    testbed.compose("--profile", "chaos", "up", "-d", "--no-build", "--no-recreate", "chaos1", "chaos2")
    until(lambda: testbed.query("broker_chaos_active == 1"), "something is being broken, and Prometheus knows what")
    ended = "broker_chaos_scenarios_total"
    until(lambda: testbed.value(f"sum({ended})") >= 2, "two scenarios are over", CHAOS_PATIENCE)
    assert testbed.value('sum(broker_chaos_scenarios_total{judgement="failed"})') == 0, testbed.compose(
        "logs", "--no-color", "chaos1", "chaos2"
    )
    testbed.compose("--profile", "chaos", "stop", "chaos1", "chaos2")
    until(lambda: not testbed.query('up{job="chaos"}'), "whoever broke things is gone from Prometheus")
    until(lambda: testbed.value("min(broker_spoke_connected)") == 1, "what it broke is whole again")


AWAY = 3
"""Nodes behind the second router: two spokes and their observer."""


def _paths(bed: Testbed, path: str) -> float:
    """Spokes of the hub behind NAT that are on it."""
    return bed.value(f'sum(broker_spokes_connected{{node="home-hub", path="{path}"}})')


def _flows_through_nat(bed: Testbed) -> None:
    received = 'sum(broker_observer_events_received_total{node="away-observer"})'
    answered = 'sum(broker_calls_total{node="home-hub", code="OK"})'
    before = bed.known(received), bed.known(answered)
    until(lambda: bed.value(received) > before[0] + 20 and bed.value(answered) > before[1] + 2, "traffic through NAT")
    assert bed.value('sum(broker_observer_events_lost_total{node="away-observer"})') == 0


def test_behind_nat_the_relay_brings_spokes_to_their_hub_and_routers_decide_the_path(testbed: Testbed) -> None:
    testbed.up_nat()
    up = 'count(up{job="relay"} == 1) + count(up{node="home-hub"} == 1) + count(up{node=~"away-.*"} == 1)'
    until(lambda: testbed.value(up) == 2 + AWAY, "relay, hub and nodes are up in Prometheus")
    until(lambda: testbed.value('min(broker_relay_reachable{node="home-hub"})') == 1, "the hub is reached by its relay")
    until(lambda: _paths(testbed, "direct") == AWAY, "all have a direct path, which they cannot begin with")
    _flows_through_nat(testbed)
    _all_show(testbed, "nat")
    testbed.up_nat(AWAY_NAT="symmetric")
    until(lambda: _paths(testbed, "relay") == AWAY, "all are on the relay")
    _flows_through_nat(testbed)
    assert _paths(testbed, "direct") == 0, "through such a router no hole can be punched"
    testbed.down_nat()
    until(lambda: not testbed.query('up{job="relay"}'), "the relay is gone from Prometheus")


def test_containers_have_no_rights_they_do_not_need(testbed: Testbed) -> None:
    (hub,) = testbed.compose("ps", "-q", "hub1").split()
    inspected = run("docker", "inspect", "--format", "{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}", hub)
    assert inspected.split() == ["true", "broker"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        run("docker", "exec", hub, "touch", "/opt/broker/x")


def test_a_data_volume_that_is_read_only_is_named(testbed: Testbed) -> None:
    volume = ("-v", f"{testbed.project}_hub2:/data:ro")
    with pytest.raises(AssertionError, match=r"/data.*Read-only file system"):
        run("docker", "run", "--rm", *volume, testbed.env["BROKER_IMAGE"], "hub", "--open", "--data", "/data")


def test_an_image_that_is_missing_is_named(testbed: Testbed) -> None:
    env = {**testbed.env, "PROMETHEUS_IMAGE": "local/nobody-has-this:1"}
    with pytest.raises(AssertionError, match=r"local/nobody-has-this:1"):
        run("docker-compose", "up", "-d", "--no-build", "--no-deps", "prometheus", env=env)


def test_the_image_is_small(testbed: Testbed) -> None:
    sizes = [
        int(run("docker", "image", "inspect", "--format", "{{.Size}}", testbed.env[name]).strip())
        for name in ("BROKER_IMAGE", "BASE_IMAGE")
    ]
    assert sizes[0] - sizes[1] <= 120_000_000


def test_down_leaves_nothing(testbed: Testbed) -> None:
    assert testbed.left()
    testbed.down()
    assert testbed.left() == []
