"""A hub as a process of its own, to be killed, stopped and measured. Not here: any expectation."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from tests.rig import PATIENCE

__all__ = ["hub_process"]


@asynccontextmanager
async def hub_process(
    data: Path, *, http: str = "off", **config: Any
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """The process, and what it says when it is ready. ``limits__inbox_bytes=1`` is that key of its config."""
    env = {f"BROKER_{key.upper().replace('__', '_')}": str(value) for key, value in config.items()}
    command = [sys.executable, "-m", "broker", "hub", "--data", str(data), "--open", "--http", http, "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, **env}
    )
    assert process.stdout is not None
    try:
        ready = orjson.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
        assert ready["event"] == "ready"
        yield process, ready
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
