"""A node of the testbed: a spoke that offers its host's live data, tells it to a topic of its own, and makes a load to
order: so many events and so many calls a second.

Not here: where it runs (docker-compose.yml, `broker lab up`), and its command line (cli/lab.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.cli.options import read_ticket
from broker.errors import CallError, ConnectionLost, TicketError, Unreachable
from broker.lab.host import READINGS, load, processors
from broker.protocol.ticket import Ticket
from broker.spoke.options import SpokeOptions
from broker.spoke.spoke import Spoke

__all__ = ["Load", "make_node", "replaced", "ticket_when_there", "topic_of", "work"]

LOOK_FOR_TICKET = 0.5
"""Seconds between looks at a ticket file that is not there yet."""
CALL_TIMEOUT = 5.0
LEAST_RATE = 0.001
"""Once in a quarter of an hour; anything less is meant as never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a node does a second. ``bytes`` are added to each event, beside the host's readings (some 100 bytes)."""

    events: float = 1.0
    bytes: int = 0
    calls: float = 1.0


def topic_of(name: str) -> str:
    """Where a node of this name tells its load."""
    return f"lab.{re.sub(r'[^A-Za-z0-9_-]', '-', name) or 'node'}.load"


def make_node(name: str, secret: bytes | None = None, *, relay_ca: Path | None = None) -> Spoke:
    """A spoke that offers READINGS; connected by whoever runs it."""
    spoke = Spoke(name, secret=secret, options=SpokeOptions(relay_ca=relay_ca))
    for operation, reading in READINGS.items():
        spoke.offer(operation, _answer(reading), kind="query", description=reading.__doc__)
    return spoke


def _answer(reading: Callable[[], Any]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handler(_input: Any, _call: Any) -> Any:
        # Reading every process takes tens of milliseconds: not on the loop.
        return await asyncio.to_thread(reading)

    return handler


async def ticket_when_there(argument: str, waiting: Callable[[str], Awaitable[None]]) -> str:
    """The ticket of ``argument``. A ``@FILE`` that is not there yet, or not whole, is waited for, and ``waiting`` told
    why. TicketError for a text that is no ticket and will not become one."""
    while True:
        try:
            text = read_ticket(argument)
            Ticket.decode(text)
        except TicketError as error:
            if not argument.startswith("@"):
                raise
            await waiting(f"waiting for a ticket in {Path(argument[1:])}: {str(error).splitlines()[0]}")
            await asyncio.sleep(LOOK_FOR_TICKET)
        else:
            return text


async def replaced(argument: str, spoke: Spoke, first: str) -> None:
    """Raises Unreachable when this spoke has no hub and ``@FILE`` has the ticket of another one than ``first``; else
    it never returns. Whoever started this process does so again, with that ticket."""
    before = Ticket.decode(first).node_id
    while True:
        await asyncio.sleep(LOOK_FOR_TICKET)
        if spoke.connected or not argument.startswith("@"):
            continue
        with contextlib.suppress(TicketError):  # being written just now, or away
            now = Ticket.decode(read_ticket(argument)).node_id
            if now not in (before, spoke.hub_node_id):
                raise Unreachable(
                    f"{argument[1:]} has the ticket of the hub {now[:10]} now, not of {before[:10]}: the hub's data "
                    "directory is a new one\nstart this node again, to go to that hub"
                )


async def work(spoke: Spoke, load: Load) -> None:
    """Makes the load until it is cancelled. A hub that is away holds it up; nothing is given up for that."""
    processors.percent()
    async with asyncio.TaskGroup() as group:
        if load.events >= LEAST_RATE:
            group.create_task(_tell(spoke, load))
        if load.calls >= LEAST_RATE:
            group.create_task(_call(spoke, load))


async def _tell(spoke: Spoke, wanted: Load) -> None:
    topic, padding, number = topic_of(spoke.name or spoke.node_id[:10]), "x" * wanted.bytes, 0
    pace = _Pace(wanted.events)
    reading = load()
    while True:
        if pace.count % max(1, round(wanted.events)) == 0:
            reading = load()  # once a second, whatever the rate
        number += 1
        detail = {"n": number, **reading}
        await spoke.publish(topic, {**detail, "padding": padding} if padding else detail)
        await pace.wait()


async def _call(spoke: Spoke, wanted: Load) -> None:
    pace = _Pace(wanted.calls)
    while True:
        with contextlib.suppress(CallError, ConnectionLost):  # counted by whoever answers: a load goes on
            await spoke.call("host.load", timeout=CALL_TIMEOUT)
        await pace.wait()


class _Pace:
    """So many turns a second, beginning somewhere in the first: nodes started together do not beat together."""

    def __init__(self, rate: float) -> None:
        self._period = 1.0 / rate
        self._next = asyncio.get_running_loop().time() + random.uniform(0, self._period)
        self.count = 0

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        # Who was held up does not make up for it in a burst.
        self._next = max(self._next + self._period, now)
        self.count += 1
        await asyncio.sleep(self._next - now)
