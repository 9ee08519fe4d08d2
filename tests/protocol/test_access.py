"""Who may connect, and what the connected may do: the policy as a value."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConfigError
from broker.protocol import access
from broker.protocol.access import ADMIN, Action, Grant, Policy, Scope, check_operation_pattern, contains
from broker.protocol.routing import matches

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
DEPTH = 4

TOPICS = [".".join(tokens) for n in range(1, DEPTH + 1) for tokens in itertools.product("abz", repeat=n)]
"""All of a small world. Patterns name only a and b: z stands for the tokens that nobody has listed."""

patterns = st.builds(
    lambda tokens, rest: ".".join([*tokens, ">"] if rest else tokens),
    st.lists(st.sampled_from("ab*"), min_size=1, max_size=DEPTH - 1),
    st.booleans(),
) | st.just(">")


@given(st.lists(patterns, max_size=6), patterns)
def test_containment_is_what_counting_all_topics_says(allowed: list[str], pattern: str) -> None:
    covered = all(any(matches(one, topic) for one in allowed) for topic in TOPICS if matches(pattern, topic))
    assert contains(allowed, pattern, DEPTH) == covered


@given(st.lists(patterns, max_size=6), patterns)
def test_containment_at_full_depth_lets_nothing_through(allowed: list[str], pattern: str) -> None:
    if contains(allowed, pattern):
        assert all(any(matches(one, topic) for one in allowed) for topic in TOPICS if matches(pattern, topic))


@pytest.mark.parametrize(
    ("allowed", "pattern", "covered"),
    [
        (["a.>"], "a.b.c", True),
        (["a.>"], "a.>", True),
        (["a.>"], "a", False),
        (["a.>"], ">", False),
        (["a.>"], "*.b", False),
        (["*"], ">", False),
        (["a", "a.>"], ">", False),
        (["a.a", "a.a.>"], "a.>", False),
        (["*", "*.>"], ">", True),
        (["*.*"], "a.*", True),
        (["a.*"], "*.*", False),
        (["a.*", "a.*.>"], "a.>", True),
        (["a.b", "a.c"], "a.*", False),
        ([], "a", False),
        ([".".join(["*"] * n) for n in range(1, 17)], ">", True),
        ([".".join(["*"] * n) for n in range(1, 16)], ">", False),
        ([], ".".join(["a"] * 15) + ".>", False),
        ([], ".".join(["a"] * 16) + ".>", False),
        (["b"], ".".join(["a"] * 100) + ".>", False),
    ],
)
def test_containment_by_example(allowed: list[str], pattern: str, covered: bool) -> None:
    assert contains(allowed, pattern) is covered


def test_deny_wins_then_admins_then_allow_then_open() -> None:
    policy = Policy(allow=frozenset({A, B}), admins=frozenset({B, C}), deny=frozenset({A}))
    assert [bool(policy.admitted(one)) for one in (A, B, C, D)] == [False, True, True, False]
    assert Policy(open=True).admitted(D)
    assert not Policy(open=True, deny=frozenset({D})).admitted(D)
    assert not Policy().admitted(D)
    assert B not in policy.admitted(A).reason + policy.admitted(D).reason


def test_a_denied_admin_administers_nothing() -> None:
    assert Policy(admins=frozenset({A})).administers(A)
    assert not Policy(admins=frozenset({A}), deny=frozenset({A})).administers(A)
    assert Policy(admins=frozenset({A}), deny=frozenset({A})).scopes_of(A) == ()


def test_what_is_no_node_id_is_named() -> None:
    with pytest.raises(ConfigError, match=r"allow: 'abc' is not a NodeId"):
        Policy(allow=frozenset({"abc"}))


SCOPES = {
    "reader": Scope(call=("hub.*",), subscribe=("orders.>",)),
    "writer": Scope(publish=("orders.*",), offer=("stock.>",)),
}
POLICY = Policy(
    admins=frozenset({C}), scopes=SCOPES, nodes={A: ("writer",), B: ("reader", "writer")}, default=("reader",)
)


def of(node_id: str) -> Grant:
    return POLICY.grant(POLICY.scopes_of(node_id))


def test_scopes_are_those_of_the_node_or_the_default_ones() -> None:
    assert POLICY.scopes_of(A) == ("writer",)
    assert POLICY.scopes_of(D) == ("reader",)
    assert POLICY.scopes_of(C) == (ADMIN, "reader")


def test_a_scope_allows_what_it_names_and_nothing_else() -> None:
    writer, reader, both = of(A), of(D), of(B)
    assert writer.may("publish", "orders.created")
    assert not writer.may("publish", "orders.created.now")
    assert not writer.may("subscribe", "orders.created")
    assert not writer.may("call", "hub.topics")
    assert writer.may("offer", "stock.get")
    assert not writer.may("offer", "stock")
    assert reader.may("call", "hub.topics")
    assert reader.may("subscribe", "orders.*")
    assert not reader.may("subscribe", ">")
    assert not reader.may("publish", "orders.created")
    assert both.may("publish", "orders.created")
    assert both.may("subscribe", "orders.>")


def test_admins_may_everything_and_so_may_all_where_there_is_no_scope() -> None:
    for grant in (of(C), Policy().grant(())):
        assert all(grant.may(action, "anything.at.all") for action in get_args(Action))


def test_a_scope_that_is_not_defined_and_no_scope_at_all_allow_nothing() -> None:
    for scopes in ((), ("gone",)):
        grant = POLICY.grant(scopes)
        assert not grant.may("call", "hub.topics")
        assert "'hub.topics'" in grant.denial("call", "hub.topics")


def test_decisions_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(allowed: tuple[str, ...], name: str) -> bool:
        asked.append(name)
        return contains(allowed, name)

    monkeypatch.setattr(access, "contains", counted)
    monkeypatch.setattr(access, "MAX_REMEMBERED", 10)
    grant = of(A)
    for _ in range(2):
        assert grant.may("publish", "orders.x")
        assert not grant.may("subscribe", "orders.x")
    assert asked == ["orders.x", "orders.x"]
    for n in range(100):
        assert grant.may("publish", f"orders.{n}")
        assert len(grant._known["publish"]) <= 10
    assert not grant.may("publish", "x" * 256)
    assert "x" * 256 not in grant._known["publish"]


@pytest.mark.parametrize("pattern", ["a", "*", ">", "hub.*", "a.*.c.>", "call.x"])
def test_operation_patterns_that_are_right(pattern: str) -> None:
    check_operation_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", ".a", "a.", "a b", "a*", ">>", "a" * 256])
def test_operation_patterns_that_are_wrong(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        check_operation_pattern(pattern)
