"""Answers of the hub's own operations that are not there at once. Not here: the operations (operations.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.errors import CallError

__all__ = ["Later"]


class Later:
    """An answer that somebody else has to be asked for. One of the two is called once, not before it is returned; what
    was asked meanwhile may be over, and then nothing follows."""

    give: Callable[[Any], None]
    fail: Callable[[CallError], None]
