"""Calls that came over a direct connection and are asked again by way of the hub: each goes on where it was.

One that still runs is waited for, one that has ended gives the answer it had, one that never came begins. Not here:
what is remembered and for how long (protocol/outcomes.py), and who asks again (calls.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from broker.errors import call_error
from broker.protocol.answering import Start
from broker.protocol.codec import decode
from broker.protocol.outcomes import KEEP, Found, Life, Outcomes
from broker.protocol.registration import Operation
from broker.protocol.wire import CloseCode
from broker.spoke.answers import nobody_knows
from broker.spoke.direct import DirectLink
from broker.spoke.operations import Call, Offer, plain

__all__ = ["Resuming"]


class Resuming:
    """The memory of one spoke."""

    def __init__(self, offers: Mapping[str, Offer]) -> None:
        self._offers = offers
        self.outcomes = Outcomes()
        self.resumed = 0
        """Calls that were asked again here."""
        self._links: dict[Life, DirectLink] = {}
        self._waiting: dict[tuple[Life, str], list[asyncio.Future[bytes]]] = {}

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

    def answered(self, life: Life, request_id: str, answer: bytes) -> None:
        """A call has ended whose connection had."""
        for waiter in self._waiting.pop((life, request_id), ()):
            if not waiter.done():
                waiter.set_result(answer)

    def resume(self, start: Start) -> Offer | None:
        """What answers a call that was asked before. None: the operation is not offered."""
        assert start.again is not None
        caller, again = str((start.identity or {}).get("id")), start.again
        life, request_id = self.outcomes.life(caller, again["connection"]), again["requestId"]
        found = self.outcomes.again(caller, again["connection"], request_id, again["heard"])
        self.resumed += 1
        if life is None:
            return nobody_knows(start)
        link = self._links[life]
        if not link.ended:  # this side has not noticed yet; what it still brings must not be read
            link.close(CloseCode.NORMAL, "the caller asks again by way of the hub")
        if found is Found.NEW:
            return self._offers.get(start.operation)
        if found is Found.RUNNING and request_id in link.answers:
            return plain(Operation(start.operation), self._waits(life, link, request_id))
        if isinstance(found, bytes):
            return plain(Operation(start.operation), _gives(found))
        return nobody_knows(start)

    def close(self) -> None:
        for life, link in list(self._links.items()):
            link.answers.lost()
            self._forget(life)

    def _waits(self, life: Life, link: DirectLink, request_id: str) -> Any:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault((life, request_id), [])
        waiting.append(answer)

        async def waits(_input: Any, _call: Call) -> Any:
            try:
                return _output(await answer)
            except asyncio.CancelledError:
                waiting.remove(answer)
                if not waiting:
                    link.answers.receive("call.aborted", {"requestId": request_id, "reason": "the caller gave up"})
                raise

        return waits

    def _tick(self) -> None:
        """What runs for a connection that is long gone, and was not asked for again, stops."""
        for life in self.outcomes.tick(time.monotonic()):
            link = self._links.pop(life)
            link.answers.stop(lambda request_id, life=life: (life, request_id) not in self._waiting)  # type: ignore[misc]

    def _forget(self, life: Life) -> None:
        self._links.pop(life, None)
        self.outcomes.forget(life)


def _gives(answer: bytes) -> Any:
    async def gives(_input: Any, _call: Call) -> Any:
        return _output(answer)

    return gives


def _output(answer: bytes) -> Any:
    type, detail, _ = decode(answer)
    if type == "call.responded":
        return detail.get("output")
    raise call_error(detail["code"], detail["message"], detail.get("details"))
