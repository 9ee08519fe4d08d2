"""Connections through NAT live through what happens to networks: 100 calls and 100 events a second go on meanwhile, and
no event is lost. Each program is on a host of its own.

Where a direct path is cut, a router forgets, or a spoke's address changes, no call fails. Where a relay ends that
carries something, calls can fail: what was on the way is sent again when iroh gives that path up, which for a relay's
is after 30 s (RELAY_PATH_MAX_IDLE_TIMEOUT, no setting), and whoever calls 100 times a second has more calls waiting
than may be."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.gossiping import until
from tests.nat.rig import Traffic, Wan, a_wan

pytestmark = pytest.mark.timeout(300)
system = pytest.mark.system

SOON = 20.0
"""Seconds in which a path is found; how fast it is in quiet is what `broker lab nat` measures."""
AGAIN = 60.0
"""Seconds in which a path is direct again when a public address has changed that nobody tells of: iroh asks for its own
every 20 to 26 s."""
RESTART = 10.0
"""Seconds in which all are back when the hub is, or another relay takes over."""
MORE_THAN_WAIT = 1_200
"""Events, and calls in the same time: of which 1,024 may be under way."""
STALL = 60.0
"""Seconds in which all goes on where something was on the way through a path that ended: twice iroh's own 30 s."""


def _no_call_failed(traffic: Traffic) -> None:
    calls = traffic.ends()
    assert (calls["failed"], calls["connects"]) == ({}, 1), calls


@system
def test_the_relay_takes_over_when_the_direct_path_is_cut_and_gives_it_back(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.lans["near"].refuse(wan.internet.address("nat-hub"))
        traffic.wait_path("relay", SOON)
        traffic.flows(SOON)
        wan.lans["near"].mend()
        traffic.wait_path("direct", SOON)
        _no_call_failed(traffic)


@system
def test_a_router_forgets_its_flows_and_goes_on_from_new_ports(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.lans["near"].rebind()
        traffic.wait_path("relay", SOON)
        traffic.flows(STALL)
        wan.lans["hub"].rebind()
        traffic.flows(STALL)
        traffic.ends()


@system
def test_no_call_fails_when_the_routers_forget_their_flows(tmp_path: Path) -> None:
    """Who calls on and on has more calls waiting than may be when an answer is missing for 10 s. That can be until QUIC
    sends again what was lost with a path (docs/decisions/0011)."""
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        for router in ("near", "hub"):
            wan.lans[router].rebind()
            traffic.flows(STALL, MORE_THAN_WAIT)
        _no_call_failed(traffic)


@system
def test_a_spokes_address_changes(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.lans["near"].move("near")
        traffic.flows(SOON)
        traffic.wait_path("direct", SOON)
        _no_call_failed(traffic)


@system
def test_the_hubs_own_address_changes_and_then_its_routers(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.lans["hub"].move("hub")
        traffic.flows(STALL)
        traffic.wait_path("direct", SOON)
        wan.lans["hub"].redial()
        traffic.wait_path("relay", SOON)
        traffic.flows(STALL)
        traffic.wait_path("direct", AGAIN)
        traffic.ends()


@system
def test_who_is_on_a_direct_path_for_a_while_does_not_miss_the_relay(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        for _ in range(4):
            traffic.flows(SOON)
        wan.relays["relay1"].kill()
        for _ in range(3):
            traffic.flows(STALL)
        assert traffic.path == "direct"
        wan.start_relay("relay1")
        traffic.flows(STALL)
        traffic.ends()


@system
def test_nobody_misses_the_relay_as_soon_as_all_are_direct(tmp_path: Path) -> None:
    """Who is not, when the only relay dies, has no way: the hub's router lets in nobody unasked."""
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        until(lambda: _paths(wan) == {"direct"}, SOON, lambda: traffic.caller.rows())
        wan.relays["relay1"].kill()
        for _ in range(3):
            traffic.flows(RESTART)
        assert traffic.path == "direct"
        traffic.ends()


def _paths(wan: Wan) -> set[str]:
    """Of all spokes but the one that asks, as the hub sees them."""
    asks = wan.spoke("near", "call", "hub.spokes", "{}")
    assert asks.status(SOON) == 0, asks.errors
    (page,) = asks.rows()
    return {row["path"] for row in page["rows"] if row["name"] != "broker call"}


@system
@pytest.mark.parametrize("name", ["relay1", "relay2"])
def test_one_relay_of_two_is_stopped_for_ever(tmp_path: Path, name: str) -> None:
    """Either of them: all are at home on one. Calls that are under way over it fail."""
    with a_wan(tmp_path, hub="symmetric", spokes="symmetric", relays=2) as wan:
        traffic = wan.traffic()
        traffic.wait_path("relay", SOON)
        wan.relays[name].kill()
        traffic.flows(RESTART)
        calls_go(wan)
        traffic.ends()


@system
def test_who_needs_the_relay_goes_on_when_it_is_there_again(tmp_path: Path) -> None:
    """Calls can fail meanwhile: there is no way."""
    with a_wan(tmp_path, hub="symmetric", spokes="symmetric") as wan:
        traffic = wan.traffic()
        traffic.wait_path("relay", SOON)
        wan.relays["relay1"].send(signal.SIGTERM)
        wan.relays["relay1"].status(SOON)
        wan.start_relay("relay1")
        traffic.flows(STALL)
        calls_go(wan)
        traffic.ends()


def calls_go(wan: Wan) -> None:
    call = wan.spoke("near", "call", "lab.echo", '{"n": 7}')
    assert (call.status(3 * SOON), call.rows()) == (0, [7]), call.errors


@system
def test_a_hub_behind_nat_is_killed_and_started_again(tmp_path: Path) -> None:
    with a_wan(tmp_path) as wan:
        traffic = wan.traffic()
        traffic.wait_path("direct", SOON)
        wan.hub_program.kill()
        wan.start_hub()
        back = time.monotonic()
        traffic.flows(RESTART)
        traffic.wait_path("direct", RESTART)
        assert time.monotonic() - back < RESTART
        assert traffic.ends()["connects"] == 2
