"""The contract of event targets over connections of PyPI's ``iroh``: on either side, and on both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from broker.targets import Event, IrohEndpoint
from tests.contract.contract import RemoteEventTargetContract
from tests.contract.links import Ear, RemoteLink, RemoteMaker, dispatch, join
from tests.interop import foreign


@asynccontextmanager
async def foreign_spoke_link() -> AsyncIterator[RemoteLink]:
    hub = await IrohEndpoint.bind(accept=True, open=True)
    async with hub, foreign.endpoint() as spoke:
        dialled = await foreign.dial(spoke, hub.node_id, hub.addrs())
        async with join(dialled, hub.accept) as link:
            yield link


@asynccontextmanager
async def foreign_hub_link() -> AsyncIterator[RemoteLink]:
    async with foreign.endpoint() as hub, await IrohEndpoint.bind() as spoke:
        accepting = asyncio.create_task(foreign.accept(hub))  # a dial waits for it
        dialled = await spoke.connect(str(hub.id()), foreign.addrs(hub))
        async with join(dialled, lambda: accepting) as link:
            yield link


@asynccontextmanager
async def foreign_link() -> AsyncIterator[RemoteLink]:
    async with foreign.endpoint() as hub, foreign.endpoint() as spoke:
        accepting = asyncio.create_task(foreign.accept(hub))
        dialled = await foreign.dial(spoke, str(hub.id()), foreign.addrs(hub))
        async with join(dialled, lambda: accepting) as link:
            yield link


class TestForeignSpoke(RemoteEventTargetContract):
    def make(self) -> AbstractAsyncContextManager[RemoteLink]:
        return foreign_spoke_link()


class TestForeignHub(RemoteEventTargetContract):
    def make(self) -> AbstractAsyncContextManager[RemoteLink]:
        return foreign_hub_link()


class TestForeignBoth(RemoteEventTargetContract):
    def make(self) -> AbstractAsyncContextManager[RemoteLink]:
        return foreign_link()


BURST = 20_000
"""Several times the small writes that kill a reader of PyPI's ``iroh`` 1.2.0 which lags behind them: some 2,050."""


@pytest.mark.parametrize("make", [foreign_spoke_link, foreign_hub_link, foreign_link])
async def test_a_burst_of_small_events_survives(make: RemoteMaker) -> None:
    async with make() as link:
        for sender, receiver in ((link.spoke, link.hub), (link.hub, link.spoke)):
            ear = Ear(receiver, "t")
            for i in range(BURST):
                await dispatch(sender, Event("t", i))
            await ear.hears(BURST)
            assert ear.details == list(range(BURST))


def stand_still() -> None:
    """The loop and its reader do, while what was dispatched is written by itself."""
    time.sleep(1e-5)


async def test_small_writes_to_a_reader_that_lags_survive() -> None:
    async with foreign_hub_link() as link:
        ear = Ear(link.hub, "t")
        for i in range(BURST // 4):
            await dispatch(link.spoke, Event("t", [i, "x" * 50]))
            stand_still()
        await ear.hears(BURST // 4)
        assert [number for number, _ in ear.details] == list(range(BURST // 4))
