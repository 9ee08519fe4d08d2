"""What several boards say in the same words."""

from __future__ import annotations

from typing import Final

__all__ = ["AT_BOTH"]

AT_BOTH: Final = "Each hub counts what comes to it: an event that gossip brings to two hubs is counted at both."
