"""Leaves a connection to the hub through which nothing comes any more though QUIC keeps it. When that is, is the core's
to say (protocol/stall.py). The link then dials again, with every address and relay that it knows, and what was under
way ends as with any connection that was lost. Not here: connections between spokes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Final

from broker.protocol.codec import encode, request_id_of
from broker.protocol.stall import TURN, Stall
from broker.spoke.link import Link

__all__ = ["StallWatch"]

log = logging.getLogger("broker.spoke")

QUESTION: Final = {"operationId": "hub.topics", "input": {"limit": 1}}
"""Any answer will do, a refusal too: a hub that knows only the specification does not have it."""
ANSWERS: Final = ("call.responded", "call.error")


class StallWatch:
    """Of one spoke's link."""

    def __init__(self, link: Link, patience: float) -> None:
        self._link, self._patience = link, patience
        self._conn: int | None = None
        self._stall = Stall(patience)
        self._asked = ""
        self._numbers = count(1)
        self._others: dict[str, Callable[[Any], None]] = {}
        """Who gets the answers otherwise, while one of them is this."""

    async def run(self) -> None:
        """For as long as the spoke lives. Without relays there is nothing to watch: direct paths QUIC gives up soon."""
        while (endpoint := self._link.endpoint) is not None and endpoint.relay_urls():
            self._turn(time.monotonic())
            await asyncio.sleep(TURN)

    def _turn(self, now: float) -> None:
        link, conn = self._link, self._link.conn
        if conn is None or link.endpoint is None or not link.up:
            self._conn = None
            return
        if conn != self._conn:
            self._conn, self._stall = conn, Stall(self._patience)
        match self._stall.look(now, link.endpoint.paths(conn)):
            case "ask":
                self._ask()
            case "leave":
                log.warning("nothing comes through the connection to the hub any more; connecting again")
                link.leave("nothing came through it any more, though one of its paths was alive")

    def _ask(self) -> None:
        """Past the calls of the program, which may have as many under way as it may. Until the answer is there, it is
        taken out of those to them."""
        id = f"alive-{next(self._numbers)}"
        detail = {"requestId": id, "stream": False, "timeoutMs": int(1000 * self._patience), **QUESTION}
        sent = self._link.send_calls([encode("call.requested", detail)])
        self._stall.asked(sent)
        if not sent:
            return
        self._asked = id
        if not self._others:
            self._others = {type: self._link.receivers[type] for type in ANSWERS}
            for type in ANSWERS:
                self._link.receivers[type] = partial(self._receive, type)

    def _receive(self, type: str, detail: Any) -> None:
        if request_id_of(detail, type) == self._asked:
            self._stall.answered()
            self._link.receivers.update(self._others)
            self._others = {}
        else:
            self._others[type](detail)
