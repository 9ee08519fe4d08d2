"""The HTTP port of ``broker serve --http``: a spoke's own metrics and health. Not here: the numbers
(hub/metrics.py, hub/extension_metrics.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from broker.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from broker import Spoke

__all__ = ["spoke_http"]


def spoke_http(
    address: str,
    spoke: Spoke,
    *,
    not_yet: Callable[[], str | None] = lambda: None,
    collectors: Sequence[Collector] = (),
) -> AbstractAsyncContextManager[str]:
    """Serves while the block runs; gives the address that was bound. ``not_yet``: why this spoke takes no work, beside
    having no hub. ``collectors``: what there is to tell beside a spoke's own numbers."""
    from broker.cli.spoke_direct import DirectCollector
    from broker.cli.spoke_swarms import SwarmCollector
    from broker.config import split_address
    from broker.hub.extension_metrics import ExtensionCollector
    from broker.hub.http import serve_http
    from broker.hub.metrics import SpokeGauges, SpokeMetrics, watch_loop_lag
    from broker.version import VERSION

    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(f"--http: {error}") from None
    metrics = SpokeMetrics(VERSION, gauges=lambda: SpokeGauges(connected=spoke.connected, **spoke.counts()))
    spoke.on_call_ended(metrics.call_ended)
    own = (SwarmCollector(spoke), DirectCollector(spoke), ExtensionCollector(lambda: spoke.endpoint))
    for collector in (*own, *collectors):
        metrics.registry.register(collector)

    def not_ready() -> str | None:
        if reason := not_yet():
            return reason
        return None if spoke.connected else f"no connection to the hub: {spoke.trouble() or 'it is being dialled'}"

    def status() -> str:
        hub = spoke.hub_node_id if spoke.connected else "not connected"
        return (
            f"broker spoke {spoke.name or ''}\nnode_id  {spoke.node_id}\nhub      {hub}\n\n/metrics /healthz /readyz\n"
        )

    @asynccontextmanager
    async def serve() -> AsyncIterator[str]:
        lag = asyncio.create_task(watch_loop_lag(metrics.loop_lagged), name="broker-loop-lag")
        try:
            async with serve_http(address, registry=metrics.registry, not_ready=not_ready, status=status) as bound:
                yield bound
        finally:
            lag.cancel()
            await asyncio.gather(lag, return_exceptions=True)

    return serve()
