"""One participant of a run: ``python -m benchmarks.worker`` reads its job from stdin. Started by processes.py only."""

from __future__ import annotations

import asyncio
import importlib
import io
import traceback
from typing import Any

import orjson
import uvloop

from benchmarks.processes import WorkerIO

SYSTEMS = {
    "driven": ("ours", "driven"),
    "threaded": ("ours", "uvloop"),
    "threaded-asyncio": ("ours", "asyncio"),
    "before": ("ours", "driven"),
    "bare": ("bare", "driven"),
    "gossip": ("gossip_peer", "driven"),
    "nats": ("nats_peer", "uvloop"),
    "nats-asyncio": ("nats_peer", "asyncio"),
    "redis": ("redis_peer", "uvloop"),
    "redis-asyncio": ("redis_peer", "asyncio"),
}
"""Module and event loop. ``before`` is ``driven`` of another checkout (--against); peers run on uvloop, where they are
faster, unless asked otherwise."""


async def _main(job: dict[str, Any]) -> None:
    lines = await WorkerIO.open()
    try:
        role = getattr(importlib.import_module(f"benchmarks.{SYSTEMS[job['system']][0]}"), job["role"])
        await role(job, lines)
    except Exception as error:
        traceback.print_exc()
        lines.say({"failed": f"{job['system']} {job['role']}: {type(error).__name__}: {error}"})


def main() -> None:
    """The loop decides which mode the extension runs in: on our loop's thread, or beside uvloop on its own."""
    job = orjson.loads(io.FileIO(0, closefd=False).readline())  # unbuffered: the orders after it are for the loop
    loop = SYSTEMS[job["system"]][1]
    if loop == "driven":
        from broker import run

        run(_main(job))
    elif loop == "uvloop":
        uvloop.run(_main(job))
    else:
        asyncio.run(_main(job))


if __name__ == "__main__":
    main()
