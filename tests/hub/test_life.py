"""A hub's and a connection's beginning and end: admission, ports, data directories, dialling, draining."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from broker import Hub, HubConfig, Spoke, SpokeOptions, connect, keys
from broker import _gossip_ext as ext
from broker.errors import BindError, CallError, ConfigError, Refused, Unreachable
from broker.protocol.wire import CloseCode
from tests.rig import FAST, PATIENCE, Numbers, Peer, a_hub, a_peer, conn_of, serving, spokes, until


async def echo(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"open": False}, CloseCode.NOT_ADMITTED),
        ({"open": True, "admission": {"deny": ["ME"]}}, CloseCode.BANNED),
        ({"open": False, "admission": {"allow": ["ME"], "deny": ["ME"]}}, CloseCode.BANNED),
        ({"open": False, "admission": {"allow": ["ME"]}}, None),
        ({"open": False, "admission": {"admins": ["ME"]}}, None),
        ({"open": True}, None),
    ],
    ids=["nobody", "denied", "deny beats allow", "allowed", "admin", "open"],
)
async def test_who_is_admitted_and_what_connect_raises(config: dict[str, object], code: int | None) -> None:
    secret = ext.generate_secret()
    me = ext.node_id(secret)
    if "admission" in config:
        admission: dict[str, list[str]] = config["admission"]  # type: ignore[assignment]
        config = {**config, "admission": {key: [me] * len(value) for key, value in admission.items()}}
    async with a_hub(**config) as hub:
        began = time.monotonic()
        if code is None:
            async with connect(hub.ticket, secret=secret, timeout=PATIENCE) as spoke:
                assert spoke.hub_node_id == hub.node_id
            return
        with pytest.raises(Refused) as refused:
            async with connect(hub.ticket, secret=secret, timeout=PATIENCE):
                pass
        assert refused.value.close_code == code
        assert time.monotonic() - began < PATIENCE / 4, "at once, and not at the timeout"
        reason = "not_admitted" if code == CloseCode.NOT_ADMITTED else "banned"
        assert Numbers(hub)("refused_total", reason=reason) >= 1
        assert Numbers(hub)("connects_total") == 0


async def test_run_raises_what_keeps_a_spoke_out_and_returns_on_close() -> None:
    async with a_hub(open=False) as hub:
        with pytest.raises(Refused, match="admit"):
            await asyncio.wait_for(Spoke("out").run(hub.ticket), PATIENCE)
    async with a_hub() as hub:
        app = Spoke("in", options=FAST)
        running = asyncio.create_task(app.run(hub.ticket))
        await until(lambda: app.connected)
        await app.close()
        await asyncio.wait_for(running, PATIENCE)


async def test_a_live_change_of_admission_ends_the_connection_and_keeps_it_out() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "good", "bad") as (good, bad):
        hub.router.endpoint.admit(open=True, allow=[], deny=[bad.node_id])
        await until(lambda: not bad.connected)
        assert await good.call("hub.topics") == []
        with pytest.raises(Refused) as refused:
            await bad.wait_connected(PATIENCE)
        assert refused.value.close_code == CloseCode.BANNED
        assert [session.name for session in hub.router.sessions.values()] == ["good"]
        hub.router.endpoint.admit(open=True, allow=[], deny=[])
        await until(lambda: bad.connected)
        assert await bad.call("hub.topics") == []


async def test_two_connections_of_one_node_id_are_two_spokes() -> None:
    secret = ext.generate_secret()
    async with (
        a_hub() as hub,
        connect(hub.ticket, name="one", secret=secret) as one,
        connect(hub.ticket, name="two", secret=secret) as two,
        one.subscribe("a") as events,
    ):
        assert one.node_id == two.node_id
        assert {row["name"] for row in await one.call("hub.spokes")} == {"one", "two"}
        first, second = await one.publish("a", 1), await two.publish("a", 2)
        assert first.epoch != second.epoch, "each numbers for itself"
        got = [await anext(events), await anext(events)]
        assert sorted(event.detail for event in got) == [1, 2]
        await one.flush()
        await two.flush()
        assert events.verdict == "complete"


async def test_one_node_id_may_have_so_many_connections_and_no_more() -> None:
    secret = ext.generate_secret()
    async with a_hub(limits={"connections_per_node": 1}) as hub, connect(hub.ticket, name="one", secret=secret) as one:
        async with a_peer(hub.ticket, hello=False, secret=secret) as two:
            two.say("hub.register", {"operations": []})
            assert (await two.end())[0] == CloseCode.LIMIT
        async with spokes(hub.ticket, "another") as (another,):
            assert await another.call("hub.topics") == []
        assert await one.call("hub.topics") == []
        assert Numbers(hub)("refused_total", reason="limit") == 1


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with a_hub() as hub:
        address = hub.router.endpoint.addrs()[0]
        with pytest.raises(BindError, match=address):
            async with a_hub(bind=address):
                pass
        async with spokes(hub.ticket, "s") as (spoke,):
            assert await spoke.call("hub.topics") == []


async def test_two_hubs_cannot_have_one_data_directory(tmp_path: Path) -> None:
    async with a_hub(data=tmp_path) as hub:
        with pytest.raises(ConfigError, match="in use by another live hub"):
            async with a_hub(data=tmp_path):
                pass
        ticket = hub.ticket
    async with a_hub(data=tmp_path) as hub:
        assert hub.ticket == ticket, "the key and the port last"


async def test_a_data_directory_stays_with_its_hub(tmp_path: Path) -> None:
    async with Hub(HubConfig(open=True, http="", data=tmp_path / "data")) as hub:
        first = hub.node_id
    keys.create(tmp_path / "other.key")
    with pytest.raises(ConfigError, match=rf"belongs to the hub {first[:10]}.*\n.*a directory of its own"):
        async with Hub(HubConfig(open=True, http="", data=tmp_path / "data", key=tmp_path / "other.key")):
            pass
    async with Hub(HubConfig(open=True, http="", data=tmp_path / "data")) as hub:
        assert hub.node_id == first


async def test_nobody_at_the_ticket_is_unreachable() -> None:
    async with a_hub() as hub:
        ticket = hub.ticket
    with pytest.raises(Unreachable):
        async with connect(ticket, timeout=0.5, options=SpokeOptions(dial_timeout=0.2)):
            pass


async def test_a_hub_that_drains_finishes_what_it_has_and_takes_nobody_new() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        entered.set()
        await go_on.wait()
        return "done"

    async with a_hub() as hub, serving(hub.ticket, "s", t__slow=slow), spokes(hub.ticket, "caller") as (caller,):
        call = asyncio.create_task(caller.call("t.slow"))
        await entered.wait()
        assert (await hub.drain(0.05))["calls"] == 1
        draining = asyncio.create_task(hub.drain(PATIENCE))
        with pytest.raises(Refused):
            async with connect(hub.ticket, timeout=PATIENCE):
                pass
        assert not hub.ready
        go_on.set()
        assert await call == "done"
        assert await draining == {"calls": 0, "queued_bytes": 0}


async def test_a_spoke_that_drains_finishes_its_calls_and_gets_no_more() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        entered.set()
        await go_on.wait()
        return "done"

    async with a_hub() as hub, serving(hub.ticket, "s", t__slow=slow) as app, spokes(hub.ticket, "c") as (caller,):
        call = asyncio.create_task(caller.call("t.slow"))
        await entered.wait()
        draining = asyncio.create_task(app.drain(PATIENCE))
        await until(lambda: not [row for row, _ in hub.router.calls.operations() if row.id == "t.slow"])
        with pytest.raises(CallError, match=r"t\.slow"):
            await caller.call("t.slow")
        go_on.set()
        assert await call == "done"
        assert await draining == 0


async def test_the_hub_dials_a_spoke_and_dials_it_again() -> None:
    app = Spoke("dialled", options=SpokeOptions(accept=True))
    app.operation("t.echo")(echo)
    ticket = app.listen().encode()
    async with a_hub(dial=[ticket]) as hub, spokes(hub.ticket, "caller") as (caller,):
        await app.wait_connected(PATIENCE)
        assert app.hub_node_id == hub.node_id
        await until(lambda: [row for row, _ in hub.router.calls.operations() if row.id == "t.echo"])
        assert await caller.call("t.echo", {"text": "x"}) == "x"
        hub.router.close(conn_of(hub, "dialled"), CloseCode.INTERNAL, "cut by a test")
        await until(lambda: app.counts()["connects"] == 2)
        await until(lambda: [row for row, _ in hub.router.calls.operations() if row.id == "t.echo"])
        assert await caller.call("t.echo", {"text": "y"}) == "y"
    await app.close()


async def test_a_spoke_that_cannot_be_dialled_yet_is_dialled_until_it_can() -> None:
    secret = ext.generate_secret()
    first = Spoke("dialled", secret=secret, options=SpokeOptions(accept=True))
    ticket = first.listen()
    await first.close()
    async with a_hub(dial=[ticket.encode()]) as hub:
        app = Spoke("dialled", secret=secret, options=SpokeOptions(accept=True, bind=ticket.addrs[0]))
        app.listen()
        await app.wait_connected(PATIENCE)
        assert app.hub_node_id == hub.node_id
        await app.close()


async def test_a_listening_spoke_takes_nobody_without_its_tickets_secret_and_tells_them_nothing() -> None:
    app = Spoke("dialled", options=SpokeOptions(accept=True))
    app.operation("t.echo")(echo)
    ticket = app.listen()
    without = replace(ticket, secret=None).encode()
    for first in ({}, {"invite": "wrong"}, {"invite": 7}):
        async with a_peer(without, hello=False) as stranger:
            stranger.say("hub.register", {"operations": [], **first})
            code, reason = await stranger.end()
            assert (code, "no secret of its ticket" in reason) == (CloseCode.NOT_ADMITTED, True)
            assert stranger.received == []
    async with a_peer(without, hello=False) as stranger:
        stranger.raw(b"not JSON")
        assert (await stranger.end())[0] == CloseCode.NOT_ADMITTED
    assert app.hub_node_id == ""
    async with a_hub(dial=[without]) as wrong, a_hub(dial=[ticket.encode()]) as hub:
        await app.wait_connected(PATIENCE)
        assert app.hub_node_id == hub.node_id != wrong.node_id
    await app.close()


async def test_a_listening_spoke_takes_the_hubs_that_it_was_given() -> None:
    given, other = Peer(), Peer()
    app = Spoke("dialled", options=SpokeOptions(accept=True, hubs=(given.endpoint.node_id.upper(),)))
    ticket = replace(app.listen(), secret=None).encode()
    try:
        await other.dial(ticket)
        other.say("hub.register", {"operations": []})
        assert (await other.end())[0] == CloseCode.NOT_ADMITTED
        await given.hello(ticket)
        await app.wait_connected(PATIENCE)
        assert app.hub_node_id == given.endpoint.node_id
    finally:
        await app.close()
        given.close()
        other.close()
    with pytest.raises(ValueError, match="not a NodeId"):
        Spoke("dialled", options=SpokeOptions(accept=True, hubs=("hub",)))


async def test_a_hub_that_fails_to_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        async with a_hub(data=tmp_path, ticket_file=tmp_path / "no" / "such" / "directory"):
            pass
    async with a_hub(data=tmp_path) as hub:
        assert hub.ready


async def test_serve_forever_ends_with_close() -> None:
    async with Hub(HubConfig(open=True, http="")) as hub:
        serving_task = asyncio.create_task(hub.serve_forever())
        await asyncio.sleep(0)
        hub.close()
        await asyncio.wait_for(serving_task, PATIENCE)
        assert not hub.ready
