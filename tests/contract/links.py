"""Two ends of one event target, made in each of the ways that there are; and an ear to hear with. No test is in
here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from broker.targets import (
    CLOSE,
    DRAIN,
    Event,
    IrohConnection,
    IrohEndpoint,
    create_hub_iroh_event_target,
    create_memory_event_target,
    create_spoke_iroh_event_target,
)
from broker.targets.memory import MemoryEventTarget
from broker.targets.remote import RemoteEventTarget

PATIENCE = 20.0
"""Seconds until a test stops waiting for what should have come at once."""

Target = MemoryEventTarget | RemoteEventTarget


@dataclass(frozen=True)
class Link:
    """What is dispatched at one end is heard at the other. Memory has one end, which is both."""

    spoke: Target
    hub: Target


@dataclass(frozen=True)
class RemoteLink(Link):
    spoke: RemoteEventTarget
    hub: RemoteEventTarget


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self, target: Target, *types: str) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()
        for type in types:
            target.add_event_listener(type, self)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()

    async def hears(self, count: int = 1, *, patience: float = PATIENCE) -> list[Event]:
        """The first ``count`` events."""
        async with asyncio.timeout(patience):
            while len(self.events) < count:
                self._more.clear()
                await self._more.wait()
        return self.events[:count]

    @property
    def details(self) -> list[Any]:
        return [event.detail for event in self.events]


async def dispatch(target: Target, event: Event) -> None:
    """Dispatches, and waits for room as often as it is refused. Raises what the target does after its end."""
    while not target.dispatch_event(event):
        ear = Ear(target, DRAIN, CLOSE)
        await ear.hears()
        target.remove_event_listener(DRAIN, ear)
        target.remove_event_listener(CLOSE, ear)


@asynccontextmanager
async def memory_link() -> AsyncIterator[Link]:
    target = create_memory_event_target()
    yield Link(target, target)
    await target.close()


@asynccontextmanager
async def our_connections(**options: Any) -> AsyncIterator[tuple[IrohConnection, Callable[[], Any]]]:
    """A dialled connection and what awaits its accepted end (which comes with the first frame)."""
    hub = await IrohEndpoint.bind(accept=True, open=True, **options)
    async with hub, await IrohEndpoint.bind(**options) as spoke:
        yield await spoke.connect(hub.node_id, hub.addrs()), hub.accept


@asynccontextmanager
async def join(dialled: Any, accept: Callable[[], Any], **limits: Any) -> AsyncIterator[RemoteLink]:
    """Both targets of a connection, from both factories; the spoke's first word is what shows the stream to the hub."""
    spoke = await create_spoke_iroh_event_target(dialled)
    async with spoke:
        assert spoke.dispatch_event(Event("hub.register", {"operations": []}))
        async with await create_hub_iroh_event_target(await accept(), **limits) as hub:
            yield RemoteLink(spoke, hub)


@asynccontextmanager
async def our_link(**options: Any) -> AsyncIterator[RemoteLink]:
    async with our_connections(**options) as (dialled, accept), join(dialled, accept) as link:
        yield link


Maker = Callable[[], AbstractAsyncContextManager[Link]]
RemoteMaker = Callable[[], AbstractAsyncContextManager[RemoteLink]]
