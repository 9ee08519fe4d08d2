"""What a scrape of a hub costs: for how long it holds the hub's loop up, and what the one who scrapes sees.

With and without every label used up: that is what spokes that invent topics and operations make of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from benchmarks.processes import Cpu, Worker

__all__ = ["scrapes"]

SCRAPES = 100
AS_PROMETHEUS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}
PAUSE = 0.05
"""Seconds between scrapes: each one finds the loop idle, as Prometheus does."""


async def scrapes(
    systems: Sequence[str],
    spokes: int,
    processes: int,
    log: Path,
    tell: Callable[[str, str, list[dict[str, Any]], tuple[str, ...], dict[str, Any]], None],
) -> None:
    """``tell(figure, system, turns, names, context)``."""
    for system in systems:
        async with AsyncExitStack() as stack:
            hub = await Worker.of({"system": system, "role": "hub", "http": "127.0.0.1:0"}, log)
            stack.push_async_callback(hub.end)
            for n in range(processes):
                share = spokes // processes + (n < spokes % processes)
                job = {"system": system, "role": "idle", "ticket": hub.ready["ticket"], "subscribers": share}
                stack.push_async_callback((await Worker.of(job, log)).end)
            session = await stack.enter_async_context(aiohttp.ClientSession(headers=AS_PROMETHEUS))
            url = f"http://{hub.ready['http']}/metrics"
            for labels in ("few", "all"):
                if labels == "all":
                    await hub.ask({"do": "fill"})
                seen = await hub.ask({"do": "look"})
                turn, text = await _turn(session, url, hub)
                series = sum(not line.startswith("#") for line in text.splitlines())
                context = {"spokes": seen["connected"], "labels": labels, "series": series, "bytes": len(text)}
                tell("scrape", system, [turn], tuple(turn), context)


async def _turn(session: aiohttp.ClientSession, url: str, hub: Worker) -> tuple[dict[str, float], str]:
    text, seconds = "", []
    held = (await hub.ask({"do": "encode", "times": SCRAPES}))["seconds"]
    cpu = Cpu(hub.pid)
    for _ in range(SCRAPES):
        began = time.perf_counter()
        async with session.get(url) as answer:
            text = await answer.text()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE)
    spent = cpu.since()["all"]
    return {
        "held_ms": median(held) * 1e3,
        "held_most_ms": max(held) * 1e3,
        "answer_ms": median(seconds) * 1e3,
        "answer_most_ms": max(seconds) * 1e3,
        "hub_cpu_ms": spent / SCRAPES * 1e3,
    }, text
