"""The hub pushes: it dials spokes that listen, by ticket or by NodeId, again and again, and after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker import Spoke, SpokeOptions, connect, keys
from broker import _gossip_ext as ext
from broker.errors import AccessDenied, ConfigError, TicketError, Unreachable, ValidationFailed
from broker.hub import dialling
from broker.hub.hub import ADDRESS_FILE
from broker.protocol.ticket import Ticket
from tests.rig import PATIENCE, a_hub, details, spokes, take, until


async def echo(text: str) -> str:
    return text


@asynccontextmanager
async def listening(
    secret: bytes | None = None, *, bind: str | None = None, name: str = "dialled"
) -> AsyncIterator[tuple[Spoke, Ticket]]:
    app = Spoke(name, secret=secret, options=SpokeOptions(accept=True, bind=bind))
    app.operation("t.echo")(echo)
    ticket = app.listen()
    try:
        yield app, ticket
    finally:
        await app.close()


async def test_a_dialled_spoke_registers_answers_publishes_and_hears_like_any_other() -> None:
    async with (
        listening() as (app, ticket),
        a_hub() as hub,
        spokes(hub.ticket, "caller") as (caller,),
        app.subscribe("to.it") as its,
        caller.subscribe("from.it") as ours,
    ):
        assert hub.dial(ticket.encode()) == app.node_id
        await app.wait_connected(PATIENCE)
        await app.call("hub.topics")
        await caller.call("hub.topics")
        gossips = {one.node_id: hub.router.swarms.members.gossips(one.peer) for one in hub.router.sessions.values()}
        assert gossips == {app.node_id: True, caller.node_id: True}, "without a ticket it takes the usual message size"
        assert await caller.call("t.echo", {"text": "x"}) == "x"
        await caller.publish("to.it", 1)
        await app.publish("from.it", 2)
        assert details(await take(its, 1) + await take(ours, 1)) == [1, 2]
        await app.publish("from.it", 3, carrier="datagram")
        await caller.publish("to.it", 4, carrier="datagram")
        assert details(await take(its, 1) + await take(ours, 1)) == [4, 3]
        assert (its.verdict, ours.verdict) == ("complete", "complete")


async def test_one_that_was_killed_and_comes_back_is_dialled_again() -> None:
    """On its own port with its own key, which is what the ticket says."""
    secret = ext.generate_secret()
    async with a_hub() as hub, spokes(hub.ticket, "caller") as (caller,):
        async with listening(secret) as (app, ticket):
            hub.dial(ticket)
            await app.wait_connected(PATIENCE)
        await until(lambda: app.node_id not in hub.router.by_node)
        async with listening(secret, bind=ticket.addrs[0]) as (again, _):
            await again.wait_connected(PATIENCE)
            assert await caller.call("t.echo", {"text": "y"}) == "y"


async def test_one_that_comes_back_on_another_port_is_found_when_the_hub_is_told() -> None:
    secret = ext.generate_secret()
    async with a_hub() as hub, spokes(hub.ticket, "caller") as (caller,):
        async with listening(secret) as (app, ticket):
            hub.dial(ticket)
            await app.wait_connected(PATIENCE)
            node_id = app.node_id
        async with listening(secret) as (again, new):
            assert new.addrs != ticket.addrs
            assert hub.dial(new) == node_id
            await again.wait_connected(PATIENCE)
            assert await caller.call("t.echo", {"text": "y"}) == "y"
            assert hub.undial(node_id)
            await until(lambda: not again.connected)


async def test_naming_one_twice_is_one_connection_and_undial_ends_it() -> None:
    async with listening() as (app, ticket), a_hub() as hub:
        for _ in range(5):
            hub.dial(ticket)
        await app.wait_connected(PATIENCE)
        hub.dial(app.node_id)
        await until(lambda: [row["connected"] for row in hub._dials.rows()] == [True])
        assert len(hub.router.by_node[app.node_id]) == 1
        assert hub.undial(app.node_id.upper())
        assert not hub.undial(app.node_id)
        await until(lambda: not app.connected)
        assert app.node_id not in hub.router.by_node or all(
            one.closing for one in hub.router.by_node[app.node_id].values()
        )
        assert hub._dials.rows() == []


async def test_what_cannot_be_dialled_is_said_at_once() -> None:
    async with a_hub() as hub:
        with pytest.raises(Unreachable, match="not in the address book"):
            hub.dial("a" * 64)
        with pytest.raises(TicketError):
            hub.dial("hub1nonsense")
        with pytest.raises(TicketError, match="cannot be dialled"):
            hub.dial(Ticket("a" * 64, ("nowhere",)))
        with pytest.raises(TicketError, match="its own"):
            hub.dial(hub.ticket)
        assert hub._dials.rows() == []
    with pytest.raises(RuntimeError, match="not running"):
        hub.dial("a" * 64)
    for wrong in ("a" * 64, "hub1nonsense", Ticket("a" * 64, ("nowhere",)).encode()):
        with pytest.raises(ConfigError):
            async with a_hub(dial=[wrong]):
                pass


async def test_it_dials_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "MOST_DIALLED", 2)
    async with a_hub() as hub:
        for digit in "12":
            hub.dial(Ticket(digit * 64, ("127.0.0.1:9",)))
        with pytest.raises(TicketError, match="2 NodeIds already"):
            hub.dial(Ticket("3" * 64, ("127.0.0.1:9",)))
        hub.undial("1" * 64)
        hub.dial(Ticket("3" * 64, ("127.0.0.1:9",)))


async def test_a_restarted_hub_finds_the_spokes_that_it_was_told_to_dial(tmp_path: Path) -> None:
    """The spoke lives on; the hub knows it from its data directory alone."""
    async with listening() as (app, ticket):
        async with a_hub(data=tmp_path) as hub:
            hub.dial(ticket)
            await app.wait_connected(PATIENCE)
        await until(lambda: not app.connected)
        async with a_hub(data=tmp_path) as again, spokes(again.ticket, "caller") as (caller,):
            await app.wait_connected(PATIENCE)
            assert await caller.call("t.echo", {"text": "z"}) == "z"
            again.undial(app.node_id)
        async with a_hub(data=tmp_path) as third:
            assert third._dials.rows() == []
            assert third.dial(app.node_id) == app.node_id, "its address is remembered, and the ticket's secret"
            await app.wait_connected(PATIENCE)


async def test_a_restarted_hub_is_told_a_bare_node_id(tmp_path: Path) -> None:
    """As ``broker hub --data D --dial NODE_ID``, and what the config lists is not kept beyond it."""
    async with listening() as (app, ticket):
        async with a_hub(data=tmp_path, dial=[ticket.encode()]):
            await app.wait_connected(PATIENCE)
        await until(lambda: not app.connected)
        async with a_hub(data=tmp_path) as hub:
            assert hub._dials.rows() == []
        async with a_hub(data=tmp_path, dial=[app.node_id]):
            await app.wait_connected(PATIENCE)


async def test_a_broken_address_book_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ADDRESS_FILE).write_bytes(b'{"version":1,"peers":[{')
    async with listening() as (app, ticket):
        with caplog.at_level(logging.WARNING):
            async with a_hub(data=tmp_path) as hub:
                hub.dial(ticket)
                await app.wait_connected(PATIENCE)
        assert "begins anew" in caplog.text
        await until(lambda: not app.connected)
        async with a_hub(data=tmp_path):
            await app.wait_connected(PATIENCE)


async def test_administrators_dial_and_nobody_else_and_no_secret_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening() as (app, ticket), a_hub(data=tmp_path) as hub, spokes(hub.ticket, "c") as (anybody,):
        for id in ("hub.dial", "hub.undial", "hub.dials"):
            with pytest.raises(AccessDenied):
                await anybody.call(id, {"ticket": ticket.encode(), "node_id": app.node_id})
        secret = keys.load(keys.admin_key_path(tmp_path))
        async with connect(hub.ticket, secret=secret) as admin:
            with caplog.at_level(logging.INFO, "broker.hub"):
                answer = await admin.call("hub.dial", {"ticket": ticket.encode()})
            assert answer == {"node_id": app.node_id, "durable": True}
            assert "hub.dial by" in caplog.text
            assert ticket.encode() not in caplog.text
            await app.wait_connected(PATIENCE)
            await until(lambda: hub._dials.rows()[0]["connected"])
            (row,) = await admin.call("hub.dials")
            assert row == {
                "node_id": app.node_id,
                "connected": True,
                "attempts": 0,
                "failure": None,
                "addrs": list(ticket.addrs),
            }
            for wrong in (None, {}, {"ticket": 7}, {"ticket": "x"}, {"node_id": "b" * 64}):
                with pytest.raises(ValidationFailed):
                    await admin.call("hub.dial", wrong)
            assert (await admin.call("hub.undial", {"node_id": app.node_id}))["changed"] is True
            assert (await admin.call("hub.undial", {"node_id": app.node_id}))["changed"] is False
            assert await admin.call("hub.dials") == []
            await until(lambda: not app.connected)


async def test_a_failure_is_shown_and_a_banned_one_is_dialled_until_it_may_come_back() -> None:
    async with a_hub() as hub, listening() as (app, ticket):
        hub.dial(ticket)
        await app.wait_connected(PATIENCE)
        hub.router.admission.ban(app.node_id)
        await until(lambda: not app.connected)
        await until(lambda: "deny list" in (hub._dials.rows()[0]["failure"] or ""))
        hub.router.admission.unban(app.node_id)
        await until(lambda: app.connected)
        hub.dial(replace(ticket, node_id="c" * 64, secret=None))
        await until(lambda: hub._dials.rows()[1]["failure"] is not None)
        assert hub._dials.rows()[1]["connected"] is False


async def test_two_hubs_dial_one_spoke_and_it_has_one() -> None:
    async with listening() as (app, ticket), a_hub() as one, a_hub() as other:
        one.dial(ticket)
        await app.wait_connected(PATIENCE)
        assert app.hub_node_id == one.node_id
        other.dial(ticket)
        await until(lambda: other._dials.rows()[0]["failure"] is not None)
        assert (app.connected, app.hub_node_id) == (True, one.node_id)
        one.undial(app.node_id)
        async with asyncio.timeout(PATIENCE):
            await until(lambda: app.connected and app.hub_node_id == other.node_id)
