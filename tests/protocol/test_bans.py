"""Bans that hubs agree on: a merge is one in whatever order, by whatever way and however often it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.bans import MOST, banned, decide, merge, numbered, trimmed

IDS = st.sampled_from("abcdef")
BANS = st.dictionaries(IDS, st.integers(1, 9))
DECISIONS = st.lists(st.tuples(st.integers(0, 2), IDS, st.booleans()), max_size=40)
MANY = 1_000


@given(BANS, BANS, BANS)
def test_a_merge_knows_no_order_and_no_number_of_times(a: dict[str, int], b: dict[str, int], c: dict[str, int]) -> None:
    assert merge(a, b, MANY) == merge(b, a, MANY)
    assert merge(merge(a, b, MANY), c, MANY) == merge(a, merge(b, c, MANY), MANY)
    assert merge(a, a, MANY) == a


@given(BANS, IDS, st.booleans())
def test_a_decision_is_what_it_says_and_is_above_what_it_knew(bans: dict[str, int], one: str, ban: bool) -> None:
    after = decide(bans, one, ban)
    assert (one in banned(after)) is ban
    assert merge(bans, after, MANY) == after
    assert decide(after, one, ban) == after


@given(DECISIONS)
def test_hubs_that_tell_each_other_each_decision_have_the_last_one(
    decisions: list[tuple[int, str, bool]],
) -> None:
    hubs: list[dict[str, int]] = [{}, {}, {}]
    last: dict[str, bool] = {}
    for hub, one, ban in decisions:
        hubs[hub] = decide(hubs[hub], one, ban)
        last[one] = ban
        hubs = [merge(known, hubs[hub], MANY) for known in hubs]
    assert all(banned(known) == {one for one, ban in last.items() if ban} for known in hubs)


def test_what_was_taken_back_is_not_banned_again_by_who_did_not_hear() -> None:
    heard_both, heard_one = decide(decide({}, "a", True), "a", False), decide({}, "a", True)
    assert not banned(merge(heard_both, heard_one, MANY))
    assert not banned(merge(heard_one, heard_both, MANY))


@given(BANS)
def test_a_hub_that_knows_no_numbers_bans(bans: dict[str, int]) -> None:
    told = numbered(bans, ["a"], None)
    assert "a" in banned(merge(bans, told, MANY))
    assert merge(merge(bans, told, MANY), told, MANY) == merge(bans, told, MANY)
    assert numbered(bans, ["b"], {"a": 2}) == {"a": 2}


@pytest.mark.parametrize("known", [[], {"a": 0}, {"a": "1"}, {"a": True}, {"a": MOST}])
def test_what_are_no_numbers_is_refused(known: object) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        numbered({}, [], known)


def test_it_is_bounded() -> None:
    with pytest.raises(ValueError, match="more than 2"):
        merge({"a": 1, "b": 1}, {"c": 1}, 2)
    assert trimmed({"a": 2, "b": 1, "c": 4, "d": 2}, 2) == {"b": 1, "c": 4, "d": 2}
