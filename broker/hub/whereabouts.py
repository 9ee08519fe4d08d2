"""Where the hub is, looked at again and again: its machine may change the network. Not here: who is told (hub.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

__all__ = ["watch_places"]

log = logging.getLogger("broker.hub")

LOOK_INTERVAL: Final = 5.0
"""Seconds. Shorter than an idle timeout, so that spokes hear of a new address before they lose the old one."""


async def watch_places(where: Callable[[], Any], changed: Callable[[], None]) -> None:
    """Calls ``changed`` when ``where`` says something new. An error there is logged, and tried again with the next."""
    last = where()
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        now = where()
        if now == last:
            continue
        log.info("this hub is at %s now", now)
        try:
            changed()
            last = now
        except OSError as error:
            log.error("the ticket file does not say where the hub is now: %s", error.strerror)
