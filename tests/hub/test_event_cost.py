"""What an event costs the hub in Python, in functions that run: no more than it did, however many subscribe.
On an endpoint without a network (tests/fuzz/endpoint.py). Not here: seconds (`make bench ARGS=cost`)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from broker import _gossip_ext as ext
from broker.config import HubConfig
from broker.hub.admission import Admission
from broker.hub.metrics import HubGauges, HubMetrics
from broker.hub.router import Router
from broker.protocol.codec import encode
from tests.counting import functions_in
from tests.fuzz.endpoint import FakeEndpoint

BATCH = 16
MOST = 9.5
"""Functions an event, in batches of BATCH with their acknowledgement. Measured: 9.0, of which 6 run for each event."""
AUTHOR = 1


def events(first: int) -> list[bytes]:
    meta = {"author": f"{AUTHOR:064x}", "epoch": "0" * 16}
    return [encode("a", {"n": seq}, {**meta, "seq": seq}) for seq in range(first, first + BATCH)]


async def functions_a_batch(subscribers: int) -> int:
    endpoint, config = FakeEndpoint(), HubConfig(open=True, http="")
    metrics = HubMetrics("test", topic_labels=10, operation_labels=10, gauges=cast("Any", HubGauges))
    router = Router(cast(ext.Endpoint, endpoint), config, metrics, Admission(config, cast(ext.Endpoint, endpoint)))
    router.bind_loop(asyncio.get_running_loop())

    def batch(conn: int, frames: list[bytes]) -> None:
        router.frames(conn, frames)
        router.batch_done(1)

    try:
        for conn in range(AUTHOR, AUTHOR + 1 + subscribers):
            endpoint.opened(conn, f"{conn:064x}")
            router.opened(conn, f"{conn:064x}", True, 0)
            if conn != AUTHOR:
                batch(conn, [encode("__subscribe", {"topics": ["a"]})])
        batch(AUTHOR, events(1))  # the topic begins
        router._tick()
        frames, before = events(1 + BATCH), len(endpoint.sent)
        count = functions_in(lambda: (batch(AUTHOR, frames), router._tick()))  # type: ignore[func-returns-value]
        assert len(endpoint.sent) - before == BATCH * subscribers + 1, "all deliveries, and the acknowledgement"
        return count
    finally:
        router.stop()


@pytest.fixture
async def functions() -> dict[int, int]:
    return {subscribers: await functions_a_batch(subscribers) for subscribers in (1, 10, 100)}


async def test_the_work_in_python_does_not_depend_on_the_number_of_subscribers(functions: dict[int, int]) -> None:
    assert len(set(functions.values())) == 1, functions


async def test_an_event_takes_no_more_functions_than_it_did(functions: dict[int, int]) -> None:
    assert functions[10] / BATCH <= MOST
