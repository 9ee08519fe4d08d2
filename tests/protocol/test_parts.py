"""Messages in parts: each fits, nothing is lost, and what was put together is what was cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.codec import decode, encode
from broker.protocol.parts import MORE, Gathered, parts

SHORT = st.text(max_size=20)
DETAILS = st.fixed_dictionaries(
    {
        "base": st.integers(1, 9),
        "list": st.lists(SHORT, max_size=60),
        "other": st.lists(SHORT, max_size=10),
        "map": st.dictionaries(SHORT, st.integers(0, 9), max_size=60),
    }
)
CUT = ("list", "other", "map")


@given(DETAILS, st.integers(256, 2_048))
def test_each_part_fits_and_together_they_are_the_whole(detail: dict[str, Any], most: int) -> None:
    frames = parts("x", detail, most, cut=CUT, first=MORE)
    assert all(len(frame) <= most for frame in frames)
    gathered = Gathered(1_000)
    *some, last = [gathered.add(decode(frame).detail) for frame in frames]
    assert not any(some)
    assert last == detail


@given(DETAILS)
def test_what_fits_stays_as_it_is(detail: dict[str, Any]) -> None:
    assert parts("x", detail, 1 << 20, cut=CUT, first=MORE) == [encode("x", detail)]


@given(DETAILS)
def test_what_no_cut_makes_small_enough_is_one_entry_a_part(detail: dict[str, Any]) -> None:
    frames = parts("x", detail, 1, cut=CUT)
    assert all(sum(len(decode(frame).detail[key]) for key in CUT) <= 1 for frame in frames)


def test_only_the_first_part_begins_anew() -> None:
    frames = parts("x", {"list": ["a" * 20] * 50, "full": True}, 300, cut=("list",), rest={"full": False})
    assert [decode(frame).detail["full"] for frame in frames] == [True, *[False] * (len(frames) - 1)]
    assert len(frames) > 2


def test_what_is_held_is_bounded() -> None:
    gathered = Gathered(10)
    assert gathered.add({"list": [1] * 6, **MORE}) is None
    with pytest.raises(ValueError, match="more than 10"):
        gathered.add({"list": [1] * 6, **MORE})
