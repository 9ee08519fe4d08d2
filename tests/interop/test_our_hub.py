"""A spoke written on PyPI's ``iroh`` alone against our hub, beside a spoke of ours: all that upstream's contract
promises it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker import Hub, HubConfig, Spoke, connect
from broker.errors import ExecutionFailed
from broker.protocol.ticket import Ticket
from tests.interop.foreign import PATIENCE, Operation, Peer, foreign_spoke

BURST = 3_000


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub(HubConfig(open=True, bind="127.0.0.1:0", http="")) as hub:
        yield hub


@pytest.fixture
async def ours(hub: Hub) -> AsyncIterator[Spoke]:
    async with connect(hub.ticket, name="ours") as spoke:
        yield spoke


@asynccontextmanager
async def joined(hub: Hub, operations: dict[str, Operation] | None = None) -> AsyncIterator[Peer]:
    """A foreign spoke that the hub has answered."""
    ticket = Ticket.decode(hub.ticket)
    async with foreign_spoke(ticket.node_id, list(ticket.addrs), operations, name="theirs") as peer:
        await peer.hears_type("hub.register")
        yield peer


async def double(input: Any) -> Any:
    return {"doubled": input["n"] * 2}


async def refuse(input: Any) -> Any:
    raise ValueError("not today")


async def test_both_register(hub: Hub) -> None:
    async with joined(hub, {"their.double": double}) as peer:
        answer = await peer.hears_type("hub.register")
        assert {"hub.operations", "hub.spokes", "hub.topics"} <= {item["id"] for item in answer["detail"]["operations"]}
        listed = await peer.call("hub.operations", {})
        assert "their.double" in str(listed["detail"]["output"])


async def test_it_calls_an_operation_of_ours(hub: Hub, ours: Spoke) -> None:
    seen: list[Any] = []

    async def shout(input: Any, call: Any) -> Any:
        seen.append(call.identity["id"])
        return input["text"].upper()

    ours.offer("our.shout", shout)
    await ours.call("hub.operations", {})  # the offer came before this on the same lane
    async with joined(hub) as peer:
        answer = await peer.call("our.shout", {"text": "hello"}, identity={"id": "forged"})
        assert answer["type"] == "call.responded"
        assert answer["detail"]["output"] == "HELLO"
        assert seen == [peer.node_id]
        missing = await peer.call("nobody.offers.this", None)
        assert (missing["type"], missing["detail"]["code"]) == ("call.error", "OPERATION_NOT_FOUND")


async def test_it_serves_an_operation_to_ours(hub: Hub, ours: Spoke) -> None:
    async with joined(hub, {"their.double": double, "their.refusal": refuse}):
        assert await ours.call("their.double", {"n": 21}) == {"doubled": 42}
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*(ours.call("their.double", {"n": n}) for n in range(100)))
        assert answers == [{"doubled": 2 * n} for n in range(100)]
        with pytest.raises(ExecutionFailed, match="not today"):
            await ours.call("their.refusal")


async def test_when_it_goes_its_callers_hear_so_at_once(hub: Hub, ours: Spoke) -> None:
    never, asked = asyncio.Event(), asyncio.Event()

    async def hang(input: Any) -> Any:
        asked.set()
        await never.wait()

    async with joined(hub, {"their.hang": hang}):
        call = asyncio.create_task(ours.call("their.hang", timeout=PATIENCE))
        await asyncio.wait_for(asked.wait(), PATIENCE)
    with pytest.raises(ExecutionFailed) as caught:
        await asyncio.wait_for(call, PATIENCE / 2)
    assert caught.value.retryable


async def test_its_streams_need_no_credit(hub: Hub, ours: Spoke) -> None:
    """It asks for a stream of ours and never sends call.credit: the hub keeps the window open for it."""

    @ours.operation("our.count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    await ours.call("hub.operations", {})
    async with joined(hub) as peer:
        detail = {"requestId": "s1", "operationId": "our.count", "input": {"to": 1_000}, "stream": True}
        await peer.send("call.requested", detail)
        end = await peer.hears(lambda message: message["type"] in ("call.completed", "call.error"))
        assert end["type"] == "call.completed", end
        numbers = [m["detail"]["output"] for m in peer.received if m["type"] == "call.responded"]
        assert numbers == list(range(1_000))


async def test_it_publishes_without_meta_and_the_hub_gives_each_event_its_place(hub: Hub, ours: Spoke) -> None:
    async with ours.subscribe("their.events") as events, ours.subscribe("their.*") as all_events:
        await ours.call("hub.topics", {})  # the subscriptions came before this on the same lane
        async with joined(hub) as peer, asyncio.timeout(PATIENCE):
            for i in range(BURST):
                await peer.send("their.events", {"i": i})
            heard = [await anext(events) for _ in range(BURST)]
            assert [event.detail["i"] for event in heard] == list(range(BURST))
            assert [event.seq for event in heard] == list(range(1, BURST + 1))
            assert len({(event.author, event.meta["epoch"]) for event in heard}) == 1
            assert len([await anext(all_events) for _ in range(BURST)]) == BURST
            assert (events.verdict, all_events.verdict) == ("complete", "complete")
            await peer.hears_type("topic.ack")  # which it does not know, and need not


async def test_it_publishes_with_a_place_of_its_own_and_cannot_use_anothers_name(hub: Hub, ours: Spoke) -> None:
    async with ours.subscribe("t") as events:
        await ours.call("hub.topics", {})
        async with joined(hub) as peer, asyncio.timeout(PATIENCE):
            await peer.send("t", 0)
            me = (await anext(events)).author
            for seq in (5, 6, 6, 7):
                await peer.send("t", seq, meta={"author": me, "epoch": "00000000000000aa", "seq": seq})
            own = [await anext(events) for _ in range(3)]
            assert [(event.detail, event.seq, event.meta["epoch"]) for event in own] == [
                (seq, seq, "00000000000000aa") for seq in (5, 6, 7)
            ]
            await peer.send("t", "forged", meta={"author": ours.node_id, "epoch": "00000000000000bb", "seq": 1})
            forged = await anext(events)
            assert (forged.detail, forged.author) == ("forged", me)
            assert forged.meta["epoch"] != "00000000000000bb"


async def test_it_subscribes_and_leaves(hub: Hub, ours: Spoke) -> None:
    async with joined(hub) as peer, asyncio.timeout(PATIENCE):
        await peer.send("__subscribe", {"topics": ["our.events", "our.patterns.*"]})
        await peer.call("hub.topics", {})  # answered after the subscription was heard
        for i in range(BURST):
            await ours.publish("our.events", {"i": i})
        await ours.publish("our.patterns.x", "p")
        events = await peer.hears_type("our.events", BURST)
        assert [event["detail"]["i"] for event in events] == list(range(BURST))
        assert (await peer.hears_type("our.patterns.x"))["detail"] == "p"
        await ours.flush()

        await peer.send("__unsubscribe", {"topics": ["our.events"]})
        await peer.call("hub.topics", {})
        await ours.publish("our.events", "unheard")
        await ours.flush()
        await ours.publish("our.patterns.x", "last")
        await peer.hears(lambda message: message["detail"] == "last")
        assert not any(message["detail"] == "unheard" for message in peer.received)


async def test_what_the_hub_takes_ill_does_not_end_the_connection(hub: Hub, ours: Spoke) -> None:
    async with joined(hub) as peer:
        wrongs = [("not a topic", "BAD_TOPIC"), ("hub.unknown", "UNKNOWN_TYPE"), ("__unknown", "RESERVED_TOPIC")]
        for number, (type, code) in enumerate(wrongs, 1):
            await peer.send(type, {})
            await peer.hears_type("hub.error", number)
            complaint = [message for message in peer.received if message["type"] == "hub.error"][-1]
            assert (complaint["detail"]["code"], complaint["detail"]["about"]) == (code, type)
        assert (await peer.call("hub.topics", {}))["type"] == "call.responded"


FLOOD = 3_000
FLOODING = f"""
import asyncio
from broker import Hub, HubConfig, connect

