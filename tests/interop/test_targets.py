"""The contract of event targets over connections of PyPI's ``iroh``: on either side, and on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from broker.targets import IrohEndpoint
from tests.contract.contract import RemoteEventTargetContract
from tests.contract.links import RemoteLink, join
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
        dialled = await spoke.connect(str(hub.id()), foreign.addrs(hub))
        async with join(dialled, lambda: foreign.accept(hub)) as link:
            yield link


@asynccontextmanager
async def foreign_link() -> AsyncIterator[RemoteLink]:
    async with foreign.endpoint() as hub, foreign.endpoint() as spoke:
        dialled = await foreign.dial(spoke, str(hub.id()), foreign.addrs(hub))
        async with join(dialled, lambda: foreign.accept(hub)) as link:
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
