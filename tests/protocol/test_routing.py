"""Names, patterns and the tables of who subscribed to what."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import TopicError
from broker.protocol import routing
from broker.protocol.routing import (
    Policy,
    References,
    SubscribeOptions,
    Subscriptions,
    check_pattern,
    check_topic,
    is_reserved,
    matches,
)

OPTIONS = SubscribeOptions()
DEEP = ".".join("abcdefghijklmnop")


def code(check: object, name: object) -> str:
    with pytest.raises(TopicError) as caught:
        check(name)  # type: ignore[operator]
    return caught.value.code


@pytest.mark.parametrize(
    "name", ["a", "orders.created", "A-b_9.0", DEEP, "x" * 255, "call", "hub", "topical.x", "a.__b"]
)
def test_topics(name: str) -> None:
    check_topic(name)
    check_pattern(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "a b", "ä", "a\n", "a/b", "*", "a.*", ">", "a.>", DEEP + ".q", "x" * 256, None, 7],
)
def test_no_topics(name: object) -> None:
    assert code(check_topic, name) == "BAD_TOPIC"


@pytest.mark.parametrize("name", ["call.requested", "hub.x", "topic.ack", "__subscribe", "__x.y"])
def test_reserved_names(name: str) -> None:
    assert code(check_topic, name) == code(check_pattern, name) == "RESERVED_TOPIC"
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["call.>", "hub.*", "topic.*.x"])
def test_reserved_patterns(name: str) -> None:
    assert code(check_pattern, name) == "RESERVED_TOPIC"


@pytest.mark.parametrize("name", ["*", ">", "a.*", "*.b", "a.>", "*.*.>", "a.*.c"])
def test_patterns(name: str) -> None:
    check_pattern(name)


@pytest.mark.parametrize(
    "name", ["", "a.>.b", ">.a", "a*", "a.b>", "**", "a..>", DEEP + ".>", "x" * 256, None, ["a"], "a.\u2028"]
)
def test_no_patterns(name: object) -> None:
    assert code(check_pattern, name) == "BAD_PATTERN"


@pytest.mark.parametrize(
    ("pattern", "topic", "answer"),
    [
        ("a", "a", True), ("a", "b", False), ("a", "a.b", False), ("a.b", "a", False),
        ("*", "a", True), ("*", "a.b", False), ("a.*", "a.b", True), ("a.*", "a", False), ("*.b", "a.b", True),
        (">", "a", True), (">", "a.b.c", True), ("a.>", "a", False), ("a.>", "a.b", True), ("a.>", "a.b.c", True),
        ("a.>", "b.c", False), ("*.>", "a", False), ("*.>", "a.b", True), ("*.b.>", "a.b", False),
    ],
)  # fmt: skip
def test_matching(pattern: str, topic: str, answer: bool) -> None:
    assert matches(pattern, topic) is answer
    table = Subscriptions()
    table.add(1, pattern, OPTIONS)
    assert (1 in table.match(topic)) is answer


tokens = st.sampled_from("abc")
topics = st.lists(tokens, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda head, rest: ".".join([*head, *rest]),
    st.lists(st.sampled_from("abc*"), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), patterns), max_size=40), topics)
def test_the_trie_finds_what_matches(steps: list[tuple[bool, int, str]], topic: str) -> None:
    table = Subscriptions()
    model: set[tuple[int, str]] = set()
    for add, peer, pattern in steps:
        if add:
            assert table.add(peer, pattern, OPTIONS) is ((peer, pattern) not in model)
            model.add((peer, pattern))
        else:
            assert table.remove(peer, pattern) is ((peer, pattern) in model)
            model.discard((peer, pattern))
        assert set(table.match(topic)) == {peer for peer, pattern in model if matches(pattern, topic)}
    assert len(table) == len(model)
    assert table.rows() == sorted((p, sum(q == p for _, q in model)) for p in {p for _, p in model})
    for peer in range(1, 5):
        assert sorted(table.drop(peer)) == sorted(pattern for one, pattern in model if one == peer)
    assert table.match(topic) == {}
    assert table._root.empty()


def test_of_several_patterns_the_strictest_options_hold() -> None:
    policies = [SubscribeOptions(policy=policy) for policy in get_args(Policy)]
    for (i, one), (j, two) in product(enumerate(policies), repeat=2):
        table = Subscriptions()
        table.add(1, "a.*", one)
        table.add(1, "a.>", two)
        table.add(2, "a.b", OPTIONS)
        assert table.match("a.b") == {1: policies[min(i, j)], 2: OPTIONS}
    patient = SubscribeOptions(patience=9.0)
    assert OPTIONS.merged(patient) == patient.merged(OPTIONS) == patient


def test_subscribing_again_replaces_the_options() -> None:
    table = Subscriptions()
    assert table.add(1, "a", OPTIONS)
    assert table.match("a") == {1: OPTIONS}
    drop = SubscribeOptions(policy="drop_oldest")
    assert not table.add(1, "a", drop)
    assert table.match("a") == {1: drop}
    assert table.rows() == [("a", 1)]


def test_covering_counts_patterns() -> None:
    table = Subscriptions()
    for pattern in ("a", "*", ">", "b"):
        table.add(1, pattern, OPTIONS)
    assert (table.covering(1, "a"), table.covering(2, "a")) == (3, 0)


def test_patterns_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_PATTERNS_PER_PEER", 2)
    table = Subscriptions()
    table.add(1, "a", OPTIONS)
    table.add(1, "b", OPTIONS)
    table.add(1, "a", OPTIONS)
    with pytest.raises(TopicError) as caught:
        table.add(1, "c", OPTIONS)
    assert caught.value.code == "LIMIT"
    assert table.patterns(1) == ["a", "b"]
    table.add(2, "c", OPTIONS)


def test_what_is_remembered_of_matches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MATCH_CACHE", 3)
    table = Subscriptions()
    table.add(1, ">", OPTIONS)
    for number in range(20):
        assert table.match(f"t{number}") == {1: OPTIONS}
        assert len(table._cache) <= 3


@pytest.mark.parametrize(
    "options", [{"policy": "wait"}, {"patience": -1.0}, {"patience": 61.0}, {"patience": float("nan")}]
)
def test_options_out_of_bounds(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"polic|patience"):
        SubscribeOptions(**options)  # type: ignore[arg-type]


def test_references_subscribe_with_the_first_and_leave_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    references = References()
    assert [references.add("a") for _ in range(3)] == [True, False, False]
    assert [references.remove("a") for _ in range(4)] == [False, False, True, False]
    references.add("b.>")
    assert references.patterns() == ["b.>"]
    monkeypatch.setattr(routing, "MAX_REFERENCES", 1)
    assert not references.add("b.>")
    with pytest.raises(TopicError):
        references.add("c")
    with pytest.raises(TopicError):
        references.add("c..d")
