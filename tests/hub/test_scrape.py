"""The scrape page of a running hub and of a running spoke: complete, bounded, and with the ids of calls beside how long
they took. The real Prometheus reads it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from broker.cli.spoke_http import spoke_http
from broker.hub.extension_metrics import socket_counts
from broker.hub.metrics import _Calls
from tests.cluster.testbed import free_port
from tests.rig import PATIENCE, Numbers, a_hub, a_peer, serving, spokes, until

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

EXTENSION = {
    *("broker_direct_bytes", "broker_relay_bytes", "broker_frames", "broker_stream_bytes", "broker_datagrams"),
    *("broker_full_queues", "broker_silent_connections", "broker_datagrams_dropped"),
    *("broker_quic_connections", "broker_quic_connections_opened", "broker_quic_connections_closed"),
    *("broker_quic_datagrams", "broker_quic_bytes", "broker_quic_packets_sent", "broker_quic_packets_lost"),
    *("broker_quic_lost_bytes", "broker_quic_congestion_events", "broker_quic_rtt_seconds"),
    *("broker_udp_datagrams_received", "broker_udp_batches_received"),
    *("broker_udp_receive_drops", "broker_udp_receive_queue_bytes"),
    *("broker_gossip_messages", "broker_gossip_message_bytes", "broker_gossip_neighbour_changes"),
    *("broker_gossip_connections_ended", "broker_gossip_dials_failed"),
    *("broker_relay_connects", "broker_relay_connects_failed", "broker_relay_disconnects"),
    "broker_relay_cut_connections",
    *("broker_holepunch_attempts", "broker_tokio_workers", "broker_tokio_alive_tasks", "broker_tokio_queue_depth"),
    *("broker_tokio_busy_seconds", "broker_tokio_parks"),
}
SWARMS = {
    *("broker_swarms", "broker_swarm_neighbours", "broker_swarm_batches", "broker_swarm_events", "broker_swarm_bytes"),
    *("broker_swarm_bad_batches", "broker_swarm_lagged", "broker_swarm_repairs"),
}
PROCESS = {
    *("broker_build_info", "broker_loop_lag_seconds", "broker_border_batch_items"),
    *("process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"),
}
HUB = {
    *("broker_spokes_connected", "broker_connects", "broker_disconnects", "broker_refused", "broker_limited"),
    *("broker_calls", "broker_call_seconds", "broker_calls_in_flight", "broker_stray_answers"),
    *("broker_events_published", "broker_events_delivered", "broker_events_dropped", "broker_events_repaired"),
    *("broker_events_lost", "broker_events_duplicates"),
    *("broker_queue_depth", "broker_queue_bytes", "broker_slow_consumers"),
    *("broker_topics", "broker_patterns", "broker_ring_events", "broker_ring_bytes", "broker_protocol_errors"),
    *("broker_swarm_members", "broker_swarm_joins", "broker_swarm_left_out", "broker_swarm_sequences"),
    *("broker_carrier_switches", "broker_swarm_left_behind"),
}
SPOKE = {
    *("broker_spoke_connected", "broker_spoke_connects", "broker_spoke_calls", "broker_spoke_call_seconds"),
    *("broker_spoke_calls_running", "broker_spoke_events_published", "broker_spoke_events_received"),
    *("broker_spoke_events_given_up", "broker_subscription_sequences"),
}


async def page(address: str, accept: str = OPENMETRICS) -> str:
    async with (
        aiohttp.ClientSession(headers={"Accept": accept}) as session,
        session.get(f"http://{address}/metrics") as response,
    ):
        assert response.status == 200
        return await response.text()


async def families(address: str) -> dict[str, Metric]:
    text = await page(address)
    return {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]


def count(families: dict[str, Metric]) -> int:
    """Series, without those of connections that have no path: these come and go while connections begin and end."""
    samples = (sample for family in families.values() for sample in family.samples)
    return sum(sample.labels.get("path") != "none" for sample in samples)


async def get(sku: str) -> str:
    return sku


async def test_a_hub_tells_all_that_is_promised() -> None:
    async with (
        a_hub(http="127.0.0.1:0") as hub,
        serving(hub.ticket, "shop", stock__get=get),
        spokes(hub.ticket, "one") as (one,),
    ):
        await one.call("stock.get", {"sku": "a1"})
        async with one.subscribe("orders.*"):
            await one.publish("orders.created", 1)
            await one.flush()
        assert hub.http_address is not None
        found = await families(hub.http_address)
        assert {*EXTENSION, *SWARMS, *PROCESS, *HUB} - found.keys() == set()
        assert [name for name, family in found.items() if not family.documentation] == []
        connections = {
            (sample.labels["alpn"], sample.labels["path"]): sample.value
            for sample in found["broker_quic_connections"].samples
        }
        assert connections["alkhub/1", "direct"] == 2
        trips = [sample for sample in found["broker_quic_rtt_seconds"].samples if sample.labels.get("le") == "+Inf"]
        assert sum(sample.value for sample in trips) == sum(connections.values())


async def test_a_spoke_tells_all_that_is_promised() -> None:
    async with a_hub() as hub, serving(hub.ticket, "shop", stock__get=get) as shop:
        async with spoke_http("127.0.0.1:0", shop) as address, spokes(hub.ticket, "one") as (one,):
            assert await one.call("stock.get", {"sku": "a1"}) == "a1"
            found = await families(address)
        assert {*EXTENSION, *SWARMS, *PROCESS, *SPOKE} - found.keys() == set()


async def test_a_spoke_can_be_read_before_it_has_a_hub_and_after() -> None:
    async with a_hub() as hub, spokes(hub.ticket, "one") as (one,), spoke_http("127.0.0.1:0", one) as address:
        await one.close()
        assert "broker_spoke_connected 0.0\n" in await page(address)


async def test_series_do_not_grow_with_the_spokes() -> None:
    async with a_hub(http="127.0.0.1:0") as hub:
        assert hub.http_address is not None
        async with spokes(hub.ticket, "one"):
            few = count(await families(hub.http_address))
            async with spokes(hub.ticket, *(f"more{number}" for number in range(30))):
                found = await families(hub.http_address)
                assert sum(sample.value for sample in found["broker_spokes_connected"].samples) == 31
                assert count(found) == few


async def test_series_do_not_grow_with_what_spokes_invent() -> None:
    async with a_hub(http="127.0.0.1:0", metrics={"topic_labels": 5, "operation_labels": 5}) as hub:
        assert hub.http_address is not None

        async def invent(first: int, last: int) -> dict[str, Metric]:
            names = tuple(f"made.up.{number}" for number in range(first, last))
            async with (
                a_peer(hub.ticket, name="answers", operations=names) as answers,
                a_peer(hub.ticket, name="asks") as asks,
            ):
                for name in names:
                    asks.say(name, {})  # a topic
                    asks.say("call.requested", {"requestId": name, "operationId": name, "input": None})
                    leg = await answers.hears("call.requested", operationId=name)
                    error = {"requestId": leg["requestId"], "code": f"CODE_{name}", "message": ""}
                    answers.say("call.error", error)
                    await asks.hears("call.error", requestId=name)
                    unknown = {"requestId": "x", "operationId": f"nobody.{name}", "input": None}
                    asks.say("call.requested", unknown)
                    await asks.hears("call.error", requestId="x")
            await until(lambda: not hub.router.sessions)
            assert hub.http_address is not None
            return await families(hub.http_address)

        few = await invent(0, 20)
        many = await invent(20, 200)
        assert count(many) == count(few)
        topics = {sample.labels["topic"] for sample in many["broker_events_published"].samples}
        assert len(topics) == 6
        assert "other" in topics
        assert Numbers(hub)("events_published_total") == 200
        operations = {sample.labels["operation"] for sample in many["broker_call_seconds"].samples}
        assert len(operations) == 6


async def test_a_call_is_the_exemplar_of_how_long_it_took() -> None:
    async with a_hub(http="127.0.0.1:0") as hub, a_peer(hub.ticket) as peer:
        assert hub.http_address is not None
        peer.say("call.requested", {"requestId": "trace-7f", "operationId": "hub.spokes", "input": None})
        await peer.hears("call.responded", requestId="trace-7f")
        peer.say("call.requested", {"requestId": "trace-80", "operationId": "nobody.has", "input": None})
        await peer.hears("call.error", requestId="trace-80")
        told = {
            sample.labels["operation"]: (sample.exemplar.labels, sample.exemplar.value <= float(sample.labels["le"]))
            for sample in (await families(hub.http_address))["broker_call_seconds"].samples
            if sample.exemplar is not None
        }
        assert told == {"hub.spokes": ({"trace_id": "trace-7f"}, True), "other": ({"trace_id": "trace-80"}, True)}
        assert "trace-7f" not in await page(hub.http_address, "text/plain")


def test_sockets_are_found_by_their_address(tmp_path: Path) -> None:
    head = (
        "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer"
        " drops\n"
    )
    (tmp_path / "udp").write_text(
        head
        + "  101: 0100007F:1151 00000000:0000 07 00000000:00000A00 00:00000000 00000000     0        0 5 2 0000 7  \n"
        + "  102: 0200007F:1151 0100007F:1151 07 00000000:00000001 00:00000000 00000000     0        0 5 2 0000 90 \n"
    )
    (tmp_path / "udp6").write_text(
        head.replace("local_address", "local_address                        ")
        + "  103: 00000000000000000000000001000000:1151 00000000000000000000000000000000:0000 07 00000000:00000002"
        " 00:00000000 00000000     0        0 5 2 0000 11\n"
    )
    assert socket_counts(["127.0.0.1:4433"], tmp_path) == (7, 2_560)
    assert socket_counts(["127.0.0.1:4433", "[::1]:4433"], tmp_path) == (18, 2_562)
    assert socket_counts(["127.0.0.1:4434"], tmp_path) == (0, 0)
    assert socket_counts(["127.0.0.1:4433"], tmp_path / "none") is None


def test_what_a_full_socket_drops_is_counted() -> None:
    """The kernel's own count, of a socket that nobody reads."""
    with socket.socket(type=socket.SOCK_DGRAM) as unread, socket.socket(type=socket.SOCK_DGRAM) as sender:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        unread.bind(("127.0.0.1", 0))
        host, port = unread.getsockname()
        assert socket_counts([f"{host}:{port}"]) == (0, 0)
        for _ in range(1_000):
            sender.sendto(b"x" * 1_000, (host, port))
        counts = socket_counts([f"{host}:{port}"])
    assert counts is not None
    assert 900 < counts[0] < 1_000
    assert counts[1] > 0


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """One that reads this target alone, as the testbed's does."""
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [
        {"job_name": "hub", "static_configs": [{"targets": [target]}]}]}  # fmt: skip
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=error"),
    )
    try:
        yield f"http://{address}/api/v1"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.system
