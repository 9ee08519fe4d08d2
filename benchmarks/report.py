"""Where the figures go: one JSON line each, and a table of the goals for people."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gossip_goals import READERS, gossip_rows

__all__ = ["goals", "machine", "markdown"]

Figures = list[dict[str, Any]]
CARRIERS = (*READERS, "stream", "auto")
"""What the figures of gossip name as their system, when it is ours."""


def machine() -> dict[str, Any]:
    """What the run was made on, and what else was going on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "figure": "machine",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _package(name) for name in ("uvloop", "orjson", "nats-py", "redis", "hiredis")},
        "nats-server": _said("nats-server", "--version"),
        "redis-server": _said("redis-server", "--version"),
        "commit": _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "load": [round(one, 2) for one in os.getloadavg()],
        "others": _others(),
    }


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "-"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _others() -> list[str]:
    """Processes that are taking CPU besides this one, over half a second."""
    own, seen = os.getpid(), []
    for process in psutil.process_iter():
        try:
            process.cpu_percent()
            seen.append(process)
        except psutil.Error:
            continue
    psutil.cpu_percent(0.5)
    busy: list[tuple[float, str]] = []
    for process in seen:
        try:
            if process.pid != own and (percent := process.cpu_percent()) >= 5:
                busy.append((percent, process.name()))
        except psutil.Error:
            continue
    return [f"{name} {percent:.0f} %" for percent, name in sorted(busy, reverse=True)[:8]]


def _find(figures: Figures, figure: str, system: str, **context: Any) -> dict[str, Any] | None:
    for one in reversed(figures):
        if (
            one["figure"] == figure
            and one["system"] == system
            and all(one.get(key) == value for key, value in context.items())
        ):
            return one
    return None


OURS = ("driven", "threaded")
NAMES = {
    "driven": "ours, one thread",
    "threaded": "ours, uvloop + thread",
    "nats": "NATS + TLS",
    "redis": "Redis Streams + TLS",
    "before": "ours, the other checkout",
    "nats-asyncio": "NATS + TLS (asyncio loop)",
    "bare": "the extension alone",
}


def goals(figures: Figures) -> list[tuple[str, str, str, str]]:
    """(what, goal, reached, ratio) for each of the goals that the run has figures for."""
    rows: list[tuple[str, str, str, str]] = []

    def compare(
        what: str, goal: str, key: str, least: bool, bound: float, peer: str, figure: str, **context: Any
    ) -> None:
        theirs = _find(figures, figure, peer, **context)
        for system in OURS:
            mine = _find(figures, figure, system, **context)
            if mine is None or theirs is None or not theirs[key]:
                continue
            ratio = mine[key] / theirs[key]
            met = ratio >= bound if least else ratio <= bound
            reached = f"{mine[key]:,.0f} beside {theirs[key]:,.0f} ({NAMES[system]})"
            rows.append((what, goal, reached, f"{ratio:.2f}{'' if met else '  MISSED'}"))

    compare("call p50, us, one at a time", "<= 0.8 × NATS", "p50_us", False, 0.8, "nats", "calls", inflight=1)
    compare("call p99, us, one at a time", "(none)", "p99_us", False, 1e9, "nats", "calls", inflight=1)
    compare("calls/s, 64 in flight", ">= 2 × NATS", "per_second", True, 2, "nats", "calls", inflight=64)
    for count in (10, 100, 1000):
        bounds = (4.0, 1.8) if count == 100 else (0.0, 0.0)
        for peer, bound in zip(("nats", "redis"), bounds, strict=True):
            goal = (
                f">= {bound:g} × {NAMES[peer].split(' +')[0]}"
                if bound
                else f"(none; beside {NAMES[peer].split(' +')[0]})"
            )
            what = f"deliveries/s, {count} Python subscribers"
            compare(what, goal, "per_second", True, bound, peer, "fanout", subscribers=count)
            if peer == "nats":
                what = f"deliveries/s, {count} native subscribers"
                compare(what, "(none; beside NATS)", "per_second", True, 0, peer, "fanout-native", subscribers=count)
        what, goal = f"deliveries/s, {count} native subscribers", ">= 0.8 × the extension alone"
        compare(what, goal, "per_second", True, 0.8, "bare", "fanout-native", subscribers=count)
    for system in OURS:
        direct, by_hub = (_find(figures, "direct", system, path=path) for path in ("direct", "hub"))
        if direct is not None and by_hub is not None:
            ratio = direct["p50_us"] / by_hub["p50_us"]
            reached = f"{direct['p50_us']:,.0f} beside {by_hub['p50_us']:,.0f} ({NAMES[system]})"
            met = "" if ratio <= 0.6 else "  MISSED"
            rows.append(("call p50, us, spoke to spoke directly", "<= 0.6 × by the hub", reached, f"{ratio:.2f}{met}"))
    rows += _cost_rows(figures)
    rows += gossip_rows(figures)
    for system in OURS:
        if (one := _find(figures, "memory", system)) is not None:
            kib = one["kib_per_spoke"]
            met = "" if kib <= 115 else "  MISSED"
            rows.append(
                (
                    f"hub KiB per idle spoke at {one['spokes']:,}",
                    "<= 115",
                    f"{kib:.0f} ({NAMES[system]})",
                    f"{kib / 115:.2f}{met}",
                )
            )
    for one in figures:
        if one["figure"] == "scrape":
            ms = one["held_ms"]
            what = f"ms that a scrape holds a hub of {one['spokes']:,} spokes up, {one['labels']} labels in use"
            reached = f"{ms:.1f}, {one['series']:,} series ({NAMES[one['system']]})"
            rows.append((what, "< 20", reached, f"{ms / 20:.2f}{'' if ms < 20 else '  MISSED'}"))
    lost = sum(
        one.get("missing", 0) + one.get("doubled", 0) + one.get("faults", 0)
        for one in figures
        if one.get("system") in (*OURS, *CARRIERS)
    )
    ends = sum(len(one.get("disconnected", ())) for one in figures if one.get("system") in OURS)
    if ends:
        rows.append(("native readers whose connection ended", "0", f"{ends}", "MISSED"))
    rows.append(("events lost, doubled or out of order in any run", "0", f"{lost}", "" if not lost else "MISSED"))
    return rows


