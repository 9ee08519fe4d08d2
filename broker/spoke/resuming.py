"""Calls that came over a direct connection and are asked again by way of the hub: each goes on where it was.

One that never came begins. Of any other its caller gets what it has not heard: the answer that it had, or the one that
it will have; of a stream the items from there on, and its end. Not here: what is remembered and for how long
(protocol/outcomes.py), and who asks again (calls.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from broker.errors import call_error
from broker.protocol.answering import Start
from broker.protocol.codec import decode
from broker.protocol.outcomes import KEEP, Asked, Found, Life, Outcomes
from broker.protocol.registration import Operation
from broker.protocol.wire import CloseCode
from broker.spoke.answers import nobody_knows, unknown
from broker.spoke.direct import DirectLink
from broker.spoke.operations import Call, Offer, plain

__all__ = ["Resuming"]

AHEAD: Final = 4
"""Items of a stream that are made before they are wanted. One at a time takes twice as long; each waits here, and may
be as large as a frame."""


class Resuming:
    """The memory of one spoke."""

    def __init__(self, offers: Mapping[str, Offer]) -> None:
        self._offers = offers
        self.outcomes = Outcomes()
        self.counts = {"resumed": 0, "forgotten": 0}
        """Calls that were asked again here, and those that were not after their connection's end, and were stopped."""
        self._links: dict[Life, DirectLink] = {}
        self._waiting: dict[Asked, asyncio.Future[None]] = {}

    def opened(self, link: DirectLink, word: str) -> Life | None:
        """A caller has said what it calls its connection. None: there is no room for one more."""
        if (life := self.outcomes.open(link.node_id, word)) is not None:
            self._links[life] = link
        return life

    def over(self, life: Life, link: DirectLink, *, for_good: bool) -> None:
        """A connection has ended. ``for_good``: nobody will ask for what came over it, which stops."""
        if for_good:
            link.answers.lost()
            self._forget(life)
            return
        self.outcomes.over(life, time.monotonic())
        asyncio.get_running_loop().call_later(KEEP, self._tick)

    def came(self, asked: Asked) -> None:
        """A call has an answer, or an item more."""
        if (waiter := self._waiting.get(asked)) is not None and not waiter.done():
            waiter.set_result(None)

    def resume(self, start: Start) -> Offer | None:
        """What answers a call that was asked before. None: the operation is not offered."""
        assert start.again is not None
        caller, again = str((start.identity or {}).get("id")), start.again
        connection, request_id = again["connection"], again["requestId"]
        life = self.outcomes.life(caller, connection)
        found = self.outcomes.again(caller, connection, request_id, again["heard"], start.operation)
        self.counts["resumed"] += 1
        if life is None:
            return nobody_knows(start)
        link = self._links[life]
        if not link.ended:  # this side has not noticed yet; what it still brings must not be read
            link.close(CloseCode.NORMAL, "the caller asks again by way of the hub")
        if found is Found.NEW:
            return self._offers.get(start.operation)
        if found is Found.UNKNOWN:
            return nobody_knows(start)
        if found.stream:
            return plain(Operation(start.operation, "subscription"), self._items(found, link))
        return plain(Operation(start.operation), self._answer(found, link))

    def close(self) -> None:
        for life, link in list(self._links.items()):
            link.answers.lost()
            self._forget(life)

    # Going on with a call.

    def _answer(self, asked: Asked, link: DirectLink) -> Any:
        async def answer(_input: Any, _call: Call) -> Any:
            try:
                return _output(*await self._next(asked, link))
            finally:
                self._leave(asked, link)

        return answer

    def _items(self, asked: Asked, link: DirectLink) -> Any:
        async def items(_input: Any, _call: Call) -> AsyncIterator[Any]:
            try:
                while (said := await self._next(asked, link))[0] != "call.completed":
                    yield _output(*said)
            finally:
                self._leave(asked, link)

        return items

    async def _next(self, asked: Asked, link: DirectLink) -> tuple[str, Any]:
        """The type and detail of the next message that its caller has not heard. A stream makes items when all that was
        under way when its connection ended has been taken."""
        while (found := self.outcomes.take(asked)) is None:
            waiter = self._waiting[asked] = asyncio.get_running_loop().create_future()
            if asked.stream:
                link.answers.allow(asked.request_id, AHEAD)
            try:
                await waiter
            finally:
                del self._waiting[asked]
        if isinstance(found, Found):
            raise unknown(asked.operation)
        type, detail, _ = decode(found)
        return type, detail

    def _leave(self, asked: Asked, link: DirectLink) -> None:
        """Its caller has all of it, or wants no more."""
        if asked.running:
            link.answers.receive("call.aborted", {"requestId": asked.request_id, "reason": "the caller gave up"})
        self.outcomes.drop(asked.life, asked.request_id)

    # The end of what is remembered.

    def _tick(self) -> None:
        """What runs for a connection that is long gone, and was not asked for again, stops."""
        for life in self.outcomes.tick(time.monotonic()):
            link = self._links.pop(life)
            self.counts["forgotten"] += link.answers.stop(lambda request_id, life=life: request_id not in life.calls)  # type: ignore[misc]

    def _forget(self, life: Life) -> None:
        self._links.pop(life, None)
        self.outcomes.forget(life)


def _output(type: str, detail: Any) -> Any:
    if type == "call.responded":
        return detail.get("output")
    raise call_error(detail["code"], detail["message"], detail.get("details"))
