"""Several hubs, one realm: what is shared, who is let in, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import Hub, connect
from broker import _gossip_ext as ext
from broker.config import HubConfig
from broker.errors import ConfigError, Refused, ValidationFailed
from broker.keys import admin_key_path, load
from broker.protocol.ticket import Ticket
from broker.spoke.options import SpokeOptions
from tests.rig import Numbers, details, take, until

FAST: dict[str, Any] = {"open": True, "http": "off"}
STREAM_ONLY = SpokeOptions(gossip=False)


def realm_ticket(hub: Hub) -> str:
    """What an administrator gets by ``broker invite --scopes realm``."""
    secret, _ = hub.router.admission.invite(("realm",), 60)
    return hub._ticket(secret).encode()


@asynccontextmanager
async def two_hubs(tmp_path: Path, **second: Any) -> AsyncIterator[tuple[Hub, Hub]]:
    async with Hub(HubConfig(data=tmp_path / "one", **FAST)) as one:
        joining = HubConfig(data=tmp_path / "two", join=realm_ticket(one), **{**FAST, **second})
        async with Hub(joining) as two:
            await until(lambda: one.router.links.sessions() and two.router.links.sessions())
            yield one, two


@asynccontextmanager
async def two_hubs_again(tmp_path: Path) -> AsyncIterator[tuple[Hub, Hub]]:
    """Those of `two_hubs`, from what they have kept."""
    async with (
        Hub(HubConfig(data=tmp_path / "one", **FAST)) as one,
        Hub(HubConfig(data=tmp_path / "two", **FAST)) as two,
    ):
        await until(lambda: one.router.links.sessions() and two.router.links.sessions())
        settled = [hub.router.admission.told() for hub in (one, two)]
        await until(lambda: [hub.router.admission.told() for hub in (one, two)] != settled or settled[0] == settled[1])
        yield one, two


async def subscribed(hub: Hub, count: int) -> None:
    """The hub has as many subscriptions: what is published from now on is theirs."""
    await until(lambda: len(hub.router.topics.subscriptions) >= count)


async def test_events_reach_the_spokes_of_either_hub(tmp_path: Path) -> None:
    async with (
        two_hubs(tmp_path) as (one, two),
        connect(one.ticket, name="a") as a,
        connect(two.ticket, name="b") as b,
        connect(two.ticket, name="c", options=STREAM_ONLY) as c,
        a.subscribe("x.>") as at_a,
        b.subscribe("x.>") as at_b,
        c.subscribe("x.>") as at_c,
    ):
        await subscribed(one, 1)
        await subscribed(two, 2)
        for number in range(50):
            await a.publish("x.one", number)
        for number in range(50):
            await c.publish("x.two", number)
        for events in (at_a, at_b, at_c):
            got = await take(events, 100)
            assert [event.detail for event in got if event.type == "x.one"] == list(range(50))
            assert [event.detail for event in got if event.type == "x.two"] == list(range(50))
            assert not any(verdict.lost or verdict.missing for verdict in events.verdicts)
        await a.flush()
        await c.flush()


async def test_a_hub_is_not_counted_as_a_spoke(tmp_path: Path) -> None:
    async with two_hubs(tmp_path) as (one, two), connect(one.ticket, name="a"):
        assert Numbers(one)("spokes_connected") == 1
        assert Numbers(two)("spokes_connected") == 0
        assert Numbers(two)("quic_connections", alpn="alkhub/1") >= 1


async def test_a_hub_that_joins_late_has_what_was_before(tmp_path: Path) -> None:
    async with Hub(HubConfig(data=tmp_path / "one", **FAST)) as one, connect(one.ticket) as author:
        for number in range(200):
            await author.publish("x.y", number)
        await author.flush()
        joining = HubConfig(data=tmp_path / "two", join=realm_ticket(one), **FAST)
        async with (
            Hub(joining) as two,
            connect(two.ticket, options=STREAM_ONLY) as reader,
            reader.subscribe("x.y", since="start") as events,
        ):
            assert details(await take(events, 200)) == list(range(200))
            assert events.verdict in ("complete", "repaired(200)") or events.verdict.startswith("repaired")


async def test_a_spoke_whose_hub_dies_goes_on_at_the_other(tmp_path: Path) -> None:
    options = SpokeOptions(idle_timeout=2.0)
    async with (
        two_hubs(tmp_path) as (one, two),
        connect(one.ticket, name="reader", options=options) as reader,
        connect(two.ticket, name="author") as author,
        reader.subscribe("x.y") as events,
    ):
        await subscribed(one, 1)
        for number in range(20):
            await author.publish("x.y", number)
        assert details(await take(events, 20)) == list(range(20))
        await until(lambda: two.node_id in reader._link.hubs)
        one.router.endpoint.close()
        for number in range(20, 40):
            await author.publish("x.y", number)
        assert details(await take(events, 20)) == list(range(20, 40))
        await until(lambda: reader.connected and reader.hub_node_id == two.node_id)
        for number in range(40, 60):
            await author.publish("x.y", number)
        assert details(await take(events, 20)) == list(range(40, 60))
        assert not any(verdict.lost or verdict.missing for verdict in events.verdicts)
        assert all(verdict.received == 60 for verdict in events.verdicts)


async def test_a_ticket_names_the_other_hubs(tmp_path: Path) -> None:
    async with two_hubs(tmp_path) as (one, two):
        await until(lambda: Ticket.decode(one.ticket).others)
        ticket = Ticket.decode(one.ticket)
        assert [other.node_id for other in ticket.others] == [two.node_id]
        dead = Ticket(ext.node_id(ext.generate_secret()), ("127.0.0.1:9",), others=ticket.others)
        async with connect(dead, timeout=10) as spoke:
            assert spoke.hub_node_id == two.node_id


async def test_a_ban_holds_in_the_whole_realm(tmp_path: Path) -> None:
    async with (
        two_hubs(tmp_path) as (one, two),
        connect(two.ticket, name="good") as good,
        connect(two.ticket, name="bad") as bad,
        good.subscribe("x.y") as events,
        bad.subscribe("x.y") as unread,
    ):
        await subscribed(two, 2)
        await good.publish("x.y", 1)
        await take(events, 1)
        await take(unread, 1)
        before = two.router.swarms.realm.generation("x.y")
        banned = bad.node_id
        one.router.admission.ban(banned)
        await until(lambda: banned in two.router.admission.policy.deny and banned not in two.router.by_node)
        await until(lambda: two.router.swarms.realm.generation("x.y") > before)
        await until(lambda: same_generation(one, two, "x.y"))
        await good.publish("x.y", 2)
        async with asyncio.timeout(40):  # lost in the move to the new swarm it comes by repair, after its head
            assert (await anext(events)).detail == 2
        await until(lambda: banned not in one.router.swarms.members.peers.node_ids())
        two.router.admission.unban(banned)
        await until(lambda: banned not in one.router.admission.policy.deny)


def same_generation(one: Hub, two: Hub, topic: str) -> bool:
    """Both are in one swarm of the topic, and say so of the realm."""
    generations = set()
    for hub in (one, two):
        swarm = hub.router.swarms.by_topic.get(topic)
        generations |= {hub.router.swarms.realm.generation(topic), swarm and swarm.overlay.generation}
    return len(generations) == 1


@pytest.mark.parametrize("banning", [0, 1])
async def test_a_ban_moves_both_hubs_whichever_of_them_the_banned_had_it_from(tmp_path: Path, banning: int) -> None:
    """Only the hub that told a NodeId of a swarm knows that it did."""
    async with (
        two_hubs(tmp_path) as hubs,
        connect(hubs[0].ticket, name="bad") as bad,
        connect(hubs[0].ticket, name="one") as one,
        connect(hubs[1].ticket, name="two") as two,
        bad.subscribe("x.y"),
        one.subscribe("x.y") as at_one,
        two.subscribe("x.y") as at_two,
    ):
        await subscribed(hubs[0], 2)
        await subscribed(hubs[1], 1)
        await one.publish("x.y", 1)
        await take(at_two, 1)
        await take(at_one, 1)
        swarms = [hub.router.swarms.by_topic["x.y"] for hub in hubs]
        await until(lambda: swarms[0].overlay.knew(bad.node_id))
        assert not swarms[1].overlay.knew(bad.node_id)
        before = swarms[0].overlay.generation
        hubs[banning].router.admission.ban(bad.node_id)
        await until(lambda: same_generation(*hubs, "x.y") and swarms[0].overlay.generation > before)
        await one.publish("x.y", 2)
        await two.publish("x.y", 3)
        async with asyncio.timeout(40):
            assert {(await anext(at_one)).detail for _ in range(2)} == {2, 3}
            assert {(await anext(at_two)).detail for _ in range(2)} == {2, 3}


async def test_who_was_invited_by_one_hub_is_known_to_the_other(tmp_path: Path) -> None:
    async with two_hubs(tmp_path, open=False) as (one, two):
        secret, _ = one.router.admission.invite((), 60)
        async with connect(one._ticket(secret)) as guest:
            await until(lambda: two.router.admission.policy.admitted(guest.node_id))


async def test_a_hub_comes_back_into_its_realm_without_an_invite(tmp_path: Path) -> None:
    async with Hub(HubConfig(data=tmp_path / "one", **FAST)) as one:
        ticket = realm_ticket(one)
        async with Hub(HubConfig(data=tmp_path / "two", join=ticket, **FAST)) as two:
            topic_id = two.router.swarms.realm.id("x", 1)
        async with Hub(HubConfig(data=tmp_path / "two", join=ticket, **FAST)) as two:
            assert two.router.swarms.realm.id("x", 1) == topic_id == one.router.swarms.realm.id("x", 1)
            await until(lambda: two.router.links.sessions() and one.router.links.sessions())


async def test_a_hub_of_one_realm_does_not_join_another(tmp_path: Path) -> None:
    """The first hub's data directory is a new one, the second's is not."""
    async with two_hubs(tmp_path) as (one, _):
        pass
    async with Hub(HubConfig(data=tmp_path / "anew", **FAST)) as anew:
        with pytest.raises(
            ConfigError, match=rf"another realm than the hub {anew.node_id[:10]}.*: its hubs are {one.node_id[:10]}"
        ):
            async with Hub(HubConfig(data=tmp_path / "two", join=realm_ticket(anew), **FAST)):
                pass


async def test_without_an_invite_nobody_joins(tmp_path: Path) -> None:
    async with Hub(HubConfig(data=tmp_path / "one", **FAST)) as one:
        with pytest.raises(Refused, match="broker invite TICKET --scopes realm"):
            async with Hub(HubConfig(data=tmp_path / "two", join=one.ticket, **FAST)):
                pass
        assert not one.router.swarms.realm.others
        async with connect(one.ticket) as spoke:
            spoke._link.control("hub.realm", {"base": 99, "kept": {}, "hubs": [], "admitted": {}, "banned": []})
            spoke._link.control("hub.peers", {"add": [], "remove": [], "full": True})
            await until(lambda: not spoke.connected or spoke.counts()["connects"] > 1)
        assert one.router.swarms.realm.generation("x") == 1


async def test_two_hubs_keep_one_connection(tmp_path: Path) -> None:
    async with two_hubs(tmp_path) as (one, two):
        one._dials.keep(Ticket(two.node_id, tuple(two.router.endpoint.addrs())))
        two._dials.keep(Ticket(one.node_id, tuple(one.router.endpoint.addrs())))
        await until(lambda: len(one.router.links.sessions()) == 1 == len(two.router.links.sessions()))
        async with (
            connect(one.ticket) as a,
            connect(two.ticket) as b,
            b.subscribe("x.y") as events,
        ):
            await subscribed(two, 1)
            await a.publish("x.y", 1)
            assert details(await take(events, 1)) == [1]
            await asyncio.wait_for(a.flush(), 10)


async def test_a_ban_that_was_taken_back_does_not_come_back(tmp_path: Path) -> None:
    """Neither with what the other hub decides next, nor when that one was away and still has it."""
    stranger, another = (ext.node_id(ext.generate_secret()) for _ in range(2))
    async with two_hubs(tmp_path) as (one, two):
        one.router.admission.ban(stranger)
        await until(lambda: stranger in two.router.admission.policy.deny)
        one.router.admission.unban(stranger)
        await until(lambda: stranger not in two.router.admission.policy.deny)
        two.router.admission.ban(another)
        await until(lambda: another in one.router.admission.policy.deny)
        assert stranger not in one.router.admission.policy.deny
        two.router.admission.unban(another)
        await until(lambda: another not in one.router.admission.policy.deny)
        one.router.admission.ban(stranger)
        await until(lambda: stranger in two.router.admission.policy.deny)
    async with Hub(HubConfig(data=tmp_path / "one", **FAST)) as one:
        one.router.admission.unban(stranger)
    async with two_hubs_again(tmp_path) as (one, two):
        assert stranger not in one.router.admission.policy.deny | two.router.admission.policy.deny


async def test_a_hub_that_tells_no_numbers_bans_anew(tmp_path: Path) -> None:
    """As those before there were numbers: they cannot say that they do not know better."""
    async with Hub(HubConfig(data=tmp_path, **FAST)) as hub:
        stranger, admission = ext.node_id(ext.generate_secret()), hub.router.admission
        assert admission.merge({"admitted": {}, "banned": [stranger]})
        assert not admission.merge({"admitted": {}, "banned": [stranger]})
        assert admission.unban(stranger)
        assert admission.merge({"admitted": {}, "banned": [stranger]})
        assert stranger in admission.policy.deny


async def test_a_hub_of_the_realm_cannot_be_banned(tmp_path: Path) -> None:
    """It has the secret: who asks is told what would help."""
    async with (
        two_hubs(tmp_path) as (one, two),
        connect(one.ticket, secret=load(admin_key_path(tmp_path / "one"))) as admin,
    ):
        with pytest.raises(ValidationFailed, match="a hub of the realm"):
            await admin.call("hub.ban", {"node_id": two.node_id})
        assert two.node_id not in one.router.admission.policy.deny
