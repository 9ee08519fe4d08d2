"""A process that offers ``shop.count`` to the hub of the ticket, until it is killed. Not here: any expectation."""

from __future__ import annotations

import asyncio
import sys

from broker import Spoke, SpokeOptions
from tests.spoke.directly import Shop


async def main(ticket: str) -> None:
    app = Spoke("counts", options=SpokeOptions(idle_timeout=1.0))
    app.operation("shop.count")(Shop().count)
    await app.run(ticket)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
