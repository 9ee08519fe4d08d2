"""What peers of a hub say in a script: mostly what makes sense, with values that do not, and sometimes any bytes.

Not here: the hub that hears it, and what must hold (hub.py).
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from broker.protocol.wire import GOSSIP
from tests.fuzz.script import Script

__all__ = ["EPOCHS", "NODES", "SEQS", "TOPICS", "Peers", "event"]

NODES: Final = tuple(letter * 64 for letter in "abcd")
"""The first administers."""
IDS: Final = ("1", "2", "3", "", "x" * 128, "x" * 129)
OPERATIONS: Final = ("get", "watch", "put", "hub.spokes", "hub.topics", "hub.operations", "hub.kick", "hub.ban")
TOPICS: Final = ("a.x", "a.y", "b", "c.d.e", "a.>", "*", ">", "a.*", "hub.x", "a..b", "__x", "x" * 256)
EPOCHS: Final = ("0" * 16, "1" * 16, "short", "")
SEQS: Final = (0, 1, 2, 3, 4, 5, 6, 20, 2**53 - 1, 2**53, -1, True)
KINDS: Final = ("query", "subscription", "mutation", "x")
NUMBERS: Final = (0, 1, 2, 60, 0.5, -1, 2**63, 1e308, True)
ANY: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    1.5,
    2**64 - 1,
    "",
    "1",
    "a.x",
    [],
    {},
    [[]],
    {"a": None},
    ["a.x"],
    "\u2028\U0001f980",
)
KEYS: Final[dict[str, tuple[Any, ...]]] = {
    "requestId": IDS,
    "operationId": OPERATIONS,
    "input": (*ANY, *({"node_id": node} for node in NODES), {"ttl": 5}),
    "output": (*ANY, "x" * 3_548),
    "parentRequestId": IDS,
    "timeoutMs": NUMBERS,
    "deadline": (*NUMBERS, 1.7e12, 1_700_000_001_000_000),
    "all": (True, False),
    "stream": (True, False),
    "credit": NUMBERS,
    "n": NUMBERS,
    "code": ("X", "x" * 65, "TIMEOUT"),
    "message": ("m", "x" * 1_500),
    "reason": ("r", "x" * 1_025),
    "name": ("ann", "x" * 129, "\x1b"),
    "policy": ("block", "drop_oldest", "disconnect", "x"),
    "patience": (0, 0.5, 2, 60, 61, -1),
    "tag": ("t", "x" * 65),
    "topic": TOPICS,
    "author": NODES,
    "epoch": EPOCHS,
    "seq": SEQS,
    "acked": SEQS,
    "from": SEQS,
    "to": SEQS,
    "invite": ("x", "0" * 64),
    "generation": (0, 1, 2, 3, 2**53, 2**53 + 1, -1, True),
    "joined": (True, False),
    "want": (True, False),
    "data": ("", "AAAA", "x", "A" * 400),
    "first": SEQS,
    "gossiped": SEQS,
}
TYPES: Final[dict[str, tuple[str, ...]]] = {
    "hub.register": ("name", "invite"),
    "call.requested": (
        *("requestId", "operationId", "input", "parentRequestId"),
        *("timeoutMs", "deadline", "all", "stream", "credit"),
    ),
    "call.responded": ("requestId", "output"),
    "call.completed": ("requestId",),
    "call.aborted": ("requestId", "reason"),
    "call.error": ("requestId", "code", "message"),
    "call.credit": ("requestId", "n"),
    "__subscribe": ("policy", "patience", "tag"),
    "__unsubscribe": (),
    "topic.pause": (),
    "topic.resume": (),
    "topic.repair": ("topic", "author", "epoch", "from", "to"),
    "topic.head": ("topic", "author", "epoch", "seq", "acked", "first", "gossiped"),
    "topic.swarm": ("topic", "generation", "joined", "want"),
    "topic.batch": ("topic", "data"),
    "topic.lost": ("topic", "author", "epoch", "from", "to"),
    "hub.error": ("code", "message"),
    "topic.x": (),
}
NEEDED: Final = {"requestId", "operationId", "topic", "epoch", "seq", "from", "to", "generation", "joined", "data"}
PLACES: Final = (
    {"addrs": ["127.0.0.1:1"], "relays": [], "max": 4_096},
    {"addrs": [], "max": 512},
    {"addrs": ["no address"]},
)


class Peers:
    """Writes what peers say, and remembers what of the hub's they may answer."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.legs: dict[int, list[str]] = {}

    def message(self, conn: int, node_id: str) -> bytes:
        """Mostly one that makes sense, sometimes any bytes."""
        script, kind = self.script, self.script.byte()
        if kind < 8:
            return script.take(64)
        if kind < 96:
            return self._event(node_id)
        type = script.one(tuple(TYPES))
        detail = self._fields(TYPES[type])
        if type.startswith("call.") and self.legs.get(conn) and script.flag():
            detail["requestId"] = script.one(self.legs[conn][-8:])
        if type == "call.requested" and script.flag():
            detail |= {"input": {"by": node_id}, "identity": {"id": "forged"}}
        if type in ("__subscribe", "__unsubscribe", "topic.pause", "topic.resume"):
            detail["topics"] = script.many(3, lambda: script.one(TOPICS)) or script.one(ANY)
        if type == "__subscribe":
            detail["since"] = self._since()
        if type == "hub.register":
            detail["operations"] = [
                {"id": id, "kind": "subscription" if id == "watch" else script.one(KINDS)}
                for id in script.some(OPERATIONS[:4])
            ]
            if script.flag():
                detail |= {"capabilities": [GOSSIP], "gossip": PLACES[max(0, script.byte() - 253)]}
        return orjson.dumps({"type": type, "detail": detail if kind < 250 else script.one(ANY)})

    def _event(self, node_id: str) -> bytes:
        script, topic = self.script, self.script.one(TOPICS)
        detail = {"by": node_id} if script.flag() else script.one(ANY)
        if script.flag():
            author = node_id if script.byte() < 240 else script.one(NODES)
            return event(topic, detail, author, script.one(EPOCHS), script.one(SEQS))
        return orjson.dumps({"type": topic, "detail": detail})

    def _fields(self, names: tuple[str, ...]) -> dict[str, Any]:
        script, detail = self.script, dict[str, Any]()
        for name in names:
            choice = script.byte()
            if choice < 8:
                detail[name] = script.one(ANY)
            elif choice < 96 or name in NEEDED:
                detail[name] = KEYS[name][choice % len(KEYS[name])]
        return detail

    def _since(self) -> Any:
        script = self.script
        form: Any = script.one((None, "start", 0, 3, "x", {}))
        if form != {}:
            return form
        return {topic: {node: [script.one(EPOCHS), script.one(SEQS)] for node in script.some(NODES)}
                for topic in script.some(TOPICS[:4])}  # fmt: skip


def event(topic: str, detail: Any, author: str, epoch: str, seq: int) -> bytes:
    """One with its place in a sequence."""
    return orjson.dumps({"type": topic, "detail": detail, "meta": {"author": author, "epoch": epoch, "seq": seq}})
