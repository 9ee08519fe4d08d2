"""A relay of ours between a hub and its spokes: who gets through, by which way, and what is shown of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from broker import SpokeOptions, connect
from broker import _gossip_ext as ext
from broker.errors import ConnectError
from broker.keys import load_or_create
from broker.protocol.ticket import Ticket
from tests.relay.stage import Stage, by_relay
from tests.rig import FAST, Numbers, serving, spokes, until

ANSWER = 15.0
"""Seconds for a call that may have to wait for its relay."""


async def test_a_spoke_reaches_a_hub_by_relay_alone_and_moves_to_a_direct_path(stage: Stage) -> None:
    async with (
        stage.relay() as relay,
        stage.hub(relay.url) as hub,
        serving(by_relay(hub), "answers", options=stage.options, echo=lambda text: text),
        spokes(by_relay(hub), "asks", options=stage.options) as (asks,),
    ):
        assert await asks.call("echo", {"text": "through"}, timeout=ANSWER) == "through"
        assert relay.relay.counters()["clients"] >= 3
        await until(lambda: (stats := asks.stats()) is not None and stats.path == "direct")
        await until(lambda: Numbers(hub)("spokes_connected", path="direct") == 2)
        # Who has moved before its first message came is not seen to move.
        assert Numbers(hub)("path_changes_total", to="direct") <= 2
        assert Numbers(hub)("path_changes_total", to="relay") == 0
        assert await asks.call("echo", {"text": "still"}, timeout=ANSWER) == "still"


async def test_where_there_is_no_direct_path_the_relay_stays_and_is_shown(stage: Stage) -> None:
    async with (
        stage.relay() as relay,
        stage.hub(relay.url) as hub,
        spokes(hub.ticket, "far", options=stage.apart) as (far,),
    ):
        (row,) = await far.call("hub.spokes", timeout=ANSWER)
        assert row["path"] == "relay"
        assert 0 < row["rtt_ms"] < 1_000
        assert (stats := far.stats()) is not None
        assert stats.path == "relay"
        assert stats.remote_addr == f"{relay.url}/"
        assert Numbers(hub)("spokes_connected", path="relay") == 1
        assert Numbers(hub)("path_changes_total") == 0
        assert relay.relay.counters()["packets_in"] > 0


async def test_a_plain_relay_relays(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        stage.relay(tls_cert=None, tls_key=None) as relay,
        stage.hub(relay.url, relay_ca=None) as hub,
        spokes(by_relay(hub), "far", options=replace(FAST, bind="[::1]:0")) as (far,),
    ):
        assert relay.url.startswith("http://")
        assert relay.relay.quic_address() is None
        assert await far.call("hub.topics", timeout=ANSWER) == []
        assert "NO TLS" in caplog.text


async def test_only_admitted_node_ids_get_through_and_those_taken_off_are_cut(stage: Stage, tmp_path: Path) -> None:
    key, spoke_secret = tmp_path / "hub.key", ext.generate_secret()
    hub_secret = load_or_create(key)
    admitted = tmp_path / "admitted"
    names = [ext.node_id(secret) for secret in (hub_secret, spoke_secret)]
    admitted.write_text(f"{names[0]}  # the hub\n\n{names[1]}\n")
    async with (
        stage.relay(open=False, allow_file=admitted) as relay,
        stage.hub(relay.url, key=key) as hub,
    ):
        async with connect(by_relay(hub), secret=spoke_secret, options=stage.apart, timeout=ANSWER) as spoke:
            assert await spoke.call("hub.topics", timeout=ANSWER) == []
            with pytest.raises(ConnectError, match="refuses this NodeId: this NodeId is not on the relay's list"):
                await _refused(by_relay(hub), stage.apart)
            assert relay.relay.counters()["refused"] > 0
            admitted.write_text(f"{names[0]}\n")
            await until(lambda: relay.relay.counters()["cut"] == 1)
            await until(lambda: not spoke.connected)
        await until(lambda: relay.relay.counters()["clients"] <= 2)  # the hub, and its probe on the hub's word


async def _refused(ticket: str, options: SpokeOptions) -> None:
    async with connect(ticket, options=replace(options, dial_timeout=4.0), timeout=5.0):
        raise AssertionError("it got through")


async def test_a_wrong_certificate_is_named_and_nobody_waits_for_ever(stage: Stage, tmp_path: Path) -> None:
    other = Stage(tmp_path / "other")
    async with stage.relay() as relay, stage.hub(relay.url) as hub:
        with pytest.raises(ConnectError, match="certificate is signed by nobody who is believed here"):
            await _refused(by_relay(hub), other.apart)
        with pytest.raises(ConnectError, match="certificate is signed by nobody who is believed here"):
            await _refused(by_relay(hub), replace(FAST, bind="[::1]:0"))
        ticket = Ticket.decode(hub.ticket)
        away = replace(ticket, addrs=(), relays=(relay.url.replace("127.0.0.1", "127.0.0.2"),)).encode()
        with pytest.raises(ConnectError, match="cannot be used"):
            await _refused(away, stage.apart)


async def test_a_renewed_certificate_is_shown_without_a_restart(stage: Stage) -> None:
    fresh = Stage(stage.ca.parent / "fresh")
    async with stage.relay() as relay:
        stage.issued.cert.write_bytes(fresh.issued.cert.read_bytes())
        stage.issued.key.write_bytes(fresh.issued.key.read_bytes())
        async with asyncio.timeout(20):
            while True:
                async with fresh.hub(relay.url) as hub:
                    try:
                        async with connect(by_relay(hub), options=fresh.apart, timeout=3) as spoke:
                            assert await spoke.call("hub.topics", timeout=ANSWER) == []
                            return
                    except ConnectError:
                        continue
