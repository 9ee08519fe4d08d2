"""What a benchmark's table says of gossip: each goal met and missed, and nothing of what was not measured."""

from __future__ import annotations

from typing import Any

from benchmarks.gossip_goals import crossing
from benchmarks.report import goals


def figure(name: str, system: str, subscribers: int, **values: Any) -> dict[str, Any]:
    return {"figure": name, "system": system, "subscribers": subscribers, **values}


def cost(system: str, subscribers: int, spent: float) -> dict[str, Any]:
    return figure("gossip-cost", system, subscribers, hub_bytes=spent, hub_cpu_us=spent)


GOOD = [
    *(
        figure("gossip-flat", "gossip", 10, per_second=rate, delivered_percent=100.0)
        for rate in (9_000, 10_000, 11_000)
    ),
    figure("gossip-flat", "gossip-native", 10, per_second=12_000, delivered_percent=100.0),
    figure("gossip-flat", "bare", 10, per_second=3_000, delivered_percent=98.0),
    figure("gossip-latency", "gossip", 50, p50_ms=3.0),
    figure("gossip-latency", "bare", 50, p50_ms=2.0),
    *(cost("gossip", count, spent) for count, spent in ((10, 2_000), (50, 2_100), (200, 2_400))),
    *(cost("stream", count, spent) for count, spent in ((10, 1_000), (50, 20_000), (200, 80_000))),
    figure("gossip-auto", "auto", 10, uplink_bytes=500, cheaper="stream", carrier="stream"),
    figure("gossip-auto", "auto", 10, uplink_bytes=None, cheaper=None, carrier="gossip"),
    figure("gossip-repair", "gossip", 100, seconds=0.7, holes=1, hole_events=1_000),
    figure(
        "gossip-repair", "gossip", 100, seconds=2.7, holes=100, hole_events=1_000, repairs_served=100, repairs_merged=95
    ),
]
BAD = [
    figure("gossip-flat", "gossip", 10, per_second=8_000, delivered_percent=99.9),
    figure("gossip-flat", "gossip-native", 10, per_second=8_900, delivered_percent=100.0),
    figure("gossip-flat", "bare", 10, per_second=3_000, delivered_percent=98.0),
    figure("gossip-latency", "gossip", 50, p50_ms=3.1),
    figure("gossip-latency", "bare", 50, p50_ms=2.0),
    *(cost("gossip", count, spent) for count, spent in ((50, 2_000), (200, 2_500))),
    figure("gossip-auto", "auto", 10, uplink_bytes=500, cheaper="stream", carrier="gossip"),
    figure("gossip-repair", "gossip", 100, seconds=1.1, holes=1, hole_events=1_000),
    figure(
        "gossip-repair", "gossip", 100, seconds=0.7, holes=100, hole_events=1_000, repairs_served=100, repairs_merged=0
    ),
]


def rows(figures: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Without the last, which is of all figures."""
    return goals([{"figure": "machine"}, *figures])[:-1]


def test_goals_that_are_met() -> None:
    found = rows(GOOD)
    assert len(found) == 15
    assert not any("MISSED" in row[3] for row in found), found
    assert (
        "gossip, 1 author flat out, 10 spokes: deliveries/s",
        ">= 3 × bare iroh-gossip",
        "10,000 beside 3,000",
        "3.33",
    ) in found
    assert [row[2] for row in found if "cheaper from" in row[0]] == ["12 spokes", "12 spokes"]


def test_goals_that_are_missed() -> None:
    found = [row[0] for row in rows(BAD) if "MISSED" in row[3]]
    assert len(found) == 9, rows(BAD)


def test_what_was_not_measured_is_no_row() -> None:
    assert (
        rows([figure("gossip-flat", "gossip", 10, per_second=1, delivered_percent=1.0), cost("gossip", 50, 1.0)]) == []
    )


def test_where_streams_begin_to_cost_more() -> None:
    assert crossing({10: 5, 50: 5}, {10: 3, 50: 7}) == "30 spokes"
    assert crossing({10: 5, 50: 5}, {10: 9, 50: 7}) == "10 spokes or fewer"
    assert crossing({10: 5, 50: 5}, {10: 1, 50: 2}) == "more than 50 spokes"
