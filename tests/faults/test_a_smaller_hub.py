"""A hub that takes smaller frames than its spokes may send: they are told, so that nobody connects again for ever. What
was numbered before is given up, and said so to its author and to its subscribers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker import SpokeOptions
from broker.errors import CallError, EventTooLarge
from tests.faults.hub_process import hub_process
from tests.rig import FAST, PATIENCE, a_hub, details, serving, spokes, take, until

LIMIT = 16_384
SMALL = {"max_frame_bytes": LIMIT}


async def test_a_spoke_refuses_what_its_hub_does_not_take() -> None:
    async def echo(text: str) -> str:
        return text * 2

    async def fail(text: str) -> str:
        raise ValueError(text * 1_000)

    async with (
        a_hub(limits=SMALL) as hub,
        serving(hub.ticket, "server", t__echo=echo, t__fail=fail) as server,
        spokes(hub.ticket, "one", "two") as (one, two),
        two.subscribe("a") as events,
    ):
        await two.call("hub.topics")
        with pytest.raises(EventTooLarge, match=f"{LIMIT}") as published:
            await one.publish("a", "x" * LIMIT)
        assert (published.value.limit, published.value.size > LIMIT) == (LIMIT, True)
        with pytest.raises(EventTooLarge, match=f"{LIMIT}") as called:
            await one.call("t.echo", {"text": "x" * LIMIT})
        assert called.value.limit == LIMIT
        with pytest.raises(CallError, match=f"cannot be sent.*{LIMIT}"):
            await one.call("t.echo", {"text": "x" * (LIMIT // 2)})
        with pytest.raises(CallError, match="ValueError: éé"):
            await one.call("t.fail", {"text": "é" * 100})
        assert await one.publish("a", 1)
        await one.flush(PATIENCE)
        assert (await anext(events)).seq == 1, "what was refused took no number"
        assert [spoke.counts()["connects"] for spoke in (one, two, server)] == [1, 1, 1]


@pytest.mark.parametrize("smallest", [4_096])
async def test_a_hub_with_the_smallest_limit_greets_and_answers(smallest: int) -> None:
    async with a_hub(limits={"max_frame_bytes": smallest}) as hub, spokes(hub.ticket, "one") as (one,):
        assert (await one.call("hub.spokes"))[0]["name"] == "one"


async def test_what_was_numbered_before_the_hub_became_smaller_ends_with_a_word_to_everybody(tmp_path: Path) -> None:
    async with (
        hub_process(tmp_path) as (first, ready),
        spokes(ready["ticket"], "author", "reader") as (author, reader),
        reader.subscribe("a") as events,
    ):
        await reader.call("hub.topics")
        await author.publish("a", 1)
        assert details(await take(events, 1)) == [1]
        first.terminate()
        await first.wait()
        await until(lambda: not author.connected and not reader.connected)
        for number in (2, 3, 4, 5):
            await author.publish("a", number if number % 2 else [number, "x" * LIMIT])
        flushing = asyncio.create_task(author.flush(PATIENCE))
        async with hub_process(tmp_path, limits__max_frame_bytes=LIMIT) as (_, again):
            assert again["ticket"] == ready["ticket"]
            with pytest.raises(EventTooLarge, match=rf"event 2 \(and 1 more\).*takes {LIMIT}.*given up"):
                await flushing
            assert author.counts()["given_up"] == 2
            await author.flush(PATIENCE)  # the rest is acknowledged, and it is told once
            assert details(await take(events, 2)) == [3, 5]
            assert events.verdict == "lost([2, 2], [4, 4])"
            with pytest.raises(EventTooLarge):
                await author.publish("a", "x" * LIMIT)
            await author.publish("a", 6)
            assert details(await take(events, 1)) == [6]
            assert author.counts()["connects"] == reader.counts()["connects"] == 2


async def test_a_larger_hub_does_not_raise_a_spokes_own_limit() -> None:
    own = SpokeOptions(max_frame_bytes=4_096, backoff_first=FAST.backoff_first)
    async with a_hub() as hub, spokes(hub.ticket, "one", options=own) as (one,):
        with pytest.raises(EventTooLarge, match="4096"):
            await one.publish("a", "x" * 5_000)
