"""The brokers of a run, on loopback, with TLS by certificates that are made for the run."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.processes import Process, Worker

__all__ = ["OURS", "Server", "certificates", "start_server"]

OURS = ("driven", "threaded", "threaded-asyncio", "before")


class Server:
    """A broker's process, and what its clients' jobs need to know."""

    def __init__(self, process: Process, reach: dict[str, Any]) -> None:
        self.process, self.reach = process, reach

    @property
    def worker(self) -> Worker:
        assert isinstance(self.process, Worker)
        return self.process


def certificates(directory: Path) -> dict[str, str]:
    """A CA and a certificate for 127.0.0.1, P-256 as iroh's peers would use."""
    files = {name: str(directory / f"{name}.pem") for name in ("ca", "ca_key", "cert", "key", "request")}
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    last = ["-days", "2", "-extfile", str(directory / "extensions"), "-out", files["cert"]]
    for command in (
        ["req", "-x509", *key, "-subj", "/CN=bench CA", "-days", "2", "-keyout", files["ca_key"], "-out", files["ca"]],
        ["req", *key, "-subj", "/CN=127.0.0.1", "-keyout", files["key"], "-out", files["request"]],
        [
            "x509",
            "-req",
            "-in",
            files["request"],
            "-CA",
            files["ca"],
            "-CAkey",
            files["ca_key"],
            "-CAcreateserial",
            *last,
        ],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return files


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    if (path := shutil.which(name)) is None:
        raise SystemExit(f"{name} is needed for this comparison; install it, or leave it out with --systems")
    return path


async def start_server(system: str, files: dict[str, str], directory: Path, stack: AsyncExitStack) -> Server:
    """Ready for clients."""
    log = directory / "log"
    if system in (*OURS, "bare"):
        worker = await Worker.of({"system": system, "role": "hub"}, log)
        stack.push_async_callback(worker.end)
        return Server(worker, {"ticket": worker.ready["ticket"]})
    port = _free_port()
    if system.startswith("nats"):
        command = [_program("nats-server"), "-a", "127.0.0.1", "-p", str(port), "--tls"]
        command += ["--tlscert", files["cert"], "--tlskey", files["key"]]
    else:
        command = [_program("redis-server"), "--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port)]
        command += ["--tls-cert-file", files["cert"], "--tls-key-file", files["key"], "--tls-ca-cert-file", files["ca"]]
        command += ["--tls-auth-clients", "no", "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = await Process.start(*command, log=log, stdout=asyncio.subprocess.DEVNULL)
    stack.push_async_callback(process.end)
    await _listening(port)
    return Server(process, {"port": port, "ca": files["ca"]})


async def _listening(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
