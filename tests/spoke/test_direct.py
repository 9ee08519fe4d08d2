"""Spoke to spoke: introduced by the hub, called without it, and back by way of it when the connection is gone.

Not here: streams whose connection ends (test_direct_streams.py).
"""

from __future__ import annotations

import asyncio

import pytest

from broker import SpokeOptions
from broker.cli.spoke_direct import DirectCollector
from broker.errors import AccessDenied, ExecutionFailed, OperationNotFound, ValidationFailed
from broker.protocol.wire import CloseCode
from broker.spoke import peers as peers_module
from tests.rig import FAST, PATIENCE, Numbers, a_hub, serving, until
from tests.spoke.directly import ANSWERS, Shop, cut, deaf, link, links, two


async def test_calls_and_streams_take_the_connection_by_themselves_and_the_hub_may_be_gone() -> None:
    async with two() as all:
        (neighbour,) = all.asks.neighbours()
        assert neighbour.node_id == all.sells.node_id
        assert set(neighbour.operations) == {"shop.get", "shop.held", "shop.count"}
        seen = Numbers(all.hub)("calls_total")
        assert await all.asks.call("shop.get", {"sku": "a"}) == "A"
        assert [item async for item in all.asks.stream("shop.count", {"n": 600})] == list(range(600))
        with pytest.raises(ValidationFailed):
            await all.asks.call("shop.get", {"wrong": 1})
        assert Numbers(all.hub)("calls_total") == seen, "the hub has seen nothing of it"
        assert all.shop.calls[0].identity == {"id": all.asks.node_id, "scopes": [], "resources": {}}
        assert (all.asks.direct_counts()["asked"], all.sells.direct_counts()["answered"]) == (3, 3)
        await all.asks.call("hub.spokes")
        assert Numbers(all.hub)("calls_total") == seen + 1, "what nobody else offers goes to the hub"
        all.hub.router.endpoint.close()
        await until(lambda: not all.asks.connected and not all.sells.connected)
        assert await all.asks.call("shop.get", {"sku": "b"}) == "B"
        assert [item async for item in all.asks.stream("shop.count", {"n": 3})] == [0, 1, 2]


async def test_roll_calls_stay_at_the_hub_and_so_does_what_no_grant_covers() -> None:
    async with two() as all:
        answers = (await all.asks.roll_call("shop.get", {"sku": "a"})).answers
        assert [answer.output for answer in answers] == ["A"]

        @all.sells.operation("shop.later")
        async def later() -> str:
            return "later"

        await until(lambda: any(row.operation.id == "shop.later" for row in all.hub.router.calls.operations()))
        assert await all.asks.call("shop.later") == "later"
        assert all.asks.direct_counts()["asked"] == 0


async def test_a_call_that_is_under_way_when_the_connection_dies_goes_on_and_runs_once() -> None:
    for side in ("asks", "sells"):
        async with two() as all:
            call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
            await all.shop.entered.wait()
            cut(getattr(all, side))
            await until(lambda all=all: all.sells.direct_counts()["resumed"] == 1)  # type: ignore[misc]
            all.shop.gate.set()
            assert await call == "A"
            assert all.shop.ran == {"a": 1}
            assert all.asks.direct_counts()["again"] == 1


async def test_how_the_other_side_ended_a_connection_that_was_over_here_ends_no_newer_one() -> None:
    """Both sides are told by the hub, and introduced anew before the first connection's close has come."""
    async with two() as all:
        old, directs = link(all.asks), all.asks._directs
        cut(all.asks)
        peer = directs.peers.by_id[old.node_id]
        directs._links[old.conn] = old
        directs.closed(old.conn, CloseCode.BANNED, "what may be called there is something else now", True)
        assert directs.peers.by_id.get(old.node_id) is peer
        assert await all.asks.call("shop.get", {"sku": "a"}) == "A"


async def test_a_call_whose_request_was_lost_runs_by_way_of_the_hub() -> None:
    async with two() as all:
        deaf(all.sells, "call.requested")
        call = asyncio.create_task(all.asks.call("shop.get", {"sku": "a"}))
        await until(lambda: all.asks.direct_counts()["asked"] == 1)
        cut(all.asks)
        assert await call == "A"
        assert all.shop.ran == {"a": 1}


async def test_a_request_that_arrives_after_it_was_asked_again_is_not_run() -> None:
    async with two() as all:
        held: list[object] = []
        there = link(all.sells)
        receiver, there._receivers["call.requested"] = there._receivers["call.requested"], held.append
        call = asyncio.create_task(all.asks.call("shop.get", {"sku": "a"}))
        await until(lambda: held)
        cut(all.asks)
        assert await call == "A"
        receiver(held[0])
        assert there.ended, "the question has ended the connection at this side too"
        assert all.shop.ran == {"a": 1}


