"""What the hub lists of itself: operations, spokes and topics as rows, all at once or page by page.

A page is asked for with ``{"after"?, "limit"?}`` and answered with ``{"rows", "next"}``: ``next`` is what to ask for
``after`` then, null on the last page. Rows come in the order of their keys, so what is there from the first page to the
last is listed once, whatever comes and goes meanwhile. Not here: who may ask (router.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson

from broker.errors import ValidationFailed

if TYPE_CHECKING:
    from broker.hub.router import Router
    from broker.hub.session import Session

__all__ = ["MOST_ROWS", "PAGE_ROWS", "Listings"]

PAGE_ROWS: Final = 1_000
"""Rows of a page, unless asked for otherwise."""
MOST_ROWS: Final = 10_000
PAGE_BYTES: Final = 262_144
"""A page ends with the row that reaches it: what others ask for meanwhile does not wait for a megabyte."""
ENVELOPE: Final = 512
"""Bytes of a frame beside the output."""
MOST_SPOKES: Final = 1_000
"""Of one row. An operation that more offer has several rows; each spoke is in one of them."""
SPOKE_BYTES: Final = 1_024
"""A NodeId and a name of 128 characters, at the very most."""

Row = dict[str, Any]
Rows = Callable[[str], Iterator[tuple[str, Row]]]
"""From a key to what comes after it, in order, with its keys."""


class Listings:
    """All listings of a router."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._most_bytes = router.limits.max_frame_bytes - ENVELOPE
        self._most_spokes = min(MOST_SPOKES, max(1, router.limits.max_frame_bytes // SPOKE_BYTES))

    def operations(self, input: Any, _caller: str) -> Any:
        return self._answer(self._operations, input)

    def spokes(self, input: Any, _caller: str) -> Any:
        return self._answer(self._spokes, input)

    def topics(self, input: Any, _caller: str) -> Any:
        return self._answer(self._topics, input)

    # Whole, and by pages.

    def _answer(self, rows: Rows, input: Any) -> Any:
        if input is None:
            return self._whole(rows)
        after, limit = _page_of(input)
        page, last, size, more = list[Row](), after, 0, False
        for key, row in islice(rows(after), limit + 1):
            row, length = self._fitting(row)
            more = len(page) == limit or (bool(page) and size + length > min(PAGE_BYTES, self._most_bytes))
            if more:
                break
            page.append(row)
            last, size = key, size + length
        return {"rows": page, "next": last if more else None}

    def _whole(self, rows: Rows) -> list[Row]:
        listed, size = list[Row](), 0
        for _, row in rows(""):
            size += _size(row)
            if size > self._most_bytes:
                raise ValidationFailed(
                    f"this list is longer than a frame takes ({self._router.limits.max_frame_bytes} bytes): ask for "
                    f'pages with {{"limit": {PAGE_ROWS}}}, and for each further one with {{"after": next}}, as '
                    "`broker ls` does"
                )
            listed.append(row)
        return listed

    def _fitting(self, row: Row) -> tuple[Row, int]:
        """A row that no frame takes goes without what is long, and says so."""
        if (size := _size(row)) <= self._most_bytes:
            return row, size
        row = {**row, "description": None, "input_schema": None, "output_schema": None, "cut": True}
        return row, _size(row)

    # Rows.

    def _operations(self, after: str) -> Iterator[tuple[str, Row]]:
        most = self._most_spokes
        for operation, spokes in self._router.calls.operations_from(after.partition(" ")[0]):
            for part in range(0, len(spokes), most):
                # A blank sorts before whatever an id may have.
                if (key := f"{operation.id} {part:08}") <= after:
                    continue
                yield (
                    key,
                    {
                        "operation": operation.id,
                        "kind": operation.kind,
                        "description": operation.description,
                        "input_schema": operation.input_schema,
                        "output_schema": operation.output_schema,
                        "spokes": [{"node_id": id, "name": name} for id, name in spokes[part : part + most]],
                    },
                )

    def _spokes(self, after: str) -> Iterator[tuple[str, Row]]:
        keys = {f"{session.node_id} {session.peer:020}": session for session in self._router.sessions.values()}
        for key in sorted(keys):
            if key > after:
                yield key, self._spoke(keys[key])

    def _spoke(self, session: Session) -> Row:
        stats = self._router.endpoint.stats(session.peer)
        return {
            "node_id": session.node_id,
            "name": session.name,
            "transport": "iroh",
            "path": stats.path if stats else "none",
            "rtt_ms": round(stats.rtt * 1000, 3) if stats else None,
            "queued": stats.queued_frames if stats else 0,
            "queued_bytes": stats.queued_bytes if stats else 0,
            "dropped": session.dropped,
            "slow": session.slow,
            "lagging": self._router.topics.readers.lag_of(session.peer),
            "operations": len(session.registration.operations),
        }

    def _topics(self, after: str) -> Iterator[tuple[str, Row]]:
        topics = self._router.topics
        patterns = dict(topics.subscriptions.rows())
        for name in sorted({*topics.channels, *patterns}):
            if name <= after:
                continue
            if (channel := topics.channels.get(name)) is None:
                nothing = {"carrier": "stream", "authors": 0, "events": 0, "kept": 0}
                yield name, {"topic": name, "subscribers": patterns[name], **nothing}
            else:
                yield (
                    name,
                    {
                        "topic": name,
                        "subscribers": len(topics.subscriptions.match(name)),
                        "carrier": "stream" if channel.swarm is None else "gossip",
                        "authors": len({author for author, _, _ in channel.ring.heads()}),
                        "events": channel.published,
                        "kept": len(channel.ring),
                    },
                )


def _size(row: Row) -> int:
    return len(orjson.dumps(row)) + 1


def _page_of(input: Any) -> tuple[str, int]:
    if not isinstance(input, dict):
        raise ValidationFailed("the input is an object with after and limit, or nothing")
    after, limit = input.get("after"), input.get("limit")
    if after is not None and not isinstance(after, str):
        raise ValidationFailed("after is a string: what the page before gave as next")
    if limit is not None and (type(limit) is not int or not 0 < limit <= MOST_ROWS):
        raise ValidationFailed(f"limit is a whole number from 1 to {MOST_ROWS}")
    return after or "", limit or PAGE_ROWS
