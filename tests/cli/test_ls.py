"""``broker ls``: reads all pages, whatever a hub lists."""

from __future__ import annotations

import asyncio

from broker import connect
from tests.cli.conftest import Start
from tests.cli.processes import broker, rows


async def publish(ticket: str, topics: list[str]) -> None:
    async with connect(ticket) as spoke:
        for topic in topics:
            await spoke.publish(topic, 1)
        await spoke.flush()


def test_lists_that_no_frame_takes_are_read_page_by_page(start: Start) -> None:
    ticket = start("hub", "--open", "--http", "off", "--json", BROKER_LIMITS_MAX_FRAME_BYTES="8192").row()["ticket"]
    topics = [f"t.{number:04}" for number in range(300)]
    asyncio.run(publish(ticket, topics))
    refused = broker("call", ticket, "hub.topics")
    assert (refused.returncode, "longer than a frame takes" in refused.stderr) == (1, True)
    listed = broker("ls", ticket, "topics", "--json")
    assert [row["topic"] for row in rows(listed.stdout)] == topics, listed.stderr
    shown = broker("ls", ticket).stdout
    assert all(topic in shown for topic in topics)