def _cost_rows(figures: Figures) -> Iterable[tuple[str, str, str, str]]:
    for system in OURS:
        costs = {
            one["subscribers"]: one for one in figures if one["figure"] == "event-cost" and one["system"] == system
        }
        if len(costs) < 2:
            continue
        least, most = min(costs), max(costs)
        counted = []
        for count in sorted(costs):
            one = costs[count]
            sizes = f"{min(one['events_per_batch']):g} to {max(one['events_per_batch']):g}"
            counted.append(f"{count}: {one['functions_per_event']:g} (batches of {sizes})")
        counts = ", ".join(counted)
        ratio = costs[most]["functions_per_event"] / costs[least]["functions_per_event"]
        met = "" if ratio < 1.1 else "  MISSED"
        yield (
            "Python functions run in the hub per event, by N",
            "flat",
            f"{counts} ({NAMES[system]})",
            f"{ratio:.2f}{met}",
        )
        for name, what in (
            ("python_thread_cpu_us", "CPU us of the Python thread"),
            ("hub_cpu_us", "CPU us of the hub in all"),
        ):
            if name == "python_thread_cpu_us" and system == "driven":
                continue  # there the network is on it too
            counts = ", ".join(f"{count}: {costs[count][name]:.1f}" for count in sorted(costs))
            yield (
                f"{what} per event, by N",
                "(none)",
                f"{counts} ({NAMES[system]})",
                f"{costs[most][name] / costs[least][name]:.2f}",
            )


def markdown(figures: Figures) -> str:
    """The run for people: machine, goals, and every figure with its load."""
    head = figures[0]
    lines = [
        f"# Run of {head['date']}",
        "",
        f"{head['cores']} × {head['cpu']}, {head['memory_gib']} GiB, Linux {head['kernel']}, Python {head['python']}, "
        f"commit {head['commit']}. Load before the run {head['load']}; "
        f"other processes: {', '.join(head['others']) or 'none'}.",
        f"{head['nats-server']}, nats-py {head['nats-py']}; {head['redis-server'].split(' sha')[0]}, "
        f"redis-py {head['redis']} with "
        f"hiredis {head['hiredis']}; uvloop {head['uvloop']}. All over loopback with TLS 1.3.",
        "",
        "| what | goal | reached | ratio |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in goals(figures)),
        "",
        "| figure | system | result | load |",
        "|---|---|---|---|",
    ]
    for one in figures[1:]:
        hidden = ("figure", "system", "load")
        shown = [
            f"{key} {_short(value)}" for key, value in one.items() if key not in hidden and not key.endswith("_turns")
        ]
        bare = one["system"] == "bare" and one["figure"].startswith("gossip")
        name = "bare iroh-gossip" if bare else NAMES.get(one["system"], one["system"])
        lines.append(f"| {one['figure']} | {name} | {', '.join(shown)} | {one['load'][0]} |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float) and value >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
