"""The goals of topics over gossip as rows of a run's table. Not here: figures (gossip.py), the table (report.py)."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

__all__ = ["NATIVE", "READERS", "gossip_rows"]

Figures = list[dict[str, Any]]
Row = tuple[str, str, str, str]
"""What, goal, reached, ratio."""

FLAT, FLAT_COUNTS = 1.2, (50, 200)
"""How much more the hub may spend an event at the second number of spokes than at the first."""
HOLE_SECONDS = 1.0
NATIVE = "gossip-native"
"""Ours, with spokes that count in Rust and decode nothing, as those of bare iroh-gossip do."""
READERS = {"gossip": "", NATIVE: " that count in Rust as bare's do"}
COSTS = (("hub_bytes", "bytes sent by the hub"), ("hub_cpu_us", "CPU us of the hub"))


def gossip_rows(figures: Figures) -> Iterator[Row]:
    """A row for each goal that the run has figures for; of several rounds the median, of what arrived the least."""
    yield from _flat_out(figures)
    yield from _latency(figures)
    yield from _cost(figures)
    yield from _auto(figures)
    yield from _repair(figures)


def _ratio(value: float, met: bool) -> str:
    return f"{value:.2f}{'' if met else '  MISSED'}"


def _rounds(figures: Figures, figure: str, system: str, count: int) -> Figures:
    wanted = (figure, system, count)
    return [one for one in figures if (one["figure"], one.get("system"), one.get("subscribers")) == wanted]


def _counts(figures: Figures, figure: str) -> list[int]:
    return sorted({one["subscribers"] for one in figures if one["figure"] == figure})


def _flat_out(figures: Figures) -> Iterator[Row]:
    for count in _counts(figures, "gossip-flat"):
        for system, readers in READERS.items():
            ours, bare = (_rounds(figures, "gossip-flat", one, count) for one in (system, "bare"))
            if not ours or not bare:
                continue
            mine, theirs = (median(one["per_second"] for one in some) for some in (ours, bare))
            came, bare_came = (min(one["delivered_percent"] for one in some) for some in (ours, bare))
            what = f"gossip, 1 author flat out, {count} spokes{readers}"
            yield f"{what}: delivered", "100 %", f"{came:g} % beside {bare_came:g} %", _ratio(came / 100, came == 100)
            reached = f"{mine:,.0f} beside {theirs:,.0f}"
            yield f"{what}: deliveries/s", ">= 3 × bare iroh-gossip", reached, _ratio(mine / theirs, mine >= 3 * theirs)


def _latency(figures: Figures) -> Iterator[Row]:
    for count in _counts(figures, "gossip-latency"):
        some = (_rounds(figures, "gossip-latency", system, count) for system in ("gossip", "bare"))
        times = [[one["p50_ms"] for one in rounds if one["p50_ms"]] for rounds in some]
        if all(times):
            mine, theirs = map(median, times)
            what = f"gossip, p50 in ms at 100 events/s, {count} spokes"
            reached = f"{mine:.2f} beside {theirs:.2f}"
            yield what, "<= 1.5 × bare iroh-gossip", reached, _ratio(mine / theirs, mine <= 1.5 * theirs)


def _costs(figures: Figures, key: str) -> dict[str, dict[int, float]]:
    """By carrier and number of spokes."""
    return {
        carrier: {
            count: median(one[key] for one in rounds)
            for count in _counts(figures, "gossip-cost")
            if (rounds := _rounds(figures, "gossip-cost", carrier, count))
        }
        for carrier in ("gossip", "stream")
    }


def _cost(figures: Figures) -> Iterator[Row]:
    for key, what in COSTS:
        costs = _costs(figures, key)
        few, many = FLAT_COUNTS
        for carrier, by_count in costs.items():
            if few not in by_count or many not in by_count or by_count[few] <= 0:
                continue
            ratio = by_count[many] / by_count[few]
            reached = ", ".join(f"{count}: {cost:,.0f}" for count, cost in by_count.items())
            goal, met = ("(none; grows)", True)
            if carrier == "gossip":
                goal, met = f"within 20 % from {few} to {many}", 1 / FLAT <= ratio <= FLAT
            yield f"{what} an event by {carrier}, by spokes", goal, reached, _ratio(ratio, met)
        if costs["gossip"] and costs["stream"]:
            yield f"{what}: gossip is cheaper from", "(shown)", crossing(costs["gossip"], costs["stream"]), ""


def crossing(gossip: dict[int, float], stream: dict[int, float]) -> str:
    """The number of spokes at which streams begin to cost more, on a straight line between what was measured."""
    both = sorted(gossip.keys() & stream.keys())
    before = None
    for count in both:
        more = stream[count] - gossip[count]
        if more > 0:
            if before is None:
                return f"{count} spokes or fewer"
            last, less = before
            return f"{last + (count - last) * -less / (more - less):.0f} spokes"
        before = count, more
    return f"more than {both[-1]} spokes" if both else "nothing measured"


def _auto(figures: Figures) -> Iterator[Row]:
    for one in figures:
        if one["figure"] == "gossip-auto" and (cheaper := one.get("cheaper")) is not None:
            met = one["carrier"] == cheaper
            what = f"auto with {one['subscribers']} spokes, {one['uplink_bytes']:,} bytes/s of uplink"
            yield what, f"the cheaper: {cheaper}", one["carrier"], "" if met else "MISSED"


def _repair(figures: Figures) -> Iterator[Row]:
    for one in figures:
        if one["figure"] != "gossip-repair":
            continue
        seconds, holes = one["seconds"], one["holes"]
        what = f"s to repair a hole of {one['hole_events']:,} events at {holes} spokes"
        goal, met = (f"< {HOLE_SECONDS:g}", seconds < HOLE_SECONDS) if holes == 1 else ("(none)", True)
        yield what, goal, f"{seconds:.2f}", _ratio(seconds / HOLE_SECONDS, met)
        if holes > 1:
            served, merged = one["repairs_served"], one["repairs_merged"]
            reached = f"{merged:,} of the look-ups for {served:,} questions"
            yield f"hub work for the same hole at {holes} spokes", "merged", reached, "" if merged else "MISSED"
