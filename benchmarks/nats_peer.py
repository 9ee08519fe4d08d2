"""NATS: nats-server with TLS, nats-py. ``native`` reads TLS records and counts bytes, with no parser at all."""

from __future__ import annotations

import asyncio
import selectors
import socket
import ssl
import threading
import time
from typing import Any

import nats
import orjson
from nats.aio.client import Client

from benchmarks.load import QUIET_SECONDS, STEP, Counter, event_value, measure_calls, publish_all
from benchmarks.processes import WorkerIO


async def _connect(job: dict[str, Any]) -> Client:
    return await nats.connect(f"tls://127.0.0.1:{job['port']}", tls=_context(job), pending_size=64 << 20)


def _context(job: dict[str, Any]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=job["ca"])


async def answer(job: dict[str, Any], io: WorkerIO) -> None:
    client = await _connect(job)

    async def echo(message: Any) -> None:
        await message.respond(orjson.dumps(orjson.loads(message.data)))

    await client.subscribe("bench.echo", cb=echo)
    await client.flush()
    await io.serve(_nothing)
    await client.close()


async def call(job: dict[str, Any], io: WorkerIO) -> None:
    client = await _connect(job)

    async def ask(value: Any) -> Any:
        return orjson.loads((await client.request("bench.echo", orjson.dumps(value), timeout=30)).data)

    await io.serve(lambda order: measure_calls(ask, order))
    await client.close()


async def publish(job: dict[str, Any], io: WorkerIO) -> None:
    client = await _connect(job)

    async def do(order: dict[str, Any]) -> dict[str, Any]:
        async def one(value: dict[str, Any]) -> None:
            await client.publish("bench.events", orjson.dumps(value))

        return await publish_all(one, client.flush, order)

    await io.serve(do)
    await client.close()


async def subscribe(job: dict[str, Any], io: WorkerIO) -> None:
    counter, events = Counter(), job["events"]
    clients = [await _connect(job) for _ in range(job["subscribers"])]

    def reader() -> Any:
        expected = 0

        async def got(message: Any) -> None:
            nonlocal expected
            if orjson.loads(message.data)["n"] != expected:
                counter.faults += 1
            expected += 1
            if expected % STEP == 0:
                counter.got(STEP)
                expected %= events

        return got

    for client in clients:
        await client.subscribe("bench.events", cb=reader(), pending_msgs_limit=-1, pending_bytes_limit=-1)
        await client.flush()

    async def do(order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "begin":
            counter.begin(events * len(clients))
            return {}
        return await counter.result()

    await io.serve(do)


async def native(job: dict[str, Any], io: WorkerIO) -> None:
    counts = _ByteCounts(job)
    thread = threading.Thread(target=counts.run, daemon=True)
    thread.start()
    await counts.subscribed(job["subscribers"])
    size = sum(len(b"MSG bench.events 1 256\r\n\r\n") + len(orjson.dumps(event_value(n))) for n in range(job["events"]))
    expected = job["subscribers"] * size
    before = 0

    async def do(order: dict[str, Any]) -> dict[str, Any]:
        nonlocal before
        if order["do"] == "begin":
            before = counts.total
            return {}
        last, ended = -1, time.perf_counter()
        while (now := counts.total - before) < expected and time.perf_counter() - ended < QUIET_SECONDS:
            await asyncio.sleep(0.002)
            if now != last:
                last, ended = now, time.perf_counter()
        return {
            "received": now * job["events"] // size,
            "missing": (expected - now) // 282,
            "faults": 0,
            "ended": counts.at,
        }

    await io.serve(do)


class _ByteCounts:
    """TLS connections that subscribe and count what comes, in a thread of their own."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._selector = selectors.DefaultSelector()
        self.total, self.at, self.confirmed = 0, 0.0, 0
        context = _context(job)
        for _ in range(job["subscribers"]):
            plain = socket.create_connection(("127.0.0.1", job["port"]))
            plain.recv(4096)  # INFO comes before TLS
            link = context.wrap_socket(plain, server_hostname="127.0.0.1")
            link.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB bench.events 1\r\nPING\r\n')
            link.settimeout(None)
            if b"PONG" in link.recv(4096):
                self.confirmed += 1
            link.setblocking(False)
            self._selector.register(link, selectors.EVENT_READ)

    async def subscribed(self, count: int) -> None:
        if self.confirmed != count:
            raise RuntimeError(f"{self.confirmed} of {count} subscriptions are confirmed")

    def run(self) -> None:
        buffer = bytearray(1 << 18)
        view = memoryview(buffer)
        while True:
            for key, _ in self._selector.select():
                link: Any = key.fileobj
                try:
                    while count := link.recv_into(buffer):
                        if bytes(view[:count][-6:]) == b"PING\r\n":
                            link.send(b"PONG\r\n")
                            count -= 6
                        self.total += count
                except ssl.SSLWantReadError:
                    pass
            self.at = time.perf_counter()


async def _nothing(order: dict[str, Any]) -> dict[str, Any]:
    return {}
