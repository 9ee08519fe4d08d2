"""How much Python runs, as a number that no busy machine changes. Not here: any expectation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["functions_in"]


def functions_in(call: Callable[[], Any]) -> int:
    """How many functions of the package run in it."""
    count = 0

    def note(frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call" and "/broker/" in frame.f_code.co_filename

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count