async def test_a_call_whose_answer_was_lost_gives_the_answer_that_it_had() -> None:
    async with two() as all:
        deaf(all.asks, *ANSWERS)
        calls = [asyncio.create_task(all.asks.call("shop.get", {"sku": f"a{number}"})) for number in range(50)]
        wrong = asyncio.create_task(all.asks.call("shop.get", {"wrong": 1}))
        await until(lambda: sum(all.shop.ran.values()) == 50)
        cut(all.asks)
        assert await asyncio.gather(*calls) == [f"A{number}" for number in range(50)]
        with pytest.raises(ValidationFailed):
            await wrong
        assert set(all.shop.ran.values()) == {1}


async def test_many_calls_over_a_connection_that_is_cut_again_and_again_are_neither_lost_nor_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.spoke.directs.FIRST_AGAIN", 0.02)
    async with two() as all:
        answers: list[str] = []

        async def asks(worker: int) -> None:
            for number in range(60):
                answer = await all.asks.call("shop.get", {"sku": f"{worker}-{number}"})
                answers.append(answer)

        async def cuts() -> None:
            for number in range(12):
                await until(lambda: links(all.asks) and links(all.asks)[0].asked)
                side = (all.asks, all.sells)[number % 2]
                for one in links(side):
                    one.close(2, "cut by a test")
                await until(lambda: all.asks.neighbours())

        workers = [asyncio.create_task(asks(worker)) for worker in range(8)]
        cutter = asyncio.create_task(cuts())
        await asyncio.gather(*workers)
        cutter.cancel()
        await asyncio.gather(cutter, return_exceptions=True)
        assert len(answers) == 480
        assert set(all.shop.ran.values()) == {1}
        assert all.asks.direct_counts()["again"] > 0


async def test_what_is_not_kept_any_more_may_have_run_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.outcomes.MAX_BYTES", 1)
    async with two() as all:
        deaf(all.asks, *ANSWERS)
        call = asyncio.create_task(all.asks.call("shop.get", {"sku": "a"}))
        await until(lambda: all.shop.ran)
        cut(all.asks)
        with pytest.raises(ExecutionFailed, match="may have been done") as error:
            await call
        assert error.value.retryable
        assert all.shop.ran == {"a": 1}


async def test_a_call_that_is_too_large_to_be_asked_again_fails_and_the_others_go_on() -> None:
    async with two() as all:
        deaf(all.sells, "call.requested")
        most = all.asks.options.max_frame_bytes
        large = asyncio.create_task(all.asks.call("shop.get", {"sku": "x" * (most - 200)}))
        small = asyncio.create_task(all.asks.call("shop.get", {"sku": "a"}))
        await until(lambda: all.asks.direct_counts()["asked"] == 2)
        cut(all.asks)
        with pytest.raises(ExecutionFailed, match=r"the direct connection was lost, and .* the limit") as error:
            await large
        assert error.value.retryable
        assert await small == "A"


async def test_without_the_other_spoke_or_without_a_hub_the_caller_hears_the_retryable_error() -> None:
    async with two() as all:
        call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
        await all.shop.entered.wait()
        await all.sells.close()
        with pytest.raises(ExecutionFailed) as error:
            await call
        assert error.value.retryable
    async with two() as all:
        call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
        await all.shop.entered.wait()
        all.hub.router.endpoint.close()
        await until(lambda: not all.asks.connected)
        cut(all.asks)
        with pytest.raises(ExecutionFailed, match="no hub to ask again") as error:
            await call
        assert error.value.retryable


async def test_who_gives_up_after_the_connection_died_stops_what_runs() -> None:
    async with two() as all:
        call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
        await all.shop.entered.wait()
        cut(all.asks)
        await until(lambda: all.sells.direct_counts()["resumed"] == 1)
        call.cancel()
        await until(lambda: all.shop.cancelled == 1)


async def test_what_nobody_asks_for_again_stops_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.protocol.outcomes.KEEP", 0.05)
    monkeypatch.setattr("broker.spoke.resuming.KEEP", 0.05)
    async with two() as all:
        call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
        await all.shop.entered.wait()
        all.asks._directs.peers.introduces = False  # as with a hub that does not know `again`
        cut(all.asks)
        with pytest.raises(ExecutionFailed):
            await call
        await until(lambda: all.shop.cancelled == 1)


