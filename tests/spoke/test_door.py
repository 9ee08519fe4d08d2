"""Who is let in at a spoke: the table of reasons, and that each connection beside the hub's has one host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from broker.protocol.wire import CloseCode
from broker.spoke import connections as connections_module
from broker.spoke.connections import Connections
from broker.spoke.door import Door, Hubs, Reason
from tests.rig import until

HUB, MEMBER = "a" * 64, "b" * 64


class Endpoint:
    """As much of one as connections use."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, int]] = []
        self.dialled: list[int] = []

    def close_connection(self, conn: int, code: int, reason: str) -> None:
        self.ended.append((conn, code))

    def dial(self, token: int, *_args: Any, **_options: Any) -> None:
        self.dialled.append(token)


class Guest:
    """A host that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def opened(self, conn: int, node_id: str, token: int) -> None:
        self.told.append(("opened", conn, node_id, token))

    def frames(self, conn: int, frames: list[bytes]) -> None:
        self.told.append(("frames", conn, frames))

    def drained(self, conn: int) -> None:
        self.told.append(("drained", conn))

    def closed(self, conn: int, code: int | None, reason: str, remote: bool) -> None:
        self.told.append(("closed", conn, code))

    def dial_failed(self, token: int, kind: str, code: int | None, message: str) -> None:
        self.told.append(("failed", token, kind))


def hello(**detail: Any) -> bytes:
    return orjson.dumps({"type": "hub.register", "detail": detail})


def at_a_door(*reasons: Reason) -> tuple[Endpoint, Connections]:
    endpoint = Endpoint()
    return endpoint, Connections(lambda: endpoint, Door(list(reasons)))  # type: ignore[arg-type, return-value]


async def test_the_first_reason_that_has_an_answer_decides_and_its_host_hears_all_that_follows() -> None:
    hub, members = Guest(), Guest()

    def member(node_id: str, said: Mapping[str, Any] | None) -> Any:
        return others.taker(members) if said is not None and "asks" in said and node_id == MEMBER else None

    endpoint, others = at_a_door(member)
    hubs = Hubs(b"1" * 32, (HUB.upper(),), others.taker(hub))
    others.door.reasons.insert(0, hubs)
    others.came(1, HUB)
    assert hub.told == [("opened", 1, HUB, 0)], "a NodeId that was given needs no word"
    others.came(2, MEMBER)
    assert members.told == [], "a stranger so far"
    others.frames(2, [hello(asks=True), b"more"])
    others.drained(2)
    others.closed(2, 0, "", True)
    others.frames(2, [b"late"])
    assert members.told == [
        ("opened", 2, MEMBER, 0),
        ("frames", 2, [hello(asks=True), b"more"]),
        ("drained", 2),
        ("closed", 2, 0),
    ]
    others.came(3, MEMBER)
    others.frames(3, [hello(asks=True, invite=hubs.secret)])
    assert hub.told[1][:2] == ("opened", 3)
    assert endpoint.ended == []


@pytest.mark.parametrize("said", [b"nonsense", b'{"type":"topic.repair"}', hello(invite="guess"), hello(invite=7)])
async def test_whoever_has_no_reason_is_told_nothing_and_closed(said: bytes) -> None:
    hub = Guest()
    endpoint, others = at_a_door()
    others.door.reasons.append(Hubs(b"1" * 32, (), others.taker(hub)))
    others.came(1, MEMBER)
    others.frames(1, [said, b'{"type":"a"}'])
    assert (endpoint.ended, hub.told) == ([(1, CloseCode.NOT_ADMITTED)], [])


async def test_who_says_nothing_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "FIRST_WORD", 0.01)
    endpoint, others = at_a_door()
    others.came(1, MEMBER)
    await until(lambda: endpoint.ended == [(1, CloseCode.NOT_ADMITTED)])
    others.came(2, MEMBER)
    others.closed(2, None, "", True)
    await asyncio.sleep(0.02)
    assert len(endpoint.ended) == 1, "it had gone by itself"


async def test_what_is_dialled_is_its_hosts_who_is_told_how_it_ends() -> None:
    one, other = Guest(), Guest()
    endpoint, others = at_a_door()
    first = others.dial(one, MEMBER, [], timeout=1)
    second = others.dial(other, MEMBER, [], timeout=1)
    assert endpoint.dialled == [first, second]
    assert 0 not in (first, second)
    assert others.dialled(7, MEMBER, first)
    others.dial_failed(second, "unreachable", None, "")
    assert not others.dialled(8, MEMBER, second), "over"
    others.closed(7, None, "", False)
    assert one.told == [("opened", 7, MEMBER, first), ("closed", 7, None)]
    assert other.told == [("failed", second, "unreachable")]


def test_a_hub_that_is_no_node_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not a NodeId"):
        Hubs(b"1" * 32, ("me",), lambda _conn, _node_id: None)
