"""Grants: what a hub signed, and everything that is not it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import _gossip_ext as ext
from broker.protocol.grants import DOMAIN, MAX_LIFE, BadGrant, Claims, check, make, read

KEY, OTHER_KEY = b"h" * 32, b"o" * 32
HUB, OTHER_HUB = ext.node_id(KEY), ext.node_id(OTHER_KEY)
ANN, BOB, EVE = (ext.node_id(letter * 32) for letter in (b"a", b"b", b"e"))
NOW = 1_700_000_000_000

names = st.text("abc.", min_size=1, max_size=8)
claims = st.builds(
    Claims,
    caller=st.just(ANN),
    callee=st.just(BOB),
    operations=st.frozensets(names, max_size=5),
    scopes=st.lists(names, max_size=3).map(tuple),
    issued=st.just(NOW),
    until=st.integers(NOW + 1, NOW + MAX_LIFE),
)
SOME = Claims(caller=ANN, callee=BOB, operations=frozenset({"get"}), issued=NOW, until=NOW + 1_000)


def signed(said: Claims, key: bytes = KEY) -> dict[str, Any]:
    return make(ext.node_id(key), said, lambda message: ext.sign(key, message))


def refused(grant: Any, hubs: tuple[str, ...] = (HUB,)) -> str:
    with pytest.raises(BadGrant) as error:
        read(grant, hubs, ext.verify)
    return error.value.reason


def unfit(said: Claims, **asked: Any) -> str:
    with pytest.raises(BadGrant) as error:
        check(said, **{"caller": ANN, "callee": BOB, "now": NOW, **asked})
    return error.value.reason


@given(claims)
def test_what_the_hub_signed_is_read_as_it_was(said: Claims) -> None:
    grant = orjson.loads(orjson.dumps(signed(said)))
    assert read(grant, (OTHER_HUB, HUB), ext.verify) == said
    check(said, caller=ANN, callee=BOB, now=said.until - 1)


@given(claims, st.data())
def test_one_changed_character_is_forged(said: Claims, data: st.DataObject) -> None:
    grant = signed(said)
    key = data.draw(st.sampled_from(["claims", "signature"]))
    place = data.draw(st.integers(0, len(grant[key]) - 1))
    letter = data.draw(st.sampled_from("0123456789abcdef").filter(lambda one: one != grant[key][place]))
    grant[key] = grant[key][:place] + letter + grant[key][place + 1 :]
    assert refused(grant) == "forged"


def test_a_hub_of_another_realm_is_foreign_and_its_name_on_our_hubs_word_is_forged() -> None:
    assert refused(signed(SOME, OTHER_KEY)) == "foreign"
    assert refused({**signed(SOME, OTHER_KEY), "hub": HUB}) == "forged"
    assert refused(signed(SOME), ()) == "foreign"


def test_what_the_hub_signed_for_something_else_is_no_grant() -> None:
    text = signed(SOME)["claims"]
    for domain in (b"", b"iroh-broker batch v1\0", DOMAIN[:-1]):
        signature = ext.sign(KEY, domain + text.encode()).hex()
        assert refused({"hub": HUB, "claims": text, "signature": signature}) == "forged"


def test_who_shows_it_to_whom_and_when() -> None:
    assert unfit(SOME, caller=EVE) == "other_caller"
    assert unfit(SOME, callee=EVE) == "other_callee"
    assert unfit(SOME, now=SOME.until) == "expired"
    assert unfit(replace(SOME, until=NOW + MAX_LIFE + 1)) == "too_long"
    check(SOME, caller=ANN, callee=BOB, now=SOME.until - 1)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda more: st.lists(more) | st.dictionaries(st.text(), more))
)
def test_anything_else_is_malformed(value: Any) -> None:
    assert refused(value) == "malformed"


@given(
    st.dictionaries(
        st.sampled_from(["caller", "callee", "operations", "scopes", "issued", "until"]),
        st.none()
        | st.booleans()
        | st.text(max_size=4)
        | st.lists(st.integers(0, 9), min_size=1, max_size=2)
        | st.floats(),
        min_size=1,
    )
)
def test_claims_of_another_shape_are_malformed_also_when_they_are_signed(changes: dict[str, Any]) -> None:
    said = {**orjson.loads(signed(SOME)["claims"]), **changes}
    text = orjson.dumps(said)
    grant = {"hub": HUB, "claims": text.decode(), "signature": ext.sign(KEY, DOMAIN + text).hex()}
    assert refused(grant) == "malformed"


@pytest.mark.parametrize("text", ["", "[", "[]", "7", '"x"', "\ud800"])
def test_claims_that_are_no_object_are_malformed(text: str) -> None:
    signature = ext.sign(KEY, DOMAIN + text.encode(errors="surrogatepass")).hex()
    assert refused({"hub": HUB, "claims": text, "signature": signature}) == "malformed"
