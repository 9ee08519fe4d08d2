"""hub.operations, hub.spokes and hub.topics: whole, or page by page, also when there is more than a frame takes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from broker import Spoke
from broker.errors import ValidationFailed
from broker.hub import listings
from tests.rig import a_hub, a_peer, spokes, until

SMALL = {"max_frame_bytes": 8_192}


async def pages(spoke: Spoke, operation: str, **input: Any) -> list[list[dict[str, Any]]]:
    found, after = [], ""
    while True:
        page = await spoke.call(operation, {**input, "after": after})
        found.append(page["rows"])
        if (after := page["next"]) is None:
            return found


def flat(found: list[list[dict[str, Any]]], key: str) -> list[Any]:
    return [row[key] for rows in found for row in rows]


async def test_topics_by_pages_and_what_comes_and_goes_between_them() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "one") as (one,), one.subscribe("t.*", "x"):
        for number in range(25):
            await one.publish(f"t.{number:02}", number)
        await one.flush()
        names = sorted([*(f"t.{number:02}" for number in range(25)), "t.*", "x"])
        assert flat([await one.call("hub.topics")], "topic") == names
        found = await pages(one, "hub.topics", limit=10)
        assert [len(rows) for rows in found] == [10, 10, 7]
        assert flat(found, "topic") == names
        assert {tuple(row.items()) for rows in found for row in rows if row["topic"] == "x"} == {
            (("topic", "x"), ("subscribers", 1), ("carrier", "stream"), ("authors", 0), ("events", 0), ("kept", 0))
        }
        exactly = await one.call("hub.topics", {"limit": len(names)})
        assert (len(exactly["rows"]), exactly["next"]) == (len(names), None)
        first = await one.call("hub.topics", {"limit": 5})
        await one.publish("a", 1)
        await one.publish("t.99", 1)
        await one.flush()
        rest = await one.call("hub.topics", {"after": first["next"]})
        assert flat([first["rows"], rest["rows"]], "topic") == sorted([*names, "t.99"]), "what was there is there once"


async def test_more_topics_than_a_frame_takes() -> None:
    async with a_hub(limits=SMALL) as hub, spokes(hub.ticket, "one") as (one,):
        for number in range(300):
            await one.publish(f"t.{number:03}", number)
        await one.flush()
        with pytest.raises(ValidationFailed, match=r"longer than a frame takes \(8192 bytes\).*\"limit\": 1000"):
            await one.call("hub.topics")
        found = await pages(one, "hub.topics")
        assert len(found) > 3
        assert flat(found, "topic") == [f"t.{number:03}" for number in range(300)]


async def test_more_spokes_than_a_frame_takes() -> None:
    async with a_hub(limits=SMALL) as hub, AsyncExitStack() as stack:
        names = [f"{number:02}" + "x" * 100 for number in range(30)]
        everybody = await stack.enter_async_context(spokes(hub.ticket, *names))
        with pytest.raises(ValidationFailed, match="longer than a frame"):
            await everybody[0].call("hub.spokes")
        found = await pages(everybody[0], "hub.spokes", limit=20)
        assert sorted(flat(found, "name")) == names
        assert flat(found, "node_id") == sorted(spoke.node_id for spoke in everybody)


async def test_an_operation_of_many_spokes_and_one_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MOST_SPOKES", 2)
    long = {"id": "t.long", "kind": "query", "description": "d" * 4_000, "inputSchema": {"title": "s" * 3_500}}
    async with (
        a_hub(limits=SMALL) as hub,
        AsyncExitStack() as stack,
        spokes(hub.ticket, "asking") as (asking,),
    ):
        for _ in range(5):
            await stack.enter_async_context(a_peer(hub.ticket, operations=("t.many", "t.many-more")))
        peer = await stack.enter_async_context(a_peer(hub.ticket))
        peer.say("hub.register", {"operations": [long]})
        await until(lambda: "t.long" in [row.id for row, _ in hub.router.calls.operations()])
        found = await pages(asking, "hub.operations", limit=3)
        many = [row for rows in found for row in rows if row["operation"] == "t.many"]
        assert [len(row["spokes"]) for row in many] == [2, 2, 1]
        assert len({spoke["node_id"] for row in many for spoke in row["spokes"]}) == 5
        ids = [id for id in flat(found, "operation") if id.startswith("t.")]
        assert ids == ["t.long"] + ["t.many"] * 3 + ["t.many-more"] * 3
        (cut,) = [row for rows in found for row in rows if row["operation"] == "t.long"]
        assert (cut["cut"], cut["description"], cut["input_schema"]) == (True, None, None)
        assert cut["spokes"][0]["node_id"] == peer.endpoint.node_id


@pytest.mark.parametrize(
    "input", [[], "x", {"after": 1}, {"limit": 0}, {"limit": "5"}, {"limit": True}, {"limit": 10_001}]
)
async def test_a_page_that_cannot_be_asked_for(input: Any) -> None:
    async with a_hub() as hub, spokes(hub.ticket, "one") as (one,):
        with pytest.raises(ValidationFailed):
            await one.call("hub.topics", input)
