"""Redis Streams: redis-server with TLS, redis-py (asyncio, hiredis). A subscriber is a loop of XREAD."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from redis.asyncio import Redis

from benchmarks.load import STEP, Counter, measure_calls, publish_all
from benchmarks.processes import WorkerIO

KEY, REQUESTS, ANSWERS = "bench.events", "bench.requests", "bench.answers"
READ_EVENTS = 1_000
"""Entries an XREAD takes: where more no longer helped."""
KEPT = 100_000
WRITE_EVENTS = 64


def _client(job: dict[str, Any]) -> Redis:
    return Redis(
        host="127.0.0.1", port=job["port"], ssl=True, ssl_ca_certs=job["ca"], protocol=3, single_connection_client=True
    )


async def answer(job: dict[str, Any], io: WorkerIO) -> None:
    reader, writer = _client(job), _client(job)

    async def echo() -> None:
        last: Any = "$"
        while True:
            got = await reader.xread({REQUESTS: last}, count=READ_EVENTS, block=1000)
            if entries := _entries(got):
                last = entries[-1][0]
                async with writer.pipeline(transaction=False) as pipe:
                    for _, fields in entries:
                        value = orjson.dumps(orjson.loads(fields[b"d"]))
                        pipe.xadd(ANSWERS, {"i": fields[b"i"], "d": value}, maxlen=KEPT)
                    await pipe.execute()

    await writer.xadd(REQUESTS, {"i": "0", "d": "{}"})
    task = asyncio.create_task(echo())
    await io.serve(_nothing)
    task.cancel()


async def call(job: dict[str, Any], io: WorkerIO) -> None:
    reader = _client(job)
    writer = Redis(host="127.0.0.1", port=job["port"], ssl=True, ssl_ca_certs=job["ca"], protocol=3)
    waiting: dict[bytes, asyncio.Future[Any]] = {}
    made = 0

    async def read() -> None:
        last: Any = "$"
        while True:
            for entry, fields in _entries(await reader.xread({ANSWERS: last}, count=READ_EVENTS, block=1000)):
                last = entry
                if (future := waiting.pop(fields[b"i"], None)) is not None:
                    future.set_result(orjson.loads(fields[b"d"]))

    async def ask(value: Any) -> Any:
        nonlocal made
        made += 1
        key = b"%d" % made
        future = waiting[key] = asyncio.get_running_loop().create_future()
        await writer.xadd(REQUESTS, {"i": key, "d": orjson.dumps(value)}, maxlen=KEPT)
        return await future

    task = asyncio.create_task(read())
    await asyncio.sleep(0.2)
    await io.serve(lambda order: measure_calls(ask, order))
    task.cancel()


async def publish(job: dict[str, Any], io: WorkerIO) -> None:
    client = _client(job)

    async def do(order: dict[str, Any]) -> dict[str, Any]:
        pipe = client.pipeline(transaction=False)
        queued = 0

        async def one(value: dict[str, Any]) -> None:
            nonlocal queued
            pipe.xadd(KEY, {"d": orjson.dumps(value)}, maxlen=KEPT)
            queued += 1
            if queued == WRITE_EVENTS:
                queued = 0
                await pipe.execute()

        return await publish_all(one, pipe.execute, order)

    await io.serve(do)


async def subscribe(job: dict[str, Any], io: WorkerIO) -> None:
    counter, events = Counter(), job["events"]

    async def read(client: Redis) -> None:
        last: Any = "0"
        expected = 0
        while True:
            for entry, fields in _entries(await client.xread({KEY: last}, count=READ_EVENTS, block=1000)):
                last = entry
                if orjson.loads(fields[b"d"])["n"] != expected:
                    counter.faults += 1
                expected += 1
                if expected % STEP == 0:
                    counter.got(STEP)
                    expected %= events

    clients = [_client(job) for _ in range(job["subscribers"])]
    tasks = [asyncio.create_task(read(client)) for client in clients]
    await asyncio.sleep(1)

    async def do(order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "begin":
            counter.begin(events * len(clients))
            return {}
        return await counter.result()

    await io.serve(do)
    for task in tasks:
        task.cancel()


def _entries(got: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREAD of one key, in the shape of RESP 3 or 2."""
    if not got:
        return []
    found = next(iter(got.values())) if isinstance(got, dict) else got[0][1]
    return found[0] if found and isinstance(found[0], list) else found


async def _nothing(order: dict[str, Any]) -> dict[str, Any]:
    return {}
