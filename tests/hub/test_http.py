"""The HTTP port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from broker.errors import BindError
from broker.hub.http import serve_http
from broker.hub.metrics import HubMetrics


class Server:
    """A running port whose readiness a test can change."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.address = ""
        self.metrics = HubMetrics("9.9")

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.address}{path}", headers=headers) as response,
        ):
            return response.status, response.headers["Content-Type"], await response.text()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with serve_http(
        "127.0.0.1:0",
        registry=server.metrics.registry,
        not_ready=lambda: server.reason,
        status=lambda: "hub xyz\n",
    ) as server.address:
        yield server


async def test_health_and_readiness(server: Server) -> None:
    assert (await server.get("/healthz"))[0] == 200
    assert (await server.get("/readyz"))[0] == 200
    server.reason = "draining"
    status, kind, body = await server.get("/readyz")
    assert (status, body) == (503, '{"status": "not ready", "reason": "draining"}')
    assert kind.startswith("application/json")
    assert (await server.get("/healthz"))[0] == 200


async def test_metrics_in_both_formats(server: Server) -> None:
    server.metrics.connected()
    status, kind, body = await server.get("/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "\nbroker_connects_total 1.0\n" in body
    _, kind, body = await server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=new", "text/plain;version=x", "*/*", "é"])
async def test_metrics_whatever_is_accepted(server: Server, accept: str) -> None:
    assert (await server.get("/metrics", Accept=accept))[0] == 200


async def test_the_page_and_what_is_not_there(server: Server) -> None:
    assert (await server.get("/"))[2] == "hub xyz\n"
    assert (await server.get("/nothing"))[0] == 404


async def test_a_port_in_use_is_named(server: Server) -> None:
    with pytest.raises(BindError, match=rf"{server.address} is in use by another program\n.*--http"):
        async with serve_http(
            server.address, registry=server.metrics.registry, not_ready=lambda: None, status=lambda: ""
        ):
            pass


async def test_an_address_of_another_machine_is_named(server: Server) -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1:0 cannot be bound"):
        async with serve_http(
            "192.0.2.1:0", registry=server.metrics.registry, not_ready=lambda: None, status=lambda: ""
        ):
            pass


async def test_ipv6() -> None:
    metrics = HubMetrics()
    async with serve_http("[::1]:0", registry=metrics.registry, not_ready=lambda: None, status=lambda: "") as address:
        assert address.startswith("[::1]:")
