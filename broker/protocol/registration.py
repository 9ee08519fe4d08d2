"""``hub.register``: what a peer says about itself when it connects, read into frozen values; and who offers what.

Rules:

1. A detail is wholly right or refused: FrameError 23 names the field. Nothing is half registered.
2. Unknown keys are ignored, and every key may be absent: a peer that offers nothing is a caller.
3. ``hub.*`` operations belong to the hub.

4. An operation is on offer while at least one peer offers it. Of several, the one with the least to do is picked.

Not here: what is asked of them (calls.py) and who may connect (access.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from broker.errors import FrameError
from broker.protocol.wire import GOSSIP, PROTOCOL_VERSION, CloseCode

__all__ = [
    "GossipPlace",
    "Kind",
    "Offerer",
    "Offers",
    "Operation",
    "OperationRow",
    "Registration",
    "operation_detail",
    "parse",
    "to_detail",
]

MAX_OPERATIONS = 1_000
"""Of one peer; a hub may allow fewer (limits.operations_per_peer). A spoke with more is several spokes; listings
show all of them."""
MAX_OPERATION_ID = 255
"""Bytes, as for a topic: it is a metric label and a table cell."""
MAX_TOKENS = 16
MAX_NAME = 128
"""Characters of a peer's name: one cell of a table."""
MAX_DESCRIPTION = 4_096
MAX_TOPICS = 1_000
MAX_TOPIC = 255
MAX_CAPABILITIES = 64
MAX_CAPABILITY = 64
MAX_ADDRS, MAX_RELAYS, MAX_PLACE = 16, 4, 300
"""Of a peer that gossips: its interfaces, its relays, and the characters of each."""
MAX_NODE_ID = 64
MAX_HUBS = 64
"""Of one realm."""
MESSAGE_BYTES = 4_096
MAX_MESSAGE = 65_536
"""Bytes that a peer may name as its limit of a gossip message."""
MAX_SCANNED = 32
"""Offering peers compared for one call. Exact up to there; beyond, the least busy of the next 32 in turn, so that a
call costs the same however many offer it."""

Kind = Literal["query", "mutation", "subscription"]
KINDS: frozenset[str] = frozenset({"query", "mutation", "subscription"})