async def test_both_dial_at_once_and_one_connection_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "HEAD_START", 0.0)
    async with a_hub() as hub:
        for _ in range(6):
            left, right = Shop(), Shop()
            async with (
                serving(hub.ticket, "left", left__get=left.get) as one,
                serving(hub.ticket, "right", right__get=right.get) as other,
            ):
                one_way, other_way = await asyncio.gather(one.direct("right"), other.direct("left"))
                assert (one_way.operations, other_way.operations) == (("right.get",), ("left.get",))
                asked = [
                    asyncio.gather(
                        one.call("right.get", {"sku": str(number)}), other.call("left.get", {"sku": str(number)})
                    )
                    for number in range(50)
                ]
                await asyncio.gather(*asked)
                await until(lambda one=one, other=other: len(links(one)) == len(links(other)) == 1)  # type: ignore[misc]
                assert link(one).dialled != link(other).dialled, "the same one at both sides"
                assert set(left.ran.values()) == set(right.ran.values()) == {1}
                assert await one.call("right.get", {"sku": "last"}) == "LAST"


async def test_an_introduced_spoke_refuses_and_calls_go_on_by_way_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_hub() as hub:
        shop = Shop()
        closed = SpokeOptions(direct=False, backoff_first=0.01, backoff_most=0.05)
        async with (
            serving(hub.ticket, "closed", options=closed, closed__get=shop.get),
            serving(hub.ticket, "full", full__get=shop.get),
            serving(hub.ticket, "asks") as asks,
        ):
            with pytest.raises(AccessDenied, match="closed takes no introductions"):
                await asks.direct("closed")
            assert await asks.call("closed.get", {"sku": "a"}) == "A"
            asked = peers_module.Peers._acceptable

            def refuses(self: peers_module.Peers, said: object) -> int:
                monkeypatch.setattr(peers_module, "MAX_PEERS", 0)
                return asked(self, said)  # type: ignore[arg-type]

            monkeypatch.setattr(peers_module.Peers, "_acceptable", refuses)
            with pytest.raises(AccessDenied, match=r"full does not take the introduction: .* which is the limit"):
                await asks.direct("full")
            assert await asks.call("full.get", {"sku": "b"}) == "B"
            assert Numbers(hub)("grants_refused_total", reason="takes_none") == 1
            assert Numbers(hub)("grants_refused_total", reason="spoke_refused") == 1
            assert Numbers(hub)("grants_issued_total") == 0


async def test_who_is_not_there_or_not_known_by_that_name() -> None:
    async with two(direct=False) as all, serving(all.hub.ticket, "sells", options=FAST):
        with pytest.raises(ExecutionFailed, match="no spoke 'nobody'"):
            await all.asks.direct("nobody")
        with pytest.raises(ValidationFailed, match="several spokes"):
            await all.asks.direct("sells")
        with pytest.raises(ValidationFailed, match="itself"):
            await all.asks.direct("asks")
        assert (await all.asks.direct(all.sells.node_id.upper())).name == "sells"


async def test_a_spoke_that_comes_back_is_connected_with_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.spoke.peers.FIRST_AGAIN", 0.02)
    monkeypatch.setattr("broker.spoke.directs.FIRST_AGAIN", 0.02)
    async with two() as all:
        first = link(all.asks)
        cut(all.sells)
        assert await all.asks.call("shop.get", {"sku": "a"}) == "A"
        await until(lambda: first.ended and all.asks.neighbours())
        asked = all.asks.direct_counts()["asked"]
        assert await all.asks.call("shop.get", {"sku": "b"}) == "B"
        assert all.asks.direct_counts()["asked"] == asked + 1


async def test_what_is_not_wanted_any_more_ends_at_both_sides() -> None:
    async with two() as all:
        all.asks.part("sells")
        await until(lambda: not links(all.sells))
        assert all.asks.neighbours() == []
        assert await all.asks.call("shop.get", {"sku": "a"}) == "A"
        with pytest.raises(OperationNotFound):
            await all.asks.call("shop.nothing")


async def test_a_spoke_that_drains_finishes_what_came_directly_and_gets_no_more() -> None:
    async with two() as all:
        call = asyncio.create_task(all.asks.call("shop.held", {"sku": "a"}))
        await all.shop.entered.wait()
        drained = asyncio.create_task(all.sells.drain(PATIENCE))
        await until(lambda: not any(one.operations for one in all.asks.neighbours()))
        all.shop.gate.set()
        assert (await call, await drained) == ("A", 0)


async def test_metrics_tell_calls_by_their_path_and_who_is_connected() -> None:
    async with two() as all:
        await all.asks.call("shop.get", {"sku": "a"})
        await all.asks.call("hub.spokes")
        told = {
            (sample.name, *sample.labels.values()): sample.value
            for family in DirectCollector(all.asks).collect()
            for sample in family.samples
        }
        assert told["broker_spoke_direct_connections",] == 1
        assert told["broker_spoke_calls_asked_total", "direct"] == 1
        assert told["broker_spoke_calls_asked_total", "hub"] == 2, "the introduction is one of them"
        assert Numbers(all.hub)("grants_issued_total") == 1
