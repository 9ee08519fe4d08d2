"""What a spoke remembers of where its hubs are, and that it finds one again by it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from broker import Spoke, SpokeOptions, connect
from broker import _gossip_ext as ext
from broker.address_book import AddressBook
from broker.hub import whereabouts
from broker.keys import save
from broker.protocol.registration import Registration
from broker.protocol.ticket import Ticket
from broker.spoke.hubs import KnownHubs
from tests.rig import FAST, PATIENCE, Pkarr, a_hub, spokes, until

HUB, OTHER = "a" * 64, "b" * 64


def test_what_a_hub_tells_is_tried_first_and_the_tickets_own_addresses_stay() -> None:
    hubs = KnownHubs(None)
    hubs.given(Ticket(HUB, ("10.0.0.1:1",), secret="s"))
    assert hubs.nth(0).addrs == ("10.0.0.1:1",)
    hubs.registered(HUB, Registration(addrs=("10.0.0.2:2",), relays=("https://relay.test/",)), "10.0.0.3:3")
    assert hubs.nth(7) == Ticket(HUB, ("10.0.0.3:3", "10.0.0.2:2", "10.0.0.1:1"), ("https://relay.test/",))
    assert (hubs.invite_for(HUB), hubs.invite_for(OTHER)) == ("s", None)


def test_the_relays_of_the_ticket_are_tried_after_the_one_that_the_hub_was_at() -> None:
    hubs = KnownHubs(None)
    hubs.given(Ticket(HUB, (), ("https://one.test/", "https://two.test/")))
    hubs.registered(HUB, Registration(relays=("https://two.test/",)), None)
    assert hubs.nth(0).relays == ("https://two.test/", "https://one.test/")


def test_a_stranger_is_not_remembered_and_nonsense_changes_nothing() -> None:
    hubs = KnownHubs(None)
    hubs.given(Ticket(HUB, ("10.0.0.1:1",)))
    hubs.registered(OTHER, Registration(addrs=("10.0.0.2:2",)), None)
    hubs.registered(HUB, Registration(addrs=("x\n",)), None)
    for detail in (None, {}, {"hubs": 7}, {"hubs": [7, {"id": "x"}]}):
        hubs.realm(detail)
    assert (len(hubs), hubs.nth(0).addrs) == (1, ("10.0.0.1:1",))
    hubs.realm({"hubs": [{"id": OTHER, "addrs": ["10.0.0.4:4"]}]})
    assert (len(hubs), hubs.nth(1).node_id) == (2, OTHER)


async def test_a_spoke_finds_its_hub_by_its_address_book_alone(tmp_path: Path) -> None:
    """The ticket names a place that the hub has left; the hub's register had told the present one."""
    options = replace(FAST, address_book=tmp_path / "peers.json")
    async with a_hub() as hub:
        async with connect(hub.ticket, options=options, timeout=PATIENCE):
            pass
        known = AddressBook(options.address_book).find(hub.node_id)
        assert known is not None
        assert known.addrs == Ticket.decode(hub.ticket).addrs
        stale = replace(Ticket.decode(hub.ticket), addrs=("127.0.0.1:9",))
        async with connect(stale, options=options, timeout=PATIENCE) as spoke:
            assert spoke.hub_node_id == hub.node_id


async def test_a_hub_that_moves_tells_its_spokes_and_they_follow_it(tmp_path: Path) -> None:
    """It is at two places for a while, as when its machine changes the network, and then at the new one alone."""
    key = tmp_path / "hub.key"
    secret = ext.generate_secret()
    save(key, secret)
    async with a_hub(key=key) as hub, spokes(hub.ticket, "follows") as (spoke,):
        old = Ticket.decode(hub.ticket)
        async with a_hub() as place:  # a port that is free, for a moment
            new = Ticket.decode(place.ticket).addrs[0]
        told = {"operations": [], "addrs": [new]}
        conn = next(iter(hub.router.sessions))
        hub.router.send(conn, "hub.register", told)
        hub.router.settle()
        await until(lambda: new in spoke._link.hubs.nth(0).addrs)
        assert spoke.connected
        hub.close()
        await hub.__aexit__(None, None, None)
        await until(lambda: not spoke.connected)
        async with a_hub(key=key, bind=new) as moved:
            assert Ticket.decode(moved.ticket).addrs != old.addrs
            await spoke.wait_connected(PATIENCE)
            assert spoke.counts()["connects"] == 2


async def test_the_hub_tells_anew_when_its_addresses_change() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "s") as (spoke,):
        heard: list[object] = []
        receive = spoke._link.receivers["hub.register"]

        def hear(detail: object) -> None:
            heard.append(detail)
            receive(detail)

        spoke._link.receivers["hub.register"] = hear
        hub.router.registrations.moved()
        hub.router.settle()
        await until(lambda: heard)
        detail = heard[0]
        assert isinstance(detail, dict)
        assert detail["addrs"] == list(Ticket.decode(hub.ticket).addrs)
        assert spoke.connected


async def test_new_addresses_are_seen_and_told_and_an_error_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "LOOK_INTERVAL", 0.001)
    places = ["one"]
    told: list[str] = []

    def changed() -> None:
        told.append(places[0])
        if len(told) == 1:
            raise OSError(28, "No space left on device")

    watching = asyncio.create_task(whereabouts.watch_places(lambda: places[0], changed))
    await asyncio.sleep(0.01)
    assert told == []
    places[0] = "two"
    await until(lambda: len(told) == 2)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert told == ["two", "two"]


async def test_a_node_id_is_enough_where_both_use_a_lookup_service_and_nobody_asks_without() -> None:
    async with Pkarr.on_loopback() as (pkarr, url):
        app = Spoke("found", options=SpokeOptions(accept=True, lookup=url))
        ticket = app.listen()
        await until(lambda: pkarr.records)
        async with a_hub() as silent:
            silent.dial(ticket)
            await app.wait_connected(PATIENCE)
            assert pkarr.asked == [], "it was told to ask nobody"
            assert len(pkarr.records) == 1
        await until(lambda: not app.connected)
        async with a_hub(lookup=url) as hub:
            hub.dial(replace(ticket, addrs=()))
            async with asyncio.timeout(PATIENCE):
                await until(lambda: app.connected)
            assert app.hub_node_id == hub.node_id
            assert pkarr.asked
            await until(lambda: len(pkarr.records) == 2)
        await app.close()
