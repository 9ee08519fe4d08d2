"""``hub.register`` is read whole or refused with the name of the field; offers follow who is there."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import FrameError
from broker.protocol.registration import (
    MAX_SCANNED,
    GossipPlace,
    Kind,
    Offerer,
    Offers,
    Operation,
    Registration,
    operation_detail,
    parse,
    to_detail,
)

tokens = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)
ids = st.lists(tokens, min_size=1, max_size=4).map(".".join).filter(lambda id: id.split(".")[0] != "hub")
schemas = st.none() | st.booleans() | st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3)
operations = st.builds(
    Operation,
    id=ids,
    kind=st.sampled_from(["query", "mutation", "subscription"]),
    description=st.none() | st.text(max_size=20),
    input_schema=schemas,
    output_schema=schemas,
    errors=st.none() | st.lists(st.text(max_size=5), max_size=2),
)
registrations = st.builds(
    Registration,
    operations=st.lists(operations, max_size=4, unique_by=lambda operation: operation.id).map(tuple),
    name=st.none() | st.text(min_size=1, max_size=20).filter(str.isprintable),
    topics=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    protocol=st.integers(1, 9),
    capabilities=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    max_frame_bytes=st.none() | st.integers(1, 2**40),
    gossip=st.none()
    | st.builds(
        GossipPlace,
        addrs=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
        relays=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
        max=st.integers(1, 65_536),
    ),
    hubs=st.lists(st.text(min_size=1, max_size=64), max_size=3).map(tuple),
)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(registrations)
def test_what_is_written_is_read(registration: Registration) -> None:
    assert parse(orjson.loads(orjson.dumps(to_detail(registration)))) == registration


fields = [
    "operations",
    "name",
    "topics",
    "protocol",
    "capabilities",
    "maxFrameBytes",
    "id",
    "kind",
    "description",
    "inputSchema",
    "errors",
]
likely = st.recursive(
    json | st.sampled_from(["query", "a.b", "hub.x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(fields), inner, max_size=5),
    max_leaves=12,
)


@given(json | likely | st.dictionaries(st.sampled_from(fields), likely))
def test_any_json_gives_a_registration_or_one_frame_error(detail: Any) -> None:
    close_code, registration = None, Registration()
    try:
        registration = parse(detail)
    except FrameError as error:
        close_code = error.close_code
    assert close_code in (None, 23)
    assert parse(to_detail(registration)) == registration


def op(**more: Any) -> dict[str, Any]:
    return {"id": "a.b", "kind": "query", **more}


@pytest.mark.parametrize(
    ("detail", "field"),
    [
        (None, "detail is not an object"),
        ([], "detail is not an object"),
        ({"operations": {}}, "operations is not an array"),
        ({"operations": [op(id=f"o{n}") for n in range(1_001)]}, "operations has 1001 entries"),
        ({"operations": [op(), 5]}, r"operations\[1\] is not an object"),
        ({"operations": [{"kind": "query"}]}, r"operations\[0\].id is not a string"),
        ({"operations": [op(id="")]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="a..b")]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="a.*")]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="a.b\n")]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="ä")]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="x" * 256)]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id=".".join("x" * 17))]}, r"operations\[0\].id is not at most"),
        ({"operations": [op(id="hub.spokes")]}, "belong to the hub"),
        ({"operations": [op(id="hub")]}, "belong to the hub"),
        ({"operations": [op(), op()]}, "names a.b twice"),
        ({"operations": [{"id": "a"}]}, r"operations\[0\].kind"),
        ({"operations": [op(kind="stream")]}, r"operations\[0\].kind"),
        ({"operations": [op(kind=[])]}, r"operations\[0\].kind"),
        ({"operations": [op(description=5)]}, r"operations\[0\].description"),
        ({"operations": [op(description="x" * 4_097)]}, r"operations\[0\].description"),
        ({"operations": [op(inputSchema="x")]}, r"operations\[0\].inputSchema"),
        ({"operations": [op(outputSchema=[])]}, r"operations\[0\].outputSchema"),
        ({"operations": [op(errors="x")]}, r"operations\[0\].errors"),
        ({"name": 5}, "name is not a string"),
        ({"name": "x" * 129}, "name is not a string of at most 128"),
        ({"name": "\x1b[2J"}, "cannot be printed"),
        ({"maxFrameBytes": 0}, "maxFrameBytes is not a whole number from 1"),
        ({"maxFrameBytes": "1"}, "maxFrameBytes is not"),
        ({"topics": "a"}, "topics is not an array"),
        ({"topics": ["a", 5]}, r"topics\[1\]"),
        ({"topics": [""]}, r"topics\[0\]"),
        ({"protocol": 0}, "protocol"),
        ({"protocol": True}, "protocol"),
        ({"protocol": "1"}, "protocol"),
        ({"capabilities": ["x" * 65]}, r"capabilities\[0\]"),
        ({"capabilities": ["x"] * 65}, "capabilities has 65"),
        ({"gossip": []}, "gossip is not an object"),
        ({"gossip": {"max": 0}}, "gossip.max"),
        ({"gossip": {"max": True}}, "gossip.max"),
        ({"gossip": {"addrs": ["a"] * 17}}, "addrs has 17"),
        ({"gossip": {"relays": [5]}}, r"gossip.relays\[0\]"),
        ({"hubs": ["x" * 65]}, r"hubs\[0\]"),
    ],
)
def test_a_fault_names_the_field(detail: Any, field: str) -> None:
    with pytest.raises(FrameError, match=f"^hub.register: .*{field}") as caught:
        parse(detail)
    assert caught.value.close_code == 23


def test_little_is_enough() -> None:
    assert parse({}) == Registration()
    assert parse({"operations": None, "name": None, "more": 1}) == Registration()
    assert parse({"name": ""}) == Registration()
    assert parse({"operations": [op(more=1)]}).operations == (Operation("a.b"),)
    assert len(parse({"operations": [op(id=".".join("x" * 16)), op(id="hubs.x"), op(id="x.hub")]}).operations) == 3


def test_the_hub_may_name_its_own() -> None:
    hub = Registration(operations=(Operation("hub.spokes"),), name="hub")
    assert parse(to_detail(hub), from_hub=True) == hub


def test_what_is_not_told_is_left_out() -> None:
    assert to_detail(Registration()) == {"operations": [], "protocol": 1}
    assert operation_detail(Operation("a", "mutation", input_schema=False)) == {
        "id": "a",
        "kind": "mutation",
        "inputSchema": False,
    }


# Offers


def peer(name: str) -> Offerer:
    return Offerer(f"id-{name}", name)


def offers(operation: str, *peers: Offerer, kind: Kind = "query") -> Offers[Offerer]:
    all: Offers[Offerer] = Offers()
    for one in peers:
        all.replace(one, [Operation(operation, kind)])
    return all


def test_what_nobody_offers_is_not_picked() -> None:
    none: Offers[Offerer] = Offers()
    assert none.pick("a") is None
    assert none.all("a") == []
    assert "a" not in none


def test_equals_take_turns() -> None:
    a, b, c = (peer(name) for name in "abc")
    all = offers("x", a, b, c)
    assert [all.pick("x") for _ in range(7)] == [a, b, c, a, b, c, a]


def test_the_least_busy_is_picked() -> None:
    peers = [peer(str(n)) for n in range(10)]
    all = offers("x", *peers)
    for n, one in enumerate(peers):
        one.legs = dict.fromkeys(map(str, range(5 + n)))
    peers[7].legs = {"1": None}
    assert all.pick("x") is all.pick("x") is peers[7]
    peers[3].legs = {}
    assert all.pick("x") is peers[3]


def test_equally_busy_ones_take_turns_too() -> None:
    peers = [peer(str(n)) for n in range(3)]
    all = offers("x", *peers)
    for one in peers:
        one.legs = {"1": None}
    assert [all.pick("x") for _ in range(6)] == peers * 2


def test_of_very_many_every_one_has_its_turn() -> None:
    peers = [peer(str(n)) for n in range(4 * MAX_SCANNED)]
    all = offers("x", *peers)
    for n in range(10 * len(peers)):
        picked = all.pick("x")
        assert picked is not None
        picked.legs[str(n)] = None
    assert {len(one.legs) for one in peers} == {10}


def test_a_later_list_replaces_the_earlier() -> None:
    a, b = peer("a"), peer("b")
    all = offers("x", a, b)
    all.replace(a, [Operation("y", "mutation"), Operation("x", "subscription")])
    assert [(row.operation, row.spokes) for row in all.rows()] == [
        (Operation("x", "subscription"), [("id-a", "a"), ("id-b", "b")]),
        (Operation("y", "mutation"), [("id-a", "a")]),
    ]
    all.replace(a, [])
    all.replace(b, [])
    assert list(all.rows()) == []
    assert all.pick("x") is None


def test_who_can_be_in_a_swarm_says_so_and_where() -> None:
    place = {"addrs": ["127.0.0.1:1"], "max": 1_024}
    assert parse({"capabilities": ["gossip/1"], "gossip": place}).gossips
    assert not parse({"capabilities": ["gossip/1"]}).gossips
    assert not parse({"gossip": place}).gossips
