"""The hub's (or a spoke's) HTTP port: ``/metrics``, ``/healthz``, ``/readyz`` and a plain status page.

``/healthz`` says that the process lives; ``/readyz`` says whether to send it work, and if not, why. Nothing here
changes anything. Not here: what is measured (metrics.py), the console and the gateway.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from broker.config import split_address
from broker.errors import BindError
from broker.hub.exposition import content_type, encode

__all__ = ["serve_http"]

SHUTDOWN_SECONDS: Final = 1.0
"""A scrape in flight gets so long to finish when the server stops."""
OPENMETRICS: Final = "application/openmetrics-text"
GZIP_FROM_BYTES: Final = 4_096
GZIP_ASIDE_FROM_BYTES: Final = 262_144
"""From here on compressing holds the loop up for longer than a thread costs. Some 30 KiB are usual."""
NO_STORE: Final = {"Cache-Control": "no-store"}


@asynccontextmanager
async def serve_http(
    address: str,
    *,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    status: Callable[[], str],
    told: Callable[[], Mapping[str, Any]] = dict,
) -> AsyncIterator[str]:
    """Serves on ``host:port`` while the block runs and gives the address that was bound. ``not_ready`` says why work
    should go elsewhere (``draining``), or None; ``told`` is what ``/readyz`` says besides; ``status`` is the text of
    the page. Raises :class:`BindError`."""
    runner = web.AppRunner(
        _application(registry, not_ready, status, told), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )
    await runner.setup()
    try:
        await _bind(runner, address)
        host, port = runner.addresses[0][:2]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    finally:
        await runner.cleanup()


async def _bind(runner: web.AppRunner, address: str) -> None:
    host, port = split_address(address)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = "is in use by another program"
        elif error.errno in (errno.EACCES, errno.EPERM):
            why = "may not be used by this user"
        else:
            why = f"cannot be bound: {error.strerror or error}"
        advice = "give another one with --http HOST:PORT, or --http off"
        raise BindError(f"the HTTP address {address} {why}\n{advice}") from None


def _application(
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    status: Callable[[], str],
    told: Callable[[], Mapping[str, Any]],
) -> web.Application:
    async def metrics(request: web.Request) -> web.Response:
        openmetrics = OPENMETRICS in request.headers.get("Accept", "")
        body = encode(registry, openmetrics=openmetrics)
        headers = {"Content-Type": content_type(openmetrics), **NO_STORE}
        response = web.Response(body=body, headers=headers, zlib_executor_size=GZIP_ASIDE_FROM_BYTES)
        if len(body) >= GZIP_FROM_BYTES:
            response.enable_compression()
        return response

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=NO_STORE)

    async def readyz(_: web.Request) -> web.Response:
        if (reason := not_ready()) is not None:
            body = {"status": "not ready", "reason": reason, **told()}
            return web.json_response(body, status=503, headers=NO_STORE)
        return web.json_response({"status": "ready", **told()}, headers=NO_STORE)

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=status(), headers=NO_STORE)

    app = web.Application()
    app.add_routes(
        [web.get("/", page), web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)]
    )
    return app
