"""Invites: single use, expiring, durable; and the strangers that an open door brings."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import iroh
import orjson
import pytest

from broker import Hub, HubConfig, connect
from broker import _gossip_ext as ext
from broker.errors import AccessDenied, Refused, ValidationFailed
from broker.hub import guests
from broker.hub.admission import Admission, read_admissions
from broker.protocol.ticket import Ticket
from broker.protocol.wire import ALPN, CloseCode
from tests.ext import raw
from tests.rig import FAST, PATIENCE, Numbers, a_peer, until
from tests.security.rig import admin_of, closed_hub, identity

SCOPES: dict[str, Any] = {"scopes": {"reader": {"subscribe": ["a.>"], "call": ["who"]}, "writer": {"publish": [">"]}}}


async def invited(hub: Hub, **input: Any) -> str:
    async with admin_of(hub) as admin:
        answer: dict[str, Any] = await admin.call("hub.invite", input)
        return str(answer["ticket"])


async def join(ticket: str, secret: bytes | None = None) -> None:
    async with connect(ticket, secret=secret, options=FAST, timeout=PATIENCE):
        pass


async def turned_away(ticket: str, secret: bytes | None = None) -> int:
    with pytest.raises(Refused) as caught:
        await join(ticket, secret)
    return caught.value.close_code


async def test_an_invite_admits_one_node_id_once_and_for_good(tmp_path: Path) -> None:
    secret, node_id = identity()
    async with closed_hub(tmp_path) as hub:
        ticket = await invited(hub)
        await join(ticket, secret)
        assert await turned_away(ticket) == CloseCode.NOT_ADMITTED
        await join(ticket, secret)  # its own reconnects bring the spent secret along
        await join(hub.ticket, secret)
        assert hub.router.admission.policy.allow == {node_id}
    async with closed_hub(tmp_path) as hub:
        await join(hub.ticket, secret)
        assert await turned_away(Ticket.decode(ticket).encode()) == CloseCode.NOT_ADMITTED


async def test_the_file_holds_no_secret(tmp_path: Path) -> None:
    async with closed_hub(tmp_path) as hub:
        secret = Ticket.decode(await invited(hub, ttl=60)).secret
        assert secret is not None
        assert len(bytes.fromhex(secret)) == 32
        assert secret not in (tmp_path / "admissions.json").read_text()
        assert (tmp_path / "admissions.json").stat().st_mode & 0o777 == 0o600


async def test_identity_carries_the_invites_scopes_and_they_bind(tmp_path: Path) -> None:
    async with closed_hub(tmp_path, access=SCOPES) as hub, admin_of(hub) as admin:
        admin.offer("who", lambda input, call: asyncio.sleep(0, call.identity))
        ticket = await invited(hub, scopes=["reader"])
        async with connect(ticket, options=FAST, timeout=PATIENCE) as spoke:
            seen = await spoke.call("who")
            assert (seen["id"], seen["scopes"]) == (spoke.node_id, ["reader"])
            await spoke.publish("a.b", 1)
            with pytest.raises(AccessDenied):
                await spoke.flush()
        with pytest.raises(ValidationFailed, match=r"no \[access\.scopes\.gone\]"):
            await invited(hub, scopes=["gone"])


async def test_a_new_invite_changes_the_scopes_of_a_live_spoke(tmp_path: Path) -> None:
    secret, node_id = identity()
    async with closed_hub(tmp_path, access=SCOPES) as hub:
        first = await invited(hub, scopes=["reader"])
        async with a_peer(first, hello=False, secret=secret) as peer:
            peer.say("hub.register", {"operations": [], "invite": Ticket.decode(first).secret})
            await peer.hears("hub.register")
            peer.say("__subscribe", {"topics": ["a.b"]})
            peer.say("a.b", 1)
            assert (await peer.hears("hub.error", about="a.b"))["action"] == "publish"
            await join(await invited(hub, scopes=["writer"]), secret)
            await until(lambda: len(hub.router.by_node[node_id]) == 1)  # the one that brought the invite has gone
            (session,) = hub.router.by_node[node_id].values()
            assert (session.identity["scopes"], session.grant.scopes) == (["writer"], ("writer",))
            # The subscription that it held goes with the scope that allowed it.
            assert (await peer.hears("hub.error", about="a.b"))["action"] == "subscribe"
            peer.say("a.b", 2)
            await until(lambda: "a.b" in hub.router.topics.channels)
            assert not hub.router.topics.subscriptions.rows()


async def test_scopes_are_labels_where_none_is_defined(tmp_path: Path) -> None:
    async with closed_hub(tmp_path) as hub:
        ticket = await invited(hub, scopes=["blue", "green"])
        async with connect(ticket, options=FAST, timeout=PATIENCE) as spoke, admin_of(hub) as admin:
            admin.offer("who", lambda input, call: asyncio.sleep(0, call.identity))
            await until(lambda: any(row.id == "who" for row, _ in hub.router.calls.operations()))
            assert (await spoke.call("who"))["scopes"] == ["blue", "green"]


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def lists(data: Path, clock: Callable[[], float]) -> tuple[Admission, ext.Endpoint]:
    endpoint = ext.Endpoint.bind(ext.generate_secret(), accept=True)
    return Admission(HubConfig(), endpoint, data=data, clock=clock), endpoint


async def test_an_expired_invite_admits_nobody(tmp_path: Path) -> None:
    clock = Time()
    admission, endpoint = lists(tmp_path, clock)
    secret, expires = admission.invite((), 60)
    assert (expires, admission.invites) == (clock.now + 60, True)
    clock.now += 61
    assert not admission.invites
    assert not admission.redeem(identity()[1], secret)
    admission.stop()
    endpoint.close()


async def test_the_door_closes_when_the_last_invite_expires(tmp_path: Path) -> None:
    async with closed_hub(tmp_path) as hub:
        ticket = await invited(hub, ttl=0.3)
        async with a_peer(ticket, hello=False) as guest:
            guest.raw(b'{"type":')  # not JSON, but never mind: what counts is who is let through
            assert (await guest.end())[0] in (CloseCode.BAD_JSON, CloseCode.NOT_ADMITTED)
        refused = hub.router.endpoint.counters()["refused_not_admitted"]
        await until(lambda: not hub.router.admission.invites)
        assert await turned_away(ticket) == CloseCode.NOT_ADMITTED
        await until(lambda: hub.router.endpoint.counters()["refused_not_admitted"] > refused)


async def test_an_invite_that_was_spent_stays_spent_when_the_hub_dies_before_it_is_used(tmp_path: Path) -> None:
    """Spending is durable before anything follows from it: here the hub dies in between."""
    admission, endpoint = lists(tmp_path, Time())
    secret, _ = admission.invite((), 60)

    def dies() -> None:
        raise KeyboardInterrupt

    admission._apply = dies  # type: ignore[method-assign]
    _, node_id = identity()
    with pytest.raises(KeyboardInterrupt):
        admission.redeem(node_id, secret)
    admission.stop()
    state = read_admissions(tmp_path / "admissions.json")
    assert (list(state.admitted), state.invites) == ([node_id], ())
    again, other = lists(tmp_path, Time())
    assert not again.redeem(identity()[1], secret)
    for one in (endpoint, other):
        one.close()


async def test_an_invite_that_cannot_be_spent_durably_admits_nobody(tmp_path: Path) -> None:
    async with closed_hub(tmp_path) as hub:
        ticket = await invited(hub)
        (tmp_path / "admissions.json").unlink()
        (tmp_path / "admissions.json").mkdir()
        assert await turned_away(ticket) == CloseCode.NOT_ADMITTED
        assert hub.router.admission.policy.allow == frozenset()


async def test_a_banned_node_id_cannot_come_back_by_invite(tmp_path: Path) -> None:
    secret, node_id = identity()
    async with closed_hub(tmp_path) as hub, admin_of(hub) as admin:
        await admin.call("hub.ban", {"node_id": node_id})
        ticket = await invited(hub)
        assert await turned_away(ticket, secret) == CloseCode.BANNED
        await join(ticket)  # it is still unspent


FIRST_WORDS: dict[str, tuple[str, Any]] = {
    "an event": ("a.b", 1),
    "a call": ("call.requested", {"requestId": "1", "operationId": "hub.spokes", "input": None}),
    "a subscription": ("__subscribe", {"topics": [">"]}),
    "a registration without an invite": ("hub.register", {"operations": [{"id": "x", "kind": "query"}]}),
    "a wrong invite": ("hub.register", {"operations": [], "invite": "0" * 64}),
    "an invite that is no string": ("hub.register", {"operations": [], "invite": ["0"]}),
    "an invite of a megabyte": ("hub.register", {"operations": [], "invite": "0" * 1_000_000}),
    "a registration that is no object": ("hub.register", []),
    "the right invite in another message": ("a.b", {"invite": "RIGHT"}),
}


@pytest.mark.parametrize("what", FIRST_WORDS)
async def test_a_guest_that_begins_otherwise_is_ended_at_once_and_nothing_of_it_counts(
    tmp_path: Path, what: str
) -> None:
    async with closed_hub(tmp_path) as hub:
        secret = Ticket.decode(await invited(hub)).secret
        await until(lambda: not hub.router.sessions)
        async with a_peer(hub.ticket, hello=False) as guest:
            type, detail = FIRST_WORDS[what]
            if isinstance(detail, dict) and detail.get("invite") == "RIGHT":
                detail = {"invite": secret}
            late = orjson.dumps({"type": "hub.register", "detail": {"operations": [], "invite": secret}})
            # What follows in the same breath comes too late.
            guest.raw(orjson.dumps({"type": type, "detail": detail}), late, b'{"type":"a.b","detail":2}')
            assert (await guest.end())[0] == CloseCode.NOT_ADMITTED
            assert not guest.received, "a stranger is told nothing"
            assert not hub.router.sessions
            assert not hub.router.topics.channels
            assert not hub.router.guests
            assert hub.router.admission.invites


async def test_a_flood_of_guests_is_bounded_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "MAX_GUESTS", 3)
    monkeypatch.setattr(guests, "GUEST_SECONDS", PATIENCE)
    secret, _ = identity()
    async with closed_hub(tmp_path) as hub, raw.peer() as strangers:
        await join(await invited(hub), secret)
        await invited(hub)
        flood = [await begun(strangers, hub) for _ in range(10)]
        await until(lambda: Numbers(hub)("limited_total", limit="guests") == 7)
        assert len(hub.router.guests) == 3
        await join(hub.ticket, secret)  # the admitted do not notice
        ends = [asyncio.create_task(raw.closed(connection)) for connection, _ in flood]
        await until(lambda: sum(end.done() for end in ends) == 7)
        assert all("(code 40)" in end.result() for end in ends if end.done())
    await asyncio.gather(*ends)


async def test_a_guest_that_does_not_say_enough_is_ended_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "GUEST_SECONDS", 0.2)
    async with closed_hub(tmp_path) as hub, raw.peer() as strangers:
        ticket = await invited(hub)
        connection, _stream = await begun(strangers, hub)
        assert "no hub.register within 0.2 s" in await raw.closed(connection)
        assert len(hub.router.guests) == 0
        await join(ticket)


async def begun(strangers: iroh.Endpoint, hub: Hub) -> tuple[iroh.Connection, iroh.BiStream]:
    """A stranger whose first frame begins and does not end. Its stream lives as long as what this returns."""
    address = iroh.EndpointAddr(iroh.EndpointId.from_string(hub.node_id), None, hub.router.endpoint.addrs())
    connection = await strangers.connect(address, ALPN.encode())
    stream = await connection.open_bi()
    await stream.send().write_all(struct.pack(">I", 100) + b"{")
    return connection, stream
