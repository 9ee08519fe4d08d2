"""Two spokes with a direct connection, and ways to break it at a chosen place. Not here: any expectation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from broker import Hub, Spoke
from broker.protocol.wire import CloseCode
from broker.spoke.direct import DirectLink
from broker.spoke.operations import Call
from tests.rig import FAST, a_hub, serving

ANSWERS = ("call.responded", "call.completed", "call.error")


@dataclass
class Shop:
    """What a spoke offers, and how often each input was worked on. ``gate`` holds ``held`` up."""

    ran: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0
    closed: int = 0
    """Streams that are over here, however they ended."""

    async def get(self, sku: str, call: Call) -> str:
        self.ran[sku] += 1
        self.calls.append(call)
        return sku.upper()

    async def held(self, sku: str) -> str:
        self.ran[sku] += 1
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return sku.upper()

    async def count(self, n: int) -> AsyncIterator[int]:
        try:
            for number in range(n):
                self.ran["count"] += 1
                yield number
        finally:
            self.closed += 1

    def operations(self) -> dict[str, Any]:
        return {"shop__get": self.get, "shop__held": self.held, "shop__count": self.count}


@dataclass
class Two:
    hub: Hub
    shop: Shop
    asks: Spoke
    sells: Spoke


@asynccontextmanager
async def two(*, direct: bool = True, **config: Any) -> AsyncIterator[Two]:
    async with a_hub(**config) as hub:
        shop = Shop()
        async with (
            serving(hub.ticket, "sells", options=FAST, **shop.operations()) as sells,
            serving(hub.ticket, "asks", options=FAST) as asks,
        ):
            if direct:
                await asks.direct("sells")
            yield Two(hub, shop, asks, sells)


def links(spoke: Spoke) -> list[DirectLink]:
    """Its live connections with other spokes."""
    return [link for link in spoke._directs._links.values() if not link.ended]


def link(spoke: Spoke) -> DirectLink:
    (one,) = links(spoke)
    return one


def cut(spoke: Spoke) -> None:
    """Breaks its direct connection, as if something had gone wrong."""
    link(spoke).close(CloseCode.INTERNAL, "cut by a test")


def deaf(spoke: Spoke, *types: str, after: int = 0) -> Counter[str]:
    """What comes of these types on its direct connection, after so many, is lost. How many were."""
    receivers, lost, heard = link(spoke)._receivers, Counter[str](), 0

    def loses(type: str, hears: Callable[[Any], None]) -> Callable[[Any], None]:
        def receiver(detail: Any) -> None:
            nonlocal heard
            if heard < after:
                heard += 1
                hears(detail)
            else:
                lost[type] += 1

        return receiver

    receivers.update({type: loses(type, receivers[type]) for type in types})
    return lost
