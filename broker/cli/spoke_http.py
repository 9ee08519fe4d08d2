"""The HTTP port of ``broker serve --http``: a spoke's own metrics and health. Not here: the numbers
(hub/metrics.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from broker.errors import UsageError

if TYPE_CHECKING:
    from broker import Spoke

__all__ = ["spoke_http"]


def spoke_http(address: str, spoke: Spoke, draining: Callable[[], bool]) -> AbstractAsyncContextManager[str]:
    """Serves while the block runs; gives the address that was bound."""
    from broker.config import split_address
    from broker.hub.http import serve_http
    from broker.hub.metrics import SpokeGauges, SpokeMetrics
    from broker.version import VERSION

    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(f"--http: {error}") from None
    metrics = SpokeMetrics(VERSION, gauges=lambda: SpokeGauges(connected=spoke.connected, **spoke.counts()))
    spoke.on_call_ended(metrics.call_ended)

    def not_ready() -> str | None:
        if draining():
            return "draining"
        return None if spoke.connected else "no connection to the hub"

    def status() -> str:
        hub = spoke.hub_node_id if spoke.connected else "not connected"
        return (
            f"broker spoke {spoke.name or ''}\nnode_id  {spoke.node_id}\nhub      {hub}\n\n/metrics /healthz /readyz\n"
        )

    return serve_http(address, registry=metrics.registry, not_ready=not_ready, status=status)
