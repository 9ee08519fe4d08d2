"""What a hub says about swarms, read into frozen values.

A detail is wholly right or refused: FrameError 24. Not here: what follows from it (swarms.py).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from broker.errors import FrameError
from broker.protocol.place import MAX_NAME
from broker.protocol.tracker import MAX_SEQ
from broker.protocol.wire import CloseCode

__all__ = ["Invitation", "Peer", "PeerList", "Range", "batch_data", "invitation", "peer_list", "range_of"]

MAX_BOOTSTRAP: Final = 64
MAX_NODES: Final = 100_000
"""NodeIds in one list of the hub's."""
MAX_PLACES: Final = 64
"""Addresses of one peer."""
NODE_ID: Final = 64
"""Hex digits; of a swarm's id too."""


class Peer(NamedTuple):
    """One to join by way of, and where it is."""

    node_id: str
    addrs: list[str]
    relays: list[str]


class Invitation(NamedTuple):
    """``topic.swarm`` from the hub. ``id`` is None when the swarm is to be left."""

    topic: str
    generation: int
    id: str | None
    bootstrap: tuple[Peer, ...]
    hubs: tuple[str, ...]
    authors: frozenset[str] | None


class PeerList(NamedTuple):
    """``hub.peers``."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    full: bool


class Range(NamedTuple):
    """``topic.repair``: numbers of one sequence, both ends included."""

    topic: str
    author: str
    epoch: str
    a: int
    b: int

    def to_json(self) -> dict[str, Any]:
        """The detail of ``topic.repair`` and ``topic.lost``."""
        return {"topic": self.topic, "author": self.author, "epoch": self.epoch, "from": self.a, "to": self.b}


def invitation(detail: Any) -> Invitation:
    """Reads a ``topic.swarm``."""
    what = "topic.swarm"
    topic, generation = _field(detail, "topic", str, what), _field(detail, "generation", int, what)
    id = detail.get("id")
    if id is None:
        return Invitation(topic, generation, None, (), (), None)
    if not _is_id(id):
        raise _bad(what, f"id is not {NODE_ID} hex digits")
    rows = detail.get("bootstrap") or []
    if not isinstance(rows, list) or len(rows) > MAX_BOOTSTRAP:
        raise _bad(what, f"bootstrap is not a list of at most {MAX_BOOTSTRAP}")
    bootstrap = tuple(_peer(row, what) for row in rows)
    authors = None if detail.get("authors") is None else frozenset(_nodes(detail, "authors", what))
    return Invitation(topic, generation, id, bootstrap, _nodes(detail, "hubs", what), authors)


def peer_list(detail: Any) -> PeerList:
    """Reads a ``hub.peers``."""
    what = "hub.peers"
    if not isinstance(detail, dict):
        raise _bad(what, "it is not an object")
    return PeerList(_nodes(detail, "add", what), _nodes(detail, "remove", what), detail.get("full") is True)


def range_of(detail: Any) -> Range:
    """Reads a ``topic.repair``."""
    what = "topic.repair"
    topic, author, epoch = (_field(detail, key, str, what) for key in ("topic", "author", "epoch"))
    a, b = (_field(detail, key, int, what) for key in ("from", "to"))
    if not 1 <= a <= b <= MAX_SEQ or len(author) > MAX_NAME or len(epoch) > MAX_NAME:
        raise _bad(what, "its numbers are not a range, or its names are too long")
    return Range(topic, author, epoch, a, b)


def batch_data(detail: Any) -> tuple[str, str]:
    """Topic and base64 data of a ``topic.batch``."""
    return _field(detail, "topic", str, "topic.batch"), _field(detail, "data", str, "topic.batch")


def _peer(row: Any, what: str) -> Peer:
    node_id = _field(row, "id", str, what)
    places: list[list[str]] = []
    for key in ("addrs", "relays"):
        value = row.get(key) or []
        if not isinstance(value, list) or len(value) > MAX_PLACES or not all(isinstance(one, str) for one in value):
            raise _bad(what, f"{key} of a peer is not a list of at most {MAX_PLACES} strings")
        places.append(value)
    return Peer(node_id, *places)


def _field(detail: Any, key: str, kind: type[Any], what: str) -> Any:
    value = detail.get(key) if isinstance(detail, dict) else None
    if type(value) is not kind:
        raise _bad(what, f"{key} is missing or malformed")
    return value


def _nodes(detail: dict[str, Any], key: str, what: str) -> tuple[str, ...]:
    value = detail.get(key) or []
    if not isinstance(value, list) or len(value) > MAX_NODES or not all(map(_is_id, value)):
        raise _bad(what, f"{key} is not a list of NodeIds")
    return tuple(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == NODE_ID and all(digit in "0123456789abcdef" for digit in value)


def _bad(what: str, problem: str) -> FrameError:
    return FrameError(f"{what}: {problem}", close_code=CloseCode.BAD_MESSAGE)
