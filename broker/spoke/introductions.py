"""What a hub says of introductions, read into frozen values, and which of two connections stays.

A detail is wholly right or refused: FrameError 24. Not here: what follows from it (directs.py), and grants
(protocol/grants.py).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from broker.errors import FrameError
from broker.protocol.place import MAX_NAME
from broker.protocol.registration import MAX_ADDRS, MAX_PLACE, MAX_RELAYS
from broker.protocol.wire import CloseCode

__all__ = ["AT_ONCE", "Introduction", "introduction", "newer_stays"]

AT_ONCE: Final = 3.0
"""Seconds. Of two connections that are further apart the older one is from before something broke."""
MAX_WORD: Final = 64
MAX_REASON: Final = 300


class Introduction(NamedTuple):
    """Another spoke: where it is, and what the hub lets one of the two ask the other. ``grant`` None: it is over."""

    node_id: str
    name: str | None
    addrs: tuple[str, ...]
    relays: tuple[str, ...]
    grant: dict[str, Any] | None
    now: float
    """The hub's clock, Unix milliseconds."""
    ref: str
    """Of the one that is asked: what to answer with."""
    reason: str


def introduction(detail: Any) -> Introduction:
    """Reads a ``hub.introduce``, or the answer to a call of that name."""
    match detail:
        case {"id": str(node_id), "grant": None}:
            return Introduction(node_id, None, (), (), None, 0.0, "", str(detail.get("reason"))[:MAX_REASON])
        case {"id": str(node_id), "grant": dict(grant), "now": int(now) | float(now)}:
            name, ref = detail.get("name"), detail.get("ref", "")
            if len(node_id) == 64 and isinstance(ref, str) and len(ref) <= MAX_WORD:
                addrs, relays = _strings(detail, "addrs", MAX_ADDRS + 1), _strings(detail, "relays", MAX_RELAYS)
                shown = name[:MAX_NAME] if isinstance(name, str) else None
                return Introduction(node_id, shown, addrs, relays, grant, now, ref, "")
    raise FrameError("hub.introduce needs id, grant and now", close_code=CloseCode.BAD_MESSAGE)


def newer_stays(me: str, other: str, *, older: tuple[bool, float], newer: tuple[bool, float]) -> bool:
    """Of two connections between the same spokes, each given as (whether this side dialled it, when it was there): when
    both sides dialled at once, the one that the smaller NodeId dialled stays. Both sides come to the same answer."""
    if older[0] == newer[0] or newer[1] - older[1] > AT_ONCE:
        return True
    return newer[0] == (me < other)


def _strings(detail: dict[str, Any], key: str, most: int) -> tuple[str, ...]:
    values = detail.get(key) or []
    if (
        not isinstance(values, list)
        or len(values) > most
        or not all(isinstance(one, str) and len(one) <= MAX_PLACE for one in values)
    ):
        raise FrameError(f"hub.introduce: {key} is not a list of at most {most}", close_code=CloseCode.BAD_MESSAGE)
    return tuple(values)