_OPERATION_ID = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that a peer offers. Schemas are JSON Schema (an object or a boolean), None when not told."""

    id: str
    kind: Kind = "query"
    description: str | None = None
    input_schema: dict[str, Any] | bool | None = None
    output_schema: dict[str, Any] | bool | None = None
    errors: list[Any] | dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GossipPlace:
    """Where a peer can be dialled by gossip, and the largest message it takes."""

    addrs: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    max: int = MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class Registration:
    """All that one ``hub.register`` says. The later one of a connection replaces the earlier."""

    operations: tuple[Operation, ...] = ()
    name: str | None = None
    topics: tuple[str, ...] = ()
    protocol: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = ()
    max_frame_bytes: int | None = None
    """The largest frame that it takes, None when not told."""
    gossip: GossipPlace | None = None
    hubs: tuple[str, ...] = ()
    """Of a hub: the NodeIds of its realm, its own among them."""
    addrs: tuple[str, ...] = ()
    """Of a hub: where it can be dialled now."""
    relays: tuple[str, ...] = ()

    @property
    def gossips(self) -> bool:
        """Whether it can be in a swarm."""
        return self.gossip is not None and GOSSIP in self.capabilities


def parse(detail: Any, *, from_hub: bool = False) -> Registration:
    """Reads the detail of a ``hub.register``. ``from_hub`` lets it name ``hub.*``. FrameError 23 names the field."""
    if not isinstance(detail, dict):
        raise _bad("detail", "is not an object")
    operations = tuple(
        _operation(item, f"operations[{index}]", from_hub)
        for index, item in enumerate(_list(detail, "operations", MAX_OPERATIONS))
    )
    seen: set[str] = set()
    for operation in operations:
        if operation.id in seen:
            raise _bad("operations", f"names {operation.id} twice")
        seen.add(operation.id)
    return Registration(
        operations=operations,
        name=_name(detail),
        topics=_strings(detail, "topics", MAX_TOPICS, MAX_TOPIC),
        protocol=_whole(detail, "protocol") or PROTOCOL_VERSION,
        capabilities=_strings(detail, "capabilities", MAX_CAPABILITIES, MAX_CAPABILITY),
        max_frame_bytes=_whole(detail, "maxFrameBytes"),
        gossip=_gossip(detail),
        hubs=_strings(detail, "hubs", MAX_HUBS, MAX_NODE_ID),
        addrs=_strings(detail, "addrs", MAX_ADDRS, MAX_PLACE),
        relays=_strings(detail, "relays", MAX_RELAYS, MAX_PLACE),
    )


def to_detail(registration: Registration) -> dict[str, Any]:
    """The detail that :func:`parse` reads back as the same registration. What is not told is left out."""
    detail: dict[str, Any] = {
        "operations": [operation_detail(operation) for operation in registration.operations],
        "protocol": registration.protocol,
    }
    if registration.name is not None:
        detail["name"] = registration.name
    if registration.topics:
        detail["topics"] = list(registration.topics)
    if registration.capabilities:
        detail["capabilities"] = list(registration.capabilities)
    if registration.max_frame_bytes is not None:
        detail["maxFrameBytes"] = registration.max_frame_bytes
    if (place := registration.gossip) is not None:
        detail["gossip"] = {"addrs": list(place.addrs), "relays": list(place.relays), "max": place.max}
    if registration.hubs:
        detail["hubs"] = list(registration.hubs)
    if registration.addrs:
        detail["addrs"] = list(registration.addrs)
    if registration.relays:
        detail["relays"] = list(registration.relays)
    return detail


def operation_detail(operation: Operation) -> dict[str, Any]:
    """One operation as the wire has it: for ``hub.register`` and for listings."""
    optional = {
        "description": operation.description,
        "inputSchema": operation.input_schema,
        "outputSchema": operation.output_schema,
        "errors": operation.errors,
    }
    told = {key: value for key, value in optional.items() if value is not None}
    return {"id": operation.id, "kind": operation.kind, **told}


class OperationRow(NamedTuple):
    """One operation in a listing, as the first that offers it describes it, and (node id, name) of all that do."""

    operation: Operation
    spokes: list[tuple[str, str | None]]


class Offerer:
    """A connected peer as balancing sees it: what it offers and, by id, what it has to do (``legs``)."""

    __slots__ = ("legs", "name", "node_id", "operations")

    def __init__(self, node_id: str, name: str | None):
        self.node_id, self.name = node_id, name
        self.operations: dict[str, Operation] = {}
        self.legs: dict[str, Any] = {}


P = TypeVar("P", bound=Offerer)


class Offers(Generic[P]):
    """Who offers what now. Bounded by connections times MAX_OPERATIONS."""

    def __init__(self) -> None:
        self._offers: dict[str, _Offer[P]] = {}

    def __contains__(self, operation: object) -> bool:
        return operation in self._offers

    def replace(self, peer: P, operations: Iterable[Operation]) -> None:
        """From now on the peer offers these and nothing else."""
        offered = {operation.id: operation for operation in operations}
        for id in peer.operations.keys() - offered.keys():
            offer = self._offers[id]
            offer.peers.remove(peer)
            if not offer.peers:
                del self._offers[id]
        for id in offered.keys() - peer.operations.keys():
            self._offers.setdefault(id, _Offer()).peers.append(peer)
        peer.operations = offered

    def pick(self, operation: str) -> P | None:
        """The offering peer with the least to do; among equals, the next in turn. None when nobody offers it."""
        offer = self._offers.get(operation)
        return offer.pick() if offer is not None else None

    def all(self, operation: str) -> list[P]:
        offer = self._offers.get(operation)
        return list(offer.peers) if offer is not None else []

    def rows(self, first: str = "") -> Iterator[OperationRow]:
        """Sorted by operation id, from ``first`` on. They are read before anything changes."""
        for id in sorted(id for id in self._offers if id >= first):
            peers = self._offers[id].peers
            yield OperationRow(peers[0].operations[id], [(peer.node_id, peer.name) for peer in peers])


class _Offer(Generic[P]):
    """The peers that offer one operation: never none."""

    __slots__ = ("peers", "turn")

    def __init__(self) -> None:
        self.peers: list[P] = []
        self.turn = 0

    def pick(self) -> P:
        peers = self.peers
        count = len(peers)
        if count == 1:
            return peers[0]
        start = self.turn % count
        best, least = start, len(peers[start].legs)
        for index in range(start + 1, start + min(count, MAX_SCANNED)):
            if not least:
                break
            if (load := len(peers[index % count].legs)) < least:
                best, least = index % count, load
        self.turn = best + 1
        return peers[best]


def _operation(item: Any, where: str, from_hub: bool) -> Operation:
    if not isinstance(item, dict):
        raise _bad(where, "is not an object")
    kind = item.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _bad(f"{where}.kind", "is not query, mutation or subscription")
    return Operation(
        id=_operation_id(item.get("id"), f"{where}.id", from_hub),
        kind=cast(Kind, kind),
        description=_text(item, "description", where, MAX_DESCRIPTION),
        input_schema=_schema(item, "inputSchema", where),
        output_schema=_schema(item, "outputSchema", where),
        errors=_errors(item, where),
    )


def _operation_id(value: Any, where: str, from_hub: bool) -> str:
    if not isinstance(value, str):
        raise _bad(where, "is not a string")
    if len(value) > MAX_OPERATION_ID or not _OPERATION_ID.fullmatch(value) or value.count(".") >= MAX_TOKENS:
        rule = f"at most {MAX_TOKENS} tokens of A-Z a-z 0-9 _ - with dots between, {MAX_OPERATION_ID} characters in all"
        raise _bad(where, f"is not {rule}")
    if not from_hub and value.split(".", 1)[0] == "hub":
        raise _bad(where, f"is {value}, and hub.* operations belong to the hub")
    return value


def _schema(item: dict[str, Any], key: str, where: str) -> dict[str, Any] | bool | None:
    value = item.get(key)
    if value is None or isinstance(value, (dict, bool)):
        return value
    raise _bad(f"{where}.{key}", "is not a JSON Schema (an object or a boolean)")


def _errors(item: dict[str, Any], where: str) -> list[Any] | dict[str, Any] | None:
    value = item.get("errors")
    if value is None or isinstance(value, (list, dict)):
        return value
    raise _bad(f"{where}.errors", "is neither an array nor an object")


def _name(detail: dict[str, Any]) -> str | None:
    name = _text(detail, "name", "", MAX_NAME)
    # A name is shown on terminals: an escape sequence in it would be the reader's problem.
    if name is not None and not name.isprintable():
        raise _bad("name", "has characters that cannot be printed")
    return name or None


def _whole(detail: dict[str, Any], key: str) -> int | None:
    value = detail.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise _bad(key, "is not a whole number from 1")
    return value


def _gossip(detail: dict[str, Any]) -> GossipPlace | None:
    value = detail.get("gossip")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _bad("gossip", "is not an object")
    most = value.get("max", MESSAGE_BYTES)
    if type(most) is not int or not 0 < most <= MAX_MESSAGE:
        raise _bad("gossip.max", f"is not a whole number from 1 to {MAX_MESSAGE}")
    return GossipPlace(
        addrs=_strings(value, "addrs", MAX_ADDRS, MAX_PLACE, "gossip."),
        relays=_strings(value, "relays", MAX_RELAYS, MAX_PLACE, "gossip."),
        max=most,
    )


def _text(item: dict[str, Any], key: str, where: str, limit: int) -> str | None:
    value = item.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > limit:
        raise _bad(f"{where}.{key}".lstrip("."), f"is not a string of at most {limit} characters")
    return value


def _strings(detail: dict[str, Any], key: str, most: int, longest: int, where: str = "") -> tuple[str, ...]:
    values = _list(detail, key, most)
    for index, value in enumerate(values):
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            raise _bad(f"{where}{key}[{index}]", f"is not a string of 1 to {longest} characters")
    return tuple(values)


def _list(detail: dict[str, Any], key: str, most: int) -> list[Any]:
    value = detail.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(key, "is not an array")
    if len(value) > most:
        raise _bad(key, f"has {len(value)} entries, {most} is the limit")
    return value


def _bad(field: str, problem: str) -> FrameError:
    return FrameError(f"hub.register: {field} {problem}", close_code=CloseCode.BAD_REGISTRATION)
