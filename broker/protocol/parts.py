"""Messages with lists or a long text that may not fit in one frame: cut into several of a type, and put together again.

Rules:
1. A message that fits is one part, as it is. Otherwise its lists, maps and texts are halved until each part fits.
2. Parts that mean something each (``hub.peers``) are taken as they come. Those that only count together say ``more``
   on all but the last, and `Gathered` puts them together.
3. What cannot be cut stays too large. Who sends it must look.

Not here: which message has which lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from broker.protocol.codec import encode

__all__ = ["MORE", "Gathered", "parts"]

MORE: Final = {"more": True}
"""What all parts but the last say."""


def parts(
    type: str,
    detail: Mapping[str, Any],
    most: int,
    *,
    cut: Sequence[str],
    first: Mapping[str, Any] | None = None,
    rest: Mapping[str, Any] | None = None,
) -> list[bytes]:
    """The frames of one message, each of at most ``most`` bytes. ``cut``: keys whose lists, maps or texts may be cut.
    ``first`` and ``rest`` are what the parts before a cut and after it say besides."""
    frame = encode(type, detail)
    longest = max(cut, key=lambda key: len(detail[key]))
    if len(frame) <= most or sum(len(detail[key]) for key in cut) < 2:
        return [frame]
    left, right = _halves(detail[longest])
    emptied = {key: {} if isinstance(detail[key], dict) else detail[key][:0] for key in cut}
    before = {**detail, longest: left, **(first or {})}
    after = {**detail, **emptied, longest: right, **(rest or {})}
    return [one for half in (before, after) for one in parts(type, half, most, cut=cut, first=first, rest=rest)]


def _halves(value: Any) -> tuple[Any, Any]:
    """The second half is never empty."""
    half = len(value) // 2
    if isinstance(value, dict):
        rows = list(value.items())
        return dict(rows[:half]), dict(rows[half:])
    return value[:half], value[half:]


class Gathered:
    """Parts of one message that came, until it is whole. ``most``: entries of its lists and maps that are held."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._detail: dict[str, Any] = {}

    def add(self, detail: Mapping[str, Any]) -> dict[str, Any] | None:
        """The whole once the last part is there. ValueError when it grows too large."""
        for key, value in detail.items():
            known = self._detail.get(key)
            if isinstance(value, list | dict):
                self._held += len(value)
            if isinstance(value, list) and isinstance(known, list):
                known += value
            elif isinstance(value, dict) and isinstance(known, dict):
                known |= value
            else:
                self._detail[key] = value
        if self._held > self._most:
            raise ValueError(f"its parts have more than {self._most} entries")
        if detail.get("more") is True:
            return None
        whole, self._detail, self._held = self._detail, {}, 0
        whole.pop("more", None)
        return whole
