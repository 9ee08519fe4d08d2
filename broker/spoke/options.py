"""What a spoke can be told about itself. Values only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SpokeOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokeOptions:
    """Times are seconds, sizes bytes."""

    bind: str | None = None
    """Local UDP address ``host:port``. None: loopback when the ticket has only loopback addresses, else every
    interface."""
    accept: bool = False
    """Takes incoming connections: a spoke that is dialled."""
    max_frame_bytes: int = 1_048_576
    dial_timeout: float = 10.0
    idle_timeout: float = 6.0
    """A path that is silent for so long is dead: what it takes to notice a hub that was killed."""
    backoff_first: float = 0.2
    """Full jitter: the n-th attempt waits a random time up to ``min(backoff_first * 2**n, backoff_most)``."""
    backoff_most: float = 30.0
    subscription_events: int = 4_096
    """A subscription's queue: from here on its policy applies."""