async def main():
    async with Hub(HubConfig(open=True, bind="127.0.0.1:0", http="")) as hub, connect(hub.ticket) as author:
        print(hub.ticket, flush=True)
        await asyncio.to_thread(input)
        for i in range({FLOOD}):
            await author.publish("our.events", i)
            await asyncio.sleep(0.0002)
        print("published", flush=True)
        await asyncio.to_thread(input)

asyncio.run(main())
"""


@pytest.fixture
def flooding() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FLOODING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        yield process
        process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0


async def test_a_flood_that_it_does_not_read_at_once_does_not_end_its_connection(
    flooding: subprocess.Popen[str],
) -> None:
    """The flood is of another process, and nothing is read until it is over: small writes, all of them unread."""
    assert flooding.stdin is not None
    assert flooding.stdout is not None
    ticket = Ticket.decode(flooding.stdout.readline().strip())
    async with foreign_spoke(ticket.node_id, list(ticket.addrs)) as peer, asyncio.timeout(2 * PATIENCE):
        await peer.hears_type("hub.register")
        await peer.send("__subscribe", {"topics": ["our.events"]})
        await peer.call("hub.topics", {})
        flooding.stdin.write("\n")
        assert flooding.stdout.readline() == "published\n"  # the loop stands still meanwhile
        events = await peer.hears_type("our.events", FLOOD)
        assert [event["detail"] for event in events] == list(range(FLOOD))
