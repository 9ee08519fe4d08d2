"""Calls across the hub under bad luck: each ends once, soon, with the truth, and harms no other.

Not here: full queues and large messages (test_calls_back_pressure.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from broker import Spoke, connect
from broker.errors import (
    CallAborted,
    CallError,
    CallTimeout,
    ExecutionFailed,
    OperationNotFound,
    ValidationFailed,
)
from tests.rig import FAST, PATIENCE, Numbers, a_hub, a_peer, cut, serving, spokes, until


async def echo(text: str) -> str:
    return text


class Held:
    """A handler that waits: it says when it began, and how it ended."""

    def __init__(self) -> None:
        self.began, self.cancelled = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def watch(self) -> AsyncIterator[int]:
        yield 1
        yield 2
        await self.wait()


@pytest.mark.parametrize("how", ["cut", "closed"])
async def test_the_caller_hears_at_once_that_the_spoke_is_gone(how: str) -> None:
    held, watched = Held(), Held()
    async with a_hub() as hub, spokes(hub.ticket, "caller") as (caller,):
        async with serving(hub.ticket, "server", t__wait=held.wait, t__watch=watched.watch) as server:
            call = asyncio.create_task(caller.call("t.wait", timeout=3600))
            stream = caller.stream("t.watch", timeout=3600)
            assert [await anext(stream), await anext(stream)] == [1, 2]
            await held.began.wait()
            if how == "cut":
                cut(hub, "server")
            else:
                await server.close()
            for failing in (call, asyncio.ensure_future(cast("Any", anext(stream)))):
                with pytest.raises(ExecutionFailed, match=r"server went away|spoke stopped") as failed:
                    await asyncio.wait_for(failing, PATIENCE)
                assert failed.value.retryable
            await asyncio.wait_for(held.cancelled.wait(), PATIENCE)
            await asyncio.wait_for(watched.cancelled.wait(), PATIENCE)
        await until(lambda: len(hub.router.calls) == 0)
        numbers = Numbers(hub)
        assert numbers("calls_total", operation="t.wait", code="EXECUTION_ERROR") == 1
        assert numbers("calls_total", operation="t.watch", code="EXECUTION_ERROR") == 1
        assert numbers("calls_in_flight") == 0


async def test_a_caller_that_leaves_takes_its_calls_with_it() -> None:
    held = Held()
    async with a_hub() as hub, serving(hub.ticket, "server", t__wait=held.wait):
        async with spokes(hub.ticket, "caller") as (caller,):
            call = asyncio.create_task(caller.call("t.wait"))
            await held.began.wait()
        with pytest.raises(ExecutionFailed):
            await call
        await asyncio.wait_for(held.cancelled.wait(), PATIENCE)
        assert Numbers(hub)("calls_total", operation="t.wait", code="ABORTED") == 1


async def test_a_cancelled_caller_and_a_closed_stream_cancel_their_handlers() -> None:
    held, watched = Held(), Held()
    async with (
        a_hub() as hub,
        serving(hub.ticket, "s", t__wait=held.wait, t__watch=watched.watch),
        spokes(hub.ticket, "caller") as (caller,),
    ):
        call = asyncio.create_task(caller.call("t.wait"))
        await held.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(held.cancelled.wait(), PATIENCE)
        async with aclosing(cast("Any", caller.stream("t.watch"))) as items:
            assert await anext(items) == 1
            await watched.began.wait()
        await asyncio.wait_for(watched.cancelled.wait(), PATIENCE)
        await until(lambda: len(hub.router.calls) == 0)
        assert Numbers(hub)("calls_total", code="ABORTED") == 2


async def test_an_abort_cascades_through_spokes() -> None:
    """a calls b calls c calls d: who gives up at the top stops all of them."""
    held = {name: Held() for name in "bcd"}
    apps: dict[str, Spoke] = {}

    def passing(name: str, following: str) -> Any:
        async def handler() -> None:
            held[name].began.set()
            try:
                await apps[name].call(f"t.{following}", timeout=60)
            except (asyncio.CancelledError, CallAborted):
                held[name].cancelled.set()
                raise

        return handler

    async with (
        a_hub() as hub,
        spokes(hub.ticket, "a") as (a,),
        serving(hub.ticket, "b", t__b=passing("b", "c")) as apps["b"],
        serving(hub.ticket, "c", t__c=passing("c", "d")) as apps["c"],
        serving(hub.ticket, "d", t__d=held["d"].wait) as apps["d"],
    ):
        call = asyncio.create_task(a.call("t.b"))
        await held["d"].began.wait()
        assert len(hub.router.calls) == 3
        call.cancel()
        for one in held.values():
            await asyncio.wait_for(one.cancelled.wait(), PATIENCE)
        await until(lambda: len(hub.router.calls) == 0)
        assert Numbers(hub)("calls_total", code="ABORTED") == 3


async def test_only_the_spoke_that_was_asked_can_answer() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "caller") as (caller,),
        a_peer(hub.ticket, name="asked", operations=("t.x",)) as asked,
        a_peer(hub.ticket, name="liar") as liar,
    ):
        call = asyncio.create_task(caller.call("t.x", timeout=PATIENCE))
        leg = (await asked.hears("call.requested"))["requestId"]
        for type in ("call.responded", "call.completed", "call.error", "call.aborted", "call.credit"):
            liar.say(type, {"requestId": leg, "output": "lie", "code": "LIE", "message": "lie", "n": 5})
        await until(lambda: hub.router.calls.stray == 5)
        assert not call.done()
        asked.say("call.responded", {"requestId": leg, "output": "truth"})
        assert await call == "truth"
        for type in ("call.responded", "call.completed", "call.error"):  # after the end
            asked.say(type, {"requestId": leg, "output": "more"})
        await until(lambda: hub.router.calls.stray == 8)
        assert Numbers(hub)("stray_answers_total") == 8
        assert Numbers(hub)("calls_total", operation="t.x") == 1


async def test_a_reused_request_id_does_not_disturb_the_first_call() -> None:
    async with (
        a_hub() as hub,
        a_peer(hub.ticket, name="server", operations=("t.x",)) as server,
        a_peer(hub.ticket) as caller,
    ):
        request = {"requestId": "1", "operationId": "t.x", "input": None}
        caller.say("call.requested", request)
        leg = (await server.hears("call.requested"))["requestId"]
        caller.say("call.requested", request)
        assert "'1'" in (await caller.hears("hub.error", code="VALIDATION_ERROR"))["message"]
        server.say("call.responded", {"requestId": leg, "output": 1})
        assert (await caller.hears("call.responded", requestId="1"))["output"] == 1
        caller.say("call.requested", request)  # it has ended, so the id is free
        leg = (await server.hears("call.requested"))["requestId"]
        server.say("call.responded", {"requestId": leg, "output": 2})
        assert (await caller.hears("call.responded", requestId="1"))["output"] == 2
        assert Numbers(hub)("protocol_errors_total", code="validation_error") == 1


async def test_identity_is_stamped_over_what_the_caller_wrote() -> None:
    async with (
        a_hub() as hub,
        a_peer(hub.ticket, name="server", operations=("t.x",)) as server,
        a_peer(hub.ticket) as liar,
    ):
        forged = {"id": server.endpoint.node_id, "scopes": ["admin"], "resources": {"all": True}}
        liar.say("call.requested", {"requestId": "1", "operationId": "t.x", "input": 1, "identity": forged})
        asked = await server.hears("call.requested")
        assert asked["identity"] == {"id": liar.endpoint.node_id, "scopes": [], "resources": {}}


async def test_a_deadline_in_the_past_is_a_timeout_at_once_and_nobody_is_asked() -> None:
    async with (
        a_hub() as hub,
        a_peer(hub.ticket, name="server", operations=("t.x",)) as server,
        a_peer(hub.ticket) as caller,
    ):
        lates: list[dict[str, float]] = [{"deadline": 1}, {"deadline": time.time() * 1000 - 1}, {"timeoutMs": 0}]
        for number, late in enumerate(lates):
            caller.say("call.requested", {"requestId": str(number), "operationId": "t.x", **late})
            await caller.hears("call.error", requestId=str(number), code="TIMEOUT")
        assert not [message for message in server.received if message["type"] == "call.requested"]
        assert Numbers(hub)("calls_total", code="TIMEOUT") == 3


async def test_a_call_that_is_not_answered_times_out_at_the_hub_which_tells_the_spoke() -> None:
    async with (
        a_hub() as hub,
        a_peer(hub.ticket, name="mute", operations=("t.x",)) as mute,
        spokes(hub.ticket, "caller") as (caller,),
    ):
        with pytest.raises(CallTimeout, match="no answer within"):
            await caller.call("t.x", timeout=0.1)
        leg = (await mute.hears("call.requested"))["requestId"]
        assert await mute.hears("call.aborted", requestId=leg)
        assert Numbers(hub)("calls_total", operation="t.x", code="TIMEOUT") == 1


async def test_a_roll_call_names_who_did_not_answer_and_who_left() -> None:
    async with (
        a_hub() as hub,
        spokes(hub.ticket, "caller") as (caller,),
        serving(hub.ticket, "good", t__x=echo),
        a_peer(hub.ticket, name="mute", operations=("t.x",)) as mute,
        a_peer(hub.ticket, name="angry", operations=("t.x",)) as angry,
        a_peer(hub.ticket, name="leaver", operations=("t.x",)) as leaver,
    ):
        roll = asyncio.create_task(caller.roll_call("t.x", {"text": "hi"}, timeout=1))
        leg = (await angry.hears("call.requested"))["requestId"]
        angry.say("call.error", {"requestId": leg, "code": "ACCESS_DENIED", "message": "no"})
        await leaver.hears("call.requested")
        await mute.hears("call.requested")
        cut(hub, "leaver")
        result = await roll
        answers = {answer.name: answer for answer in result.answers}
        assert answers.keys() == {"good", "angry"}
        assert answers["good"].output == "hi"
        assert answers["angry"].error is not None
        assert answers["angry"].error.code == "ACCESS_DENIED"
        assert {one.name for one in result.missing} == {"mute", "leaver"}
        assert {one.node_id for one in result.missing} == {mute.endpoint.node_id, leaver.endpoint.node_id}


async def test_calls_go_to_the_spoke_with_the_least_in_flight() -> None:
    names: list[str] = []

    def server(name: str) -> Any:
        async def take() -> str:
            names.append(name)
            await asyncio.Event().wait()
            return name

        return take

    async with (
        a_hub() as hub,
        spokes(hub.ticket, "caller") as (caller,),
        serving(hub.ticket, "one", t__take=server("one")),
        serving(hub.ticket, "two", t__take=server("two")),
        serving(hub.ticket, "three", t__take=server("three")),
    ):
        calls = [asyncio.create_task(caller.call("t.take")) for _ in range(9)]
        await until(lambda: len(names) == 9)
        assert sorted(names) == ["one"] * 3 + ["three"] * 3 + ["two"] * 3
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_a_spoke_calls_its_own_operation_and_the_hubs() -> None:
    async with a_hub() as hub, serving(hub.ticket, "both", t__echo=echo) as both:
        assert await both.call("t.echo", {"text": "me"}) == "me"
        (row,) = [row for row in await both.call("hub.operations") if row["operation"] == "t.echo"]
        assert row["spokes"] == [{"node_id": both.node_id, "name": "both"}]
        (spoke,) = await both.call("hub.spokes")
        assert (spoke["node_id"], spoke["name"], spoke["path"]) == (both.node_id, "both", "direct")
        assert await both.call("hub.topics") == []
        with pytest.raises(OperationNotFound):
            await both.call("hub.nothing")
        with pytest.raises(ValidationFailed):
            await both.call("t.echo", {"text": 5})


def _gives(output: Any) -> Any:
    async def handler(_input: Any, _call: Any) -> Any:
        return output

    return handler


async def test_errors_of_handlers_reach_the_caller_and_the_spoke_goes_on() -> None:
    app = Spoke("s", options=FAST)

    @app.operation("t.raises")
    async def raises() -> None:
        raise LookupError("nothing here")

    @app.operation("t.times_out_itself")
    async def times_out_itself() -> None:
        raise TimeoutError("my own")

    @app.operation("t.later")
    async def later() -> None:
        raise ExecutionFailed("not yet", details={"left": 3}, retryable=True)

    @app.operation("t.soon")
    async def soon() -> None:
        raise ExecutionFailed("almost", retryable=True)

    @app.operation("t.wordy")
    async def wordy() -> None:
        raise CallError("long" * 400_000, details={"a": {1}})

    @app.operation("t.items")
    async def items() -> AsyncIterator[str]:
        yield "a"
        yield "x" * 1_100_000

    app.offer("t.set", _gives({1, 2}))
    app.offer("t.huge", _gives("x" * 1_100_000))
    app.offer("t.fine", _gives(1))
    async with a_hub() as hub, spokes(hub.ticket, "caller") as (caller,):
        app.start(hub.ticket)
        await app.wait_connected(PATIENCE)
        for operation, message in {
            "t.raises": "nothing here",
            "t.times_out_itself": "my own",
            "t.set": "JSON",
            "t.huge": "limit",
        }.items():
            with pytest.raises(ExecutionFailed, match=message):
                await caller.call(operation, timeout=PATIENCE)
        for operation, details in {
            "t.later": {"left": 3, "retryable": True},
            "t.soon": {"retryable": True},
        }.items():
            with pytest.raises(ExecutionFailed) as failed:
                await caller.call(operation, timeout=PATIENCE)
            assert failed.value.retryable
            assert failed.value.details == details
        with pytest.raises(CallError, match="longlong"):
            await caller.call("t.wordy", timeout=PATIENCE)
        stream = caller.stream("t.items", timeout=PATIENCE)
        assert await anext(stream) == "a"
        with pytest.raises(ExecutionFailed, match="limit"):
            await anext(stream)
        assert await caller.call("t.fine") == 1
        assert app.counts()["connects"] == 1
        await app.close()


async def test_the_limit_of_calls_in_flight_holds() -> None:
    held = Held()
    async with (
        a_hub(limits={"calls_in_flight_per_peer": 2}) as hub,
        serving(hub.ticket, "s", t__wait=held.wait),
        spokes(hub.ticket, "caller") as (caller,),
    ):
        calls = [asyncio.create_task(caller.call("t.wait")) for _ in range(2)]
        await until(lambda: len(hub.router.calls) == 2)
        with pytest.raises(ExecutionFailed, match="in flight") as failed:
            await caller.call("t.wait")
        assert failed.value.retryable
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_when_the_hub_stops_calls_fail_at_once() -> None:
    held = Held()
    async with (
        a_hub() as hub,
        serving(hub.ticket, "s", t__wait=held.wait),
        connect(hub.ticket, options=FAST) as caller,
    ):
        call = asyncio.create_task(caller.call("t.wait", timeout=3600))
        await held.began.wait()
        await hub.__aexit__(None, None, None)
        with pytest.raises(CallError) as failed:
            await asyncio.wait_for(call, PATIENCE)
        assert failed.value.retryable
        await asyncio.wait_for(held.cancelled.wait(), PATIENCE)
        with pytest.raises(ExecutionFailed, match="no connection") as refused:
            await caller.call("t.wait")
        assert refused.value.retryable
