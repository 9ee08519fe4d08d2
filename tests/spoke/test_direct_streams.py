"""Streams over a direct connection that ends: they go on by way of the hub with every item once and in order, or their
reader hears in time that they do not, and nothing runs for ever."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from broker import Spoke, SpokeOptions, connect
from broker.cli.spoke_direct import DirectCollector
from broker.errors import ExecutionFailed, ValidationFailed
from broker.protocol.outcomes import BESIDE
from tests.rig import PATIENCE, a_hub, until
from tests.spoke.directly import ANSWERS, Two, cut, deaf, link, links, two

MANY = 10_000


async def numbers(asks: Spoke, n: int, window: int = 256) -> AsyncGenerator[int, None]:
    async for item in asks.stream("shop.count", {"n": n}, window=window):
        yield item


async def read(
    asks: Spoke,
    n: int,
    got: list[int],
    at: Mapping[int, Callable[[], object]] | None = None,
    *,
    window: int = 256,
    patience: float = PATIENCE,
) -> None:
    """A stream of numbers. ``at``: what is done when so many have come."""
    async with asyncio.timeout(patience), aclosing(numbers(asks, n, window)) as items:
        async for item in items:
            got.append(item)
            if at is not None and (done := at.get(len(got))) is not None:
                done()


@pytest.mark.parametrize("side", ["asks", "sells"])
async def test_a_stream_whose_connection_is_cut_goes_on_and_no_item_is_lost_or_doubled(side: str) -> None:
    async with two() as all:
        got: list[int] = []
        await read(all.asks, MANY, got, {3_000: lambda: cut(getattr(all, side))})
        assert got == list(range(MANY))
        assert (all.shop.ran["count"], all.shop.closed) == (MANY, 1), "it ran once"
        assert (all.asks.direct_counts()["again"], all.sells.direct_counts()["resumed"]) == (1, 1)
        assert all.sells._directs.resuming.outcomes.bytes == 0


@pytest.mark.parametrize("window", [1, 2, 3, 64])
async def test_wherever_it_is_cut_and_whatever_its_window(window: int) -> None:
    for at in (1, 2, 7, 99, 100):
        async with two() as all:
            got: list[int] = []
            side = all.asks if at % 2 else all.sells
            await read(all.asks, 100, got, {at: partial(cut, side)}, window=window)
            assert got == list(range(100))
            assert (all.shop.ran["count"], all.shop.closed) == (100, 1)


@pytest.mark.parametrize("heard", [0, 1, 100, 127, 128, 200])
@pytest.mark.parametrize("n", [200, 1_000])
async def test_items_that_were_under_way_and_the_end_come_by_way_of_the_hub(n: int, heard: int) -> None:
    """Of 200 all is under way; of 1,000 what the window takes."""
    async with two() as all:
        lost = deaf(all.asks, *ANSWERS, after=heard)
        got: list[int] = []
        reading = asyncio.create_task(read(all.asks, n, got))
        credited = heard - heard % 128  # half of a window at a time
        await until(lambda: sum(lost.values()) == (201 if n == 200 else 256 + credited) - heard)
        cut(all.asks)
        await reading
        assert got == list(range(n))
        assert (all.shop.ran["count"], all.shop.closed) == (n, 1)


async def test_no_more_is_kept_than_the_window_and_what_was_not_read() -> None:
    async with two() as all:
        outcomes, most, kept, got = all.sells._directs.resuming.outcomes, 64 * (BESIDE + 80), [0], list[int]()
        looks = {number: lambda: kept.append(outcomes.bytes) for number in range(0, MANY, 10)}
        await read(all.asks, MANY, got, looks, window=64)
        assert 0 < max(kept) <= most
        assert outcomes.bytes <= most, "items that were not credited when it ended, and the end"


async def test_a_stream_whose_request_was_lost_runs_by_way_of_the_hub() -> None:
    async with two() as all:
        deaf(all.sells, "call.requested")
        got: list[int] = []
        reading = asyncio.create_task(read(all.asks, 1_000, got))
        await until(lambda: all.asks.direct_counts()["asked"] == 1)
        cut(all.asks)
        await reading
        assert got == list(range(1_000))
        assert all.shop.ran["count"] == 1_000


async def test_a_reader_that_is_slow_has_no_more_than_its_window_waiting_on_either_way() -> None:
    async with two() as all:
        got: list[int] = []
        async with asyncio.timeout(PATIENCE), aclosing(numbers(all.asks, 200, 8)) as items:
            async for item in items:
                got.append(item)
                (stream,) = all.asks._calls._streams.values()
                assert len(stream.items) <= 8
                await all.asks.call("hub.spokes")  # time for whatever may come
                assert all.shop.ran["count"] <= len(got) + 8 + 8 + 4
                if item == 50:
                    cut(all.sells)
        assert got == list(range(200))


@asynccontextmanager
async def feeding(feed: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Two]:
    async with two(direct=False) as all:
        all.sells.operation("shop.feed")(feed)
        await until(lambda: any(row.operation.id == "shop.feed" for row in all.hub.router.calls.operations()))
        await all.asks.direct("sells")
        yield all


async def reads_feed(all: Two, got: list[Any], at: Mapping[int, Callable[[], object]] | None = None) -> None:
    async with asyncio.timeout(PATIENCE):
        async for item in all.asks.stream("shop.feed"):
            got.append(item)
            if at is not None and (done := at.get(len(got))) is not None:
                done()


async def test_it_waits_until_it_is_asked_for_again() -> None:
    made = 0

    async def feed() -> AsyncIterator[int]:
        nonlocal made
        for made in range(1, 1_000):
            yield made
            if made == 2:
                await go.wait()

    go = asyncio.Event()
    async with feeding(feed) as all:
        got: list[int] = []
        reading = asyncio.create_task(reads_feed(all, got))
        await until(lambda: len(got) == 2)
        all.asks._directs.peers.introduces = False  # as with a caller that is gone
        cut(all.sells)
        with pytest.raises(ExecutionFailed, match="the direct connection to the spoke that answers was lost"):
            await reading
        go.set()
        for _ in range(3):
            await all.asks.call("hub.spokes")  # time for whatever may come
        assert (got, made) == ([1, 2], 3), "one is ready, and waits"


@pytest.mark.parametrize("side", ["asks", "sells"])
@pytest.mark.parametrize("at", [1, 2, 30])
async def test_large_items_that_wait_for_room_when_it_is_cut_are_not_lost_either(at: int, side: str) -> None:
    """They are within its window, and more than a hub queues for one connection."""
    made = 0

    async def feed() -> AsyncIterator[str]:
        nonlocal made
        for made in range(200):
            yield f"{made}:" + "x" * 100_000

    async with feeding(feed) as all:
        waited: list[bool] = []

        def cuts() -> None:
            waited.append(made < 199)
            cut(getattr(all, side))

        got: list[str] = []
        await reads_feed(all, got, {at: cuts})
        assert [int(item.split(":")[0]) for item in got] == list(range(200))
        assert {len(item.split(":")[1]) for item in got} == {100_000}
        assert (made, all.sells.direct_counts()["resumed"], waited) == (199, 1, [True])


async def test_several_streams_of_large_items_go_on_at_once() -> None:
    async def feed() -> AsyncIterator[str]:
        for number in range(100):
            yield f"{number}:" + "x" * 200_000

    async with feeding(feed) as all:
        got: list[list[str]] = [[], [], [], []]
        await asyncio.gather(
            reads_feed(all, got[0], {20: lambda: cut(all.asks)}), *(reads_feed(all, other) for other in got[1:])
        )
        assert [[int(item.split(":")[0]) for item in one] for one in got] == [list(range(100))] * 4
        assert 0 < all.sells.direct_counts()["resumed"] <= 4


async def test_an_error_that_comes_after_the_cut_is_told_after_the_items_before_it() -> None:
    async def feed() -> AsyncIterator[int]:
        for number in range(100):
            yield number
            if number == 10:
                await go.wait()
        raise ValidationFailed("no more", details={"after": 99})

    go = asyncio.Event()
    async with feeding(feed) as all:
        got: list[int] = []
        reading = asyncio.create_task(reads_feed(all, got))
        await until(lambda: len(got) == 11)
        cut(all.asks)
        await until(lambda: all.sells.direct_counts()["resumed"] == 1)
        go.set()
        with pytest.raises(ValidationFailed, match="no more") as error:
            await reading
        assert (got, error.value.details) == (list(range(100)), {"after": 99})


async def test_without_the_other_spoke_or_without_a_hub_its_reader_hears_the_retryable_error() -> None:
    async with two() as all:
        got: list[int] = []
        reading = asyncio.create_task(read(all.asks, 10**9, got))
        await until(lambda: len(got) > 300)
        await all.sells.close()
        with pytest.raises(ExecutionFailed) as error:
            await reading
        assert error.value.retryable
        assert got == list(range(len(got)))
        assert all.shop.closed == 1
    async with two() as all:
        got = []
        reading = asyncio.create_task(read(all.asks, 10**9, got))
        await until(lambda: len(got) > 300)
        all.hub.router.endpoint.close()
        await until(lambda: not all.asks.connected)
        cut(all.asks)
        with pytest.raises(ExecutionFailed, match="no hub to ask again") as error:
            await reading
        assert error.value.retryable
        assert got == list(range(len(got)))


async def test_a_spoke_that_is_killed_in_mid_stream_ends_it_with_a_clear_error_in_time() -> None:
    options = SpokeOptions(backoff_first=0.01, backoff_most=0.05, idle_timeout=1.0)
    async with a_hub() as hub, connect(hub.ticket, name="asks", options=options, timeout=PATIENCE) as asks:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.spoke.counts", hub.ticket)
        try:
            await until(lambda: any(row.operation.id == "shop.count" for row in hub.router.calls.operations()))
            await asks.direct("counts")
            got: list[int] = []
            with pytest.raises(ExecutionFailed) as error:
                await read(asks, 10**9, got, {1_000: process.kill})
            assert error.value.retryable
            assert got == list(range(len(got)))
            assert asks.direct_counts()["again"] in (0, 1), "0: the hub saw it first, and there was nobody to ask"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_stream_that_nobody_asks_for_again_is_closed_after_a_while_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.protocol.outcomes.KEEP", 0.05)
    monkeypatch.setattr("broker.spoke.resuming.KEEP", 0.05)
    async with two() as all:
        all.asks._directs.peers.introduces = False  # as with a caller that is gone
        got: list[int] = []
        with pytest.raises(ExecutionFailed):
            await read(all.asks, MANY, got, {300: lambda: cut(all.asks)})
        await until(lambda: all.shop.closed == 1)
        assert all.shop.ran["count"] < MANY
        assert all.sells.direct_counts()["forgotten"] == 1
        told = [sample for family in DirectCollector(all.sells).collect() for sample in family.samples]
        assert [one.value for one in told if one.name == "broker_spoke_direct_forgotten_total"] == [1]
        assert all.sells._directs.resuming.outcomes.bytes == 0
        assert all.sells._directs.running == 0


async def test_one_that_was_asked_for_again_outlives_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.outcomes.KEEP", 0.05)
    monkeypatch.setattr("broker.spoke.resuming.KEEP", 0.05)
    async with two() as all:
        got: list[int] = []
        async with asyncio.timeout(PATIENCE), aclosing(numbers(all.asks, 1_000)) as items:
            async for item in items:
                got.append(item)
                if item == 300:
                    lives = all.sells._directs.resuming.outcomes._lives
                    before = {*lives.values()}
                    cut(all.asks)
                    await until(lambda: all.sells.direct_counts()["resumed"] == 1)
                    await until(lambda: not before.intersection(lives.values()))  # noqa: B023  # not the next one's
        assert got == list(range(1_000))
        assert all.sells.direct_counts()["forgotten"] == 0


async def test_who_stops_reading_stops_it_before_and_after_the_cut() -> None:
    async with two() as all:
        for cuts in (False, True):
            got: list[int] = []
            async with asyncio.timeout(PATIENCE), aclosing(numbers(all.asks, 10**9)) as items:
                async for item in items:
                    got.append(item)
                    if item == 100 and cuts:
                        cut(all.asks)
                        await until(lambda: all.sells.direct_counts()["resumed"] == 1)
                    if item == 2_000:
                        break
            await until(lambda cuts=cuts: all.shop.closed == (2 if cuts else 1))  # type: ignore[misc]
            if not cuts:
                stopped = all.shop.ran["count"]
                cut(all.sells)
                await until(lambda: not links(all.asks))
                await all.asks.direct("sells")
                assert all.shop.ran["count"] == stopped, "what was aborted stays so"
        assert all.sells._directs.running == 0
        assert all.sells._directs.resuming.outcomes.bytes == 0


async def test_a_spoke_that_cannot_go_on_with_streams_is_not_asked_to() -> None:
    async with two() as all:
        assert link(all.asks).streams_again
        link(all.asks).streams_again = False  # as of a version before this
        got: list[int] = []
        with pytest.raises(ExecutionFailed, match="the direct connection to the spoke that answers was lost") as error:
            await read(all.asks, MANY, got, {300: lambda: cut(all.asks)})
        assert error.value.retryable
        assert got == list(range(len(got)))
        assert all.asks.direct_counts()["again"] == 0


async def test_what_is_too_much_to_keep_ends_it_and_no_item_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.outcomes.MAX_BYTES", 1_000)
    async with two() as all:
        got: list[int] = []
        reading = asyncio.create_task(read(all.asks, MANY, got))
        await until(lambda: len(got) > 300)
        lost = deaf(all.asks, *ANSWERS)
        await until(lambda: lost["call.responded"] > 100)
        cut(all.asks)
        with pytest.raises(ExecutionFailed, match="may have been done; its answer is not kept") as error:
            await reading
        assert error.value.retryable
        assert got == list(range(len(got)))


async def test_many_streams_over_connections_that_are_cut_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.spoke.directs.FIRST_AGAIN", 0.02)
    async with two() as all:
        done = 0

        async def reads() -> None:
            nonlocal done
            for _ in range(6):
                got: list[int] = []
                await read(all.asks, 400, got, window=16, patience=3 * PATIENCE)
                assert got == list(range(400))
                done += 1

        async def cuts() -> None:
            for number in range(40):
                await until(lambda: links(all.asks) and links(all.asks)[0].asked)
                for one in links((all.asks, all.sells)[number % 2]):
                    one.close(2, "cut by a test")
                await until(lambda: all.asks.neighbours())

        cutter = asyncio.create_task(cuts())
        await asyncio.gather(*(reads() for _ in range(8)))
        cutter.cancel()
        await asyncio.gather(cutter, return_exceptions=True)
        assert (done, all.shop.ran["count"], all.shop.closed) == (48, 48 * 400, 48)
        assert all.asks.direct_counts()["again"] > 0
        assert all.sells._directs.resuming.outcomes.bytes == 0
