"""The hub's watch on its relays, with real ones that stop, come back, or fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from broker import Hub, Spoke
from broker.config_values import relay_url
from broker.errors import CallError
from broker.hub.relay_watch import RelayWatch
from tests.relay.stage import Stage, by_relay, valve
from tests.rig import POLL, Numbers, serving, spokes, until

pytestmark = pytest.mark.timeout(240)

NOTICED = 60.0
"""Patience with a busy machine, not the promise: that it takes 10 s is shown in virtual time (test_reachability.py)."""
ANSWER = 30.0


def watch_of(hub: Hub) -> RelayWatch:
    assert hub._relay_watch is not None
    return hub._relay_watch


def states(hub: Hub) -> dict[str, Any]:
    return {row["url"]: row for row in watch_of(hub).told()["relays"]}


def home(hub: Hub) -> str | None:
    return next((url for url, row in states(hub).items() if row["home"]), None)


async def reachable(hub: Hub) -> None:
    await until(lambda: any(row["reachable"] for row in states(hub).values()))


async def answered(asks: Spoke) -> None:
    """A call goes through to the spoke that offers it. Its connection may have moved along or be made anew."""
    async with asyncio.timeout(NOTICED):
        while True:
            try:
                assert await asks.call("echo", {"text": "on"}, timeout=5) == "on"
                return
            except CallError:
                await asyncio.sleep(POLL)


async def ready(hub: Hub) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{hub.http_address}/readyz") as response:
        return response.status, await response.json()


async def test_a_hub_that_only_relays_reach_says_when_none_does_and_when_one_does_again(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(stage.relay())
        address = relay.relay.address()
        hub = await stack.enter_async_context(stage.hub(relay.url, http="127.0.0.1:0"))
        far = await stack.enter_async_context(
            serving(by_relay(hub), "far", options=stage.apart, echo=lambda text: text)
        )
        await reachable(hub)
        assert (await ready(hub))[0] == 200
        await asyncio.to_thread(relay.relay.close)
        await until(lambda: watch_of(hub).not_ready() is not None, NOTICED)
        status, body = await ready(hub)
        assert status == 503
        assert body["reason"].startswith(f"not reachable through its relays: {relay.url}: ")
        assert body["relays"][0]["reachable"] is False
        assert Numbers(hub)("relay_reachable", relay=relay.url) == 0
        await until(lambda: not far.connected)
        await stack.enter_async_context(stage.relay(bind=address))
        await reachable(hub)
        await far.wait_connected(ANSWER)
        async with spokes(by_relay(hub), "asks", options=stage.apart) as (asks,):
            assert await asks.call("echo", {"text": "back"}, timeout=ANSWER) == "back"
        assert (await ready(hub))[0] == 200


@asynccontextmanager
async def two(stage: Stage) -> AsyncIterator[tuple[Any, Any, Hub]]:
    """Two relays, the second one behind the first in the ticket, and a hub at home on one of them."""
    async with (
        stage.relay() as first,
        stage.relay() as second,
        valve(first) as one,
        valve(second) as other,
        stage.hub(one.url, other.url) as hub,
    ):
        await reachable(hub)
        yield (one, other, hub) if home(hub) == one.url else (other, one, hub)


async def test_of_two_relays_one_that_falls_silent_is_left(stage: Stage) -> None:
    async with two(stage) as (at_home, other, hub):
        at_home.shut()
        await until(lambda: home(hub) == other.url and states(hub)[other.url]["reachable"], NOTICED)
        assert states(hub)[at_home.url]["reachable"] is False
        assert Numbers(hub)("relay_moves_total") == 1


async def test_a_hub_whose_spokes_are_direct_is_reached_through_the_other_relay(stage: Stage) -> None:
    """What those spokes' paths by the dead relay send fills iroh's queue for it, and that holds up what is for the
    other relay, for over 75 s (docs/decisions/0008). So the hub makes its endpoint for relays anew, and they notice
    nothing of it."""
    names = [f"direct{number}" for number in range(40)]
    async with (
        stage.relay() as first,
        stage.relay() as second,
        stage.hub(first.url, second.url, http="127.0.0.1:0") as hub,
        spokes(by_relay(hub), *names, options=stage.options) as near,
    ):
        await reachable(hub)
        await until(lambda: all((stats := spoke.stats()) and stats.path == "direct" for spoke in near))
        dies, lives = (first, second) if home(hub) == relay_url(first.url) else (second, first)
        await asyncio.to_thread(dies.relay.close)
        await until(lambda: Numbers(hub)("relay_rebuilds_total") == 1, NOTICED)
        async with spokes(by_relay(hub), "comes", options=stage.apart) as (comes,):
            assert await comes.call("hub.topics", timeout=ANSWER) == []
        await until(lambda: states(hub)[relay_url(lives.url)]["reachable"])
        status, body = await ready(hub)
        assert (status, {row["url"]: row["reachable"] for row in body["relays"]}) == (
            200,
            {relay_url(dies.url): False, relay_url(lives.url): True},
        )
        for spoke in near:
            assert await spoke.call("hub.topics", timeout=ANSWER) == []
        assert {spoke._link.connects for spoke in near} == {1}
        assert Numbers(hub)("relay_rebuilds_total") == 1


async def test_spokes_are_reached_when_of_two_relays_one_falls_silent(stage: Stage) -> None:
    async with (
        two(stage) as (at_home, other, hub),
        serving(by_relay(hub), "far", options=stage.apart, echo=lambda text: text),
    ):
        at_home.shut()
        await until(lambda: states(hub)[other.url]["reachable"], NOTICED)
        async with spokes(by_relay(hub), "asks", options=stage.apart) as (asks,):
            await answered(asks)


async def test_of_two_relays_one_is_enough_for_ever(stage: Stage) -> None:
    async with stage.relay() as gone, stage.relay() as stays, stage.hub(gone.url, stays.url) as hub:
        await reachable(hub)
        ended = gone if home(hub) == gone.url else stays
        lasting = stays if ended is gone else gone
        async with serving(by_relay(hub), "far", options=stage.apart, echo=lambda text: text):
            await asyncio.to_thread(ended.relay.close)
            await until(lambda: states(hub)[lasting.url]["reachable"], NOTICED)
            async with spokes(by_relay(hub), "asks", options=stage.apart) as (asks,):
                await answered(asks)
            assert home(hub) == lasting.url


async def test_who_goes_by_a_relay_that_dies_is_at_once_on_another(stage: Stage) -> None:
    """Long before any connection is dead of silence: neither the hub nor the spokes wait for that here."""
    patient = replace(stage.apart, idle_timeout=NOTICED)
    async with (
        stage.relay() as first,
        stage.relay() as second,
        stage.hub(first.url, second.url, limits={"idle_timeout": NOTICED}) as hub,
    ):
        await reachable(hub)
        dies = first if home(hub) == relay_url(first.url) else second
        async with (
            serving(by_relay(hub), "far", options=patient, echo=lambda text: text) as far,
            spokes(by_relay(hub), "asks", options=patient) as (asks,),
        ):
            await asyncio.to_thread(dies.relay.close)
            await until(lambda: far._link.connects > 1 and asks._link.connects > 1, ANSWER)
            assert await asks.call("echo", {"text": "on"}, timeout=ANSWER) == "on"
            assert Numbers(hub)("relay_cut_connections_total") == 2


async def test_the_only_relay_that_falls_silent_is_seen_and_used_again_when_it_speaks(stage: Stage) -> None:
    async with stage.relay() as relay, valve(relay) as only, stage.hub(only.url) as hub:
        await reachable(hub)
        only.shut()
        await until(lambda: watch_of(hub).not_ready() is not None, NOTICED)
        only.open()
        await reachable(hub)
        async with spokes(by_relay(hub), "far", options=stage.apart) as (far,):
            assert await far.call("hub.topics", timeout=ANSWER) == []


async def test_a_relay_with_a_wrong_certificate_is_said_in_the_log_and_by_readyz(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.relay() as relay, stage.hub(relay.url, relay_ca=None, http="127.0.0.1:0") as hub:
        await until(lambda: watch_of(hub).not_ready() not in (None, "its relays have not been reached yet"), NOTICED)
        status, body = await ready(hub)
        assert status == 503
        assert "its certificate is signed by nobody who is believed here" in body["reason"]
        assert "not reachable through the relay" in caplog.text


async def test_a_hub_that_the_relay_does_not_admit_says_so(stage: Stage) -> None:
    async with stage.relay(open=False) as relay, stage.hub(relay.url) as hub:
        await until(lambda: "not on the relay's list" in (watch_of(hub).not_ready() or ""))
        relay.relay.admit(open=False, allow=[hub.node_id])
        await reachable(hub)
        assert watch_of(hub).not_ready() is None
        assert Numbers(hub)("relay_probes_total", outcome="ok") > 0


async def test_a_spoke_whose_relay_comes_back_is_back_soon(stage: Stage) -> None:
    async with stage.relay() as relay, valve(relay) as only, stage.hub(only.url) as hub:
        await reachable(hub)
        async with spokes(by_relay(hub), "far", options=stage.apart) as (far,):
            only.shut()
            await until(lambda: not far.connected)
            only.open()
            await far.wait_connected(ANSWER)
