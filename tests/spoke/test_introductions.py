"""What a hub says of introductions, and the rule by which one of two connections stays."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import FrameError
from broker.spoke.introductions import AT_ONCE, introduction, newer_stays

ANN, BOB = "a" * 64, "b" * 64
moments = st.floats(0, 100, allow_nan=False)


@given(moments, moments, st.booleans(), st.booleans())
def test_both_sides_keep_the_same_one_in_whatever_order_they_see_them(
    one_at: float, other_at: float, ann_sees_first: bool, bob_sees_first: bool
) -> None:
    """Ann has dialled one of them, Bob the other, at once; who sees which first is chance."""
    if abs(one_at - other_at) > AT_ONCE:
        one_at = other_at

    def kept(me: str, other: str, first_is_anns: bool) -> str:
        by_ann, by_bob = (me == ANN, one_at), (me == BOB, one_at)
        older, newer = (by_ann, by_bob) if first_is_anns else (by_bob, by_ann)
        stays_newer = newer_stays(me, other, older=older, newer=newer)
        return ("bob" if first_is_anns else "ann") if stays_newer else ("ann" if first_is_anns else "bob")

    assert kept(ANN, BOB, ann_sees_first) == kept(BOB, ANN, bob_sees_first) == "ann", "the smaller NodeId's"


def test_one_that_comes_much_later_is_after_something_broke() -> None:
    for dialled in (True, False):
        assert newer_stays(BOB, ANN, older=(not dialled, 0.0), newer=(dialled, AT_ONCE + 0.1))
        assert newer_stays(BOB, ANN, older=(dialled, 0.0), newer=(dialled, 0.1)), "the same side has dialled again"


def test_an_introduction_and_its_end() -> None:
    said = introduction({"id": ANN, "name": "ann", "addrs": ["1.2.3.4:5"], "grant": {}, "now": 7, "ref": "r"})
    assert (said.node_id, said.name, said.addrs, said.relays, said.now, said.ref) == (
        *(ANN, "ann", ("1.2.3.4:5",), (), 7, "r"),
    )
    over = introduction({"id": ANN, "grant": None, "reason": "x" * 1_000})
    assert (over.grant, len(over.reason)) == (None, 300)


@pytest.mark.parametrize(
    "detail",
    [
        *(None, 7, {}, {"id": ANN}, {"id": ANN, "grant": {}}, {"id": 7, "grant": None}),
        *({"id": "short", "grant": {}, "now": 1}, {"id": ANN, "grant": {}, "now": 1, "ref": 7}),
        *({"id": ANN, "grant": {}, "now": 1, "addrs": [7]}, {"id": ANN, "grant": {}, "now": 1, "relays": ["x"] * 9}),
        {"id": ANN, "grant": {}, "now": 1, "addrs": ["x" * 400]},
    ],
)
def test_anything_else_ends_the_connection(detail: Any) -> None:
    with pytest.raises(FrameError):
        introduction(detail)
