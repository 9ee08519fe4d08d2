"""Processes of a run: each participant is one, is told what to do a line at a time, and is ended by its pid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import orjson
import psutil

__all__ = ["AGAINST", "Cpu", "Process", "Worker", "WorkerIO"]

AGAINST = "BROKER_BENCH_AGAINST"

READY_SECONDS = 120.0
END_SECONDS = 5.0
LINE_BYTES = 16 << 20


class Cpu:
    """CPU seconds of a process since the last look; in ns from the scheduler, by thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = self._read()

    def _read(self) -> dict[str, int]:
        threads: dict[str, int] = {}
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                name = "main" if task.name == str(self._pid) else (task / "comm").read_text().strip()
                threads[name] = threads.get(name, 0) + int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # the thread has ended meanwhile
        return threads

    def since(self) -> dict[str, float]:
        """Seconds by thread name (``main`` is the first thread), and ``all``."""
        now, last = self._read(), self._last
        self._last = now
        spent = {name: (ns - last.get(name, 0)) / 1e9 for name, ns in now.items()}
        return {**spent, "all": sum(spent.values())}


class Process:
    """One child. Ended by pid, at the latest when the run is over."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, *command: str, log: Path, **options: Any) -> Self:
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *command, stderr=errors, limit=LINE_BYTES, start_new_session=True, **options
            )
        return cls(process)

    @property
    def rss(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    async def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is not None:
                return
            self.process.send_signal(number)
            try:
                async with asyncio.timeout(END_SECONDS):
                    await self.process.wait()
            except TimeoutError:
                continue


class Worker(Process):
    """A process of benchmarks.worker: JSON lines to its stdin, JSON lines from its stdout."""

    @classmethod
    async def of(cls, job: dict[str, Any], log: Path) -> Self:
        pipe = asyncio.subprocess.PIPE
        # `python -m` finds `broker` in the working directory first: so one run compares two checkouts.
        where = os.environ[AGAINST] if job["system"] == "before" else None
        worker = await cls.start(sys.executable, "-m", "benchmarks.worker", log=log, stdin=pipe, stdout=pipe, cwd=where)
        try:
            worker.ready = await worker.ask(job, READY_SECONDS)
        except BaseException:
            await worker.end()
            raise
        return worker

    ready: dict[str, Any]

    async def ask(self, order: dict[str, Any], timeout: float = 120.0) -> dict[str, Any]:
        """One order and its answer."""
        self.tell(order)
        return await self.answer(timeout)

    def tell(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps(order) + b"\n")

    async def answer(self, timeout: float = 120.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended early, with status {await self.process.wait()}; see the log of the run")
        value: dict[str, Any] = orjson.loads(line)
        if "failed" in value:
            raise RuntimeError(f"a worker failed: {value['failed']}")
        return value


class WorkerIO:
    """The other end of the lines, inside a worker."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    @classmethod
    async def open(cls) -> Self:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", closefd=False))
        return cls(reader)

    async def order(self) -> dict[str, Any] | None:
        """The next order; None when the run is over."""
        line = await self._reader.readline()
        return orjson.loads(line) if line else None

    def say(self, value: dict[str, Any]) -> None:
        os.write(1, orjson.dumps(value) + b"\n")

    async def serve(self, do: Callable[[dict[str, Any]], Any], **ready: Any) -> None:
        """Says that this participant is ready, then does one order after the other until there are no more."""
        self.say({"ready": True, **ready})
        while (order := await self.order()) is not None:
            self.say(await do(order))
