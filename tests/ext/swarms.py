"""Endpoints on loopback that gossip, and what their swarms told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from broker import _gossip_ext as ext
from broker.protocol.named import Frame
from tests.ext.pair import Node, hub, wait_until

MESSAGE_BYTES = 4096
EPOCH = f"{7:016x}"
TOPIC = "orders.created"
ID = b"\x07" * 32

Swarms = list[ext.Swarm]


@contextmanager
def peers(count: int, message_bytes: int = MESSAGE_BYTES, **options: Any) -> Iterator[list[Node]]:
    """Endpoints that know where the others are, and admit them."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(hub(gossip_message_bytes=message_bytes, **options)) for _ in range(count)]
        acquaint(nodes)
        yield nodes


def acquaint(nodes: Sequence[Node]) -> None:
    for one in nodes:
        for other in nodes:
            if one is not other:
                one.endpoint.admit_peers([other.node_id])
                one.endpoint.learn(other.node_id, other.endpoint.addrs())


def join(nodes: Sequence[Node], topic: str = TOPIC, id_: bytes = ID, **options: Any) -> Swarms:
    """Every node in the swarm, by way of the first, and with a neighbour."""
    swarms = [
        node.endpoint.join(topic, id_, [nodes[0].node_id] if place else [], **options)
        for place, node in enumerate(nodes)
    ]
    wait_until(lambda: all(swarm.neighbours() for swarm in swarms))
    return swarms


def event(author: str, seq: int, detail: Any = "x", *, topic: str = TOPIC, epoch: str = EPOCH) -> bytes:
    message = {"type": topic, "detail": detail, "meta": {"author": author, "epoch": epoch, "seq": seq}}
    return json.dumps(message, separators=(",", ":")).encode()


def sized(author: str, seq: int, size: int) -> bytes:
    """An event of exactly ``size`` bytes, spaced in a way in which a batch can leave nothing out."""
    message = {"type": TOPIC, "detail": "", "meta": {"author": author, "epoch": EPOCH, "seq": seq}}
    message["detail"] = "x" * (size - len(json.dumps(message)))
    return json.dumps(message).encode()


def events(author: str, first: int, count: int, detail: Any = "x") -> list[bytes]:
    return [event(author, seq, detail) for seq in range(first, first + count)]


def named(frame: bytes) -> Frame:
    """What a batch says of an event that it does not hold."""
    return len(frame), ext.event_hash(frame)


def publish(node: Node, swarm: ext.Swarm, first: int, frames: Sequence[bytes]) -> None:
    """Publishes all, some at a time, and waits for room when there is none."""
    step = 100
    for start in range(0, len(frames), step):
        while not swarm.publish(EPOCH, first + start, frames[start : start + step]):
            node.wait(ext.SWARM_DRAINED, conn=swarm.id)


def hear(node: Node, swarm: ext.Swarm, last: int, author: str | None = None) -> dict[int, Frame]:
    """What came by number, as soon as 1 to ``last`` are there. Nothing comes twice."""
    got: dict[int, Frame] = {}
    while len(got) < last:
        item = node.wait(ext.BATCH, conn=swarm.id)
        assert author in (None, item[2])
        assert item[3] == EPOCH
        for seq, frame in enumerate(item[5], item[4]):
            assert seq not in got
            got[seq] = frame
    return got


def neighbour(node: Node, swarm: ext.Swarm, peer: str, up: bool, patience: float = 20.0) -> None:
    """Waits for that piece of news."""
    while True:
        item = node.wait(ext.NEIGHBOUR, conn=swarm.id, patience=patience)
        if item[2:] == (peer, up):
            return
