"""What a host tells of itself: load, memory, disks and processes, measured when asked for (psutil).

Not here: who asks (the demo and the testbed's nodes).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

__all__ = ["READINGS", "disks", "load", "memory", "processes", "processors"]

FRESH = 0.5
"""Seconds for which a reading of the processors is given again."""


class Processors:
    """How busy they are, since the last look; of two looks at once the second would see nothing. The first tells how
    busy they were since the machine started: nothing waits here, least of all an event loop."""

    def __init__(self) -> None:
        self._at, self._percent = 0.0, 0.0

    def percent(self) -> float:
        import psutil

        now = time.monotonic()
        if now - self._at >= FRESH:
            since_last = psutil.cpu_percent(interval=None)
            if self._at:
                self._percent = since_last
            else:
                times = psutil.cpu_times()
                self._percent = round(100 * (1 - times.idle / sum(times)), 1)
            self._at = now
        return self._percent


processors = Processors()


def load() -> dict[str, Any]:
    """Load averages and the use of the processors in the last second."""
    import psutil

    one, five, fifteen = psutil.getloadavg()
    return {"load": [round(one, 2), round(five, 2), round(fifteen, 2)], "cpu_percent": processors.percent()}


def memory() -> dict[str, Any]:
    """Memory and swap, in bytes."""
    import psutil

    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {"total": ram.total, "available": ram.available, "percent": ram.percent, "swap_used": swap.used}


def disks() -> list[dict[str, Any]]:
    """Mounted file systems and how full they are."""
    import psutil

    rows = []
    for partition in psutil.disk_partitions():
        with contextlib.suppress(OSError):  # a mount that this user may not look into
            usage = psutil.disk_usage(partition.mountpoint)
            rows.append({"mount": partition.mountpoint, "total": usage.total, "percent": usage.percent})
    return rows


def processes() -> dict[str, Any]:
    """How many processes there are, and the five that hold the most memory."""
    import psutil

    rows = [process.info for process in psutil.process_iter(["pid", "name", "memory_info"])]
    rows.sort(key=lambda info: info["memory_info"].rss if info["memory_info"] else 0, reverse=True)
    largest = [
        {"pid": info["pid"], "name": info["name"], "rss": info["memory_info"].rss}
        for info in rows[:5]
        if info["memory_info"]
    ]
    return {"count": len(rows), "largest": largest}


READINGS = {"host.load": load, "host.memory": memory, "host.disks": disks, "host.processes": processes}
