"""Fifty nodes in containers, each with twenty events a second: all are seen, and nothing is lost.

It wants more than two processors and 6 GB, so CI leaves it out: `make fifty`."""

from __future__ import annotations

import os

import pytest

from tests.cluster.testbed import Testbed, until

pytestmark = [pytest.mark.large, pytest.mark.timeout(1800)]

NODES, RATE = 50, 20
PATIENCE = 600.0


def test_fifty_nodes_are_up_and_nothing_is_lost() -> None:
    bed = Testbed(f"brokerfifty{os.getpid()}")
    bed.env["SPOKE_RATE"] = str(RATE)
    received, load = "sum(broker_observer_events_received_total)", "sum(rate(broker_spoke_events_published_total[10s]))"
    try:
        bed.build()
        bed.up(spokes=NODES)
        until(lambda: bed.value('sum(up{job="spoke"})') == NODES, f"{NODES} nodes are up in Prometheus", PATIENCE)
        until(lambda: bed.value("sum(broker_spoke_connected)") == NODES + 1, "all have a hub", PATIENCE)
        until(lambda: bed.value(load) >= 0.9 * NODES * RATE, "the load is there", PATIENCE)
        before = bed.known(received)
        until(lambda: bed.value(received) > before + 20_000, "twenty seconds of it at the observer", PATIENCE)
        good = 'sum(broker_observer_sequences{verdict=~"complete|repaired"})'
        whole = f"{good} == sum(broker_observer_sequences)"
        until(lambda: bed.value(whole) >= NODES, "all sequences complete or repaired", PATIENCE)
        assert bed.value("sum(broker_observer_events_lost_total)") == 0
        assert bed.value('sum(up{job="spoke"})') == NODES
    finally:
        bed.down()
    assert bed.left() == []
