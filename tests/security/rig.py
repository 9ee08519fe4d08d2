"""A hub with a data directory, its administrator, and strangers. Not here: any expectation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker import Hub, HubConfig, Spoke, connect
from broker import _gossip_ext as ext
from broker.keys import admin_key_path, load
from tests.rig import FAST, PATIENCE, a_hub


def identity() -> tuple[bytes, str]:
    """A secret and its NodeId."""
    secret = ext.generate_secret()
    return secret, ext.node_id(secret)


@asynccontextmanager
async def closed_hub(data: Path, **config: Any) -> AsyncIterator[Hub]:
    """Admits its administrator and nobody else, and remembers."""
    async with a_hub(**({"open": False, "data": data} | config)) as hub:
        yield hub


@asynccontextmanager
async def admin_of(hub: Hub) -> AsyncIterator[Spoke]:
    data = hub.config.data
    assert data is not None
    secret = load(admin_key_path(data))
    async with connect(hub.ticket, name="admin", secret=secret, options=FAST, timeout=PATIENCE) as spoke:
        yield spoke


def config_with(scopes: dict[str, Any], nodes: dict[str, list[str]], default: list[str] | None = None) -> HubConfig:
    return HubConfig.model_validate(
        {"open": True, "http": "", "access": {"scopes": scopes, "nodes": nodes, "default": default or []}}
    )