async def test_prometheus_stores_the_exemplars(tmp_path: Path) -> None:
    async with a_hub(http="127.0.0.1:0") as hub, a_peer(hub.ticket) as peer, aiohttp.ClientSession() as session:
        assert hub.http_address is not None
        peer.say("call.requested", {"requestId": "trace-7f", "operationId": "hub.spokes", "input": None})
        await peer.hears("call.responded", requestId="trace-7f")
        query = urllib.parse.urlencode({"query": "broker_call_seconds_bucket", "start": 0, "end": 9e9})
        async with prometheus(tmp_path, hub.http_address) as api, asyncio.timeout(PATIENCE):
            stored: list[dict[str, Any]] = []
            while not stored:
                await asyncio.sleep(0.1)
                try:
                    async with session.get(f"{api}/query_exemplars?{query}") as answer:
                        stored = (await answer.json())["data"]
                except aiohttp.ClientError:
                    continue
    assert [one["labels"] for row in stored for one in row["exemplars"]] == [{"trace_id": "trace-7f"}]


@pytest.mark.system
async def test_promtool_finds_nothing_in_a_hubs_page() -> None:
    async with a_hub(http="127.0.0.1:0") as hub, spokes(hub.ticket, "one"):
        assert hub.http_address is not None
        text = await page(hub.http_address, "text/plain")
    promtool = ["promtool", "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, promtool, input=text.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_an_operation_named_as_the_rest_is_shares_its_series() -> None:
    """Two series of one name and labels make the whole page unreadable to Prometheus."""
    calls = _Calls(5)
    calls.ended("other", "OK", 0.1)
    calls.ended("nobody.has", "OPERATION_NOT_FOUND", 0.1)
    told = [(one.name, *sorted(one.labels.items())) for family in calls.families("broker") for one in family.samples]
    assert len(told) == len(set(told))
    assert ("broker_calls_total", ("code", "OK"), ("operation", "other")) in told
