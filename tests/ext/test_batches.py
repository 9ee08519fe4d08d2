"""Signed batches that come another way than by gossip, and swarm ids: what Python gets, and what it never gets.

The layout is written out here once more, so that a change of the extension's cannot go unseen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import _gossip_ext as ext
from broker.protocol.named import Frame
from broker.protocol.publication import Publication, PublicationLimits
from tests.ext.pair import node, wait_until
from tests.ext.swarms import named

TOPIC = "plant.line-3.temperature"
EPOCH = "0123456789abcdef"
AUTHOR, HUB, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
MAX_SEQ = (1 << 53) - 1

details = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Event(NamedTuple):
    """A message in one of its three forms."""

    message: Frame
    item: bytes


def u(size: int, number: int) -> bytes:
    return number.to_bytes(size, "big")


def raw(message: bytes) -> Event:
    return Event(message, u(1, 0) + u(4, len(message)) + message)


def templated(message: bytes, seq: int, topic: str = TOPIC) -> Event:
    before = b'{"type":"%s","detail":' % topic.encode()
    between = b',"meta":{"author":"%s","epoch":"%s","seq":%d' % (ext.node_id(AUTHOR).encode(), EPOCH.encode(), seq)
    rest, tail = message.rsplit(between, 1)
    assert rest.startswith(before)
    detail = rest.removeprefix(before)
    return Event(message, u(1, 1) + u(4, len(detail)) + detail + u(2, len(tail)) + tail)


def reference(size: int) -> Event:
    return Event((size, bytes(32)), u(1, 2) + u(4, size) + bytes(32))


def publication(first: int = 1) -> Publication:
    limits = PublicationLimits(unacked_events=1 << 60, unacked_bytes=1 << 30)
    author = Publication(TOPIC, ext.node_id(AUTHOR), EPOCH, limits)
    author.next_seq = first
    return author


def batch(
    *events: Event, first: int = 1, topic: str = TOPIC, signer: bytes = AUTHOR, kind: int = 0, author: bytes = AUTHOR
) -> bytes:
    keys = bytes.fromhex(ext.node_id(signer)) + bytes.fromhex(ext.node_id(author))
    numbers = bytes.fromhex(EPOCH) + u(8, first) + u(8, 1_790_000_000_000)
    name = topic.encode()
    items = b"".join(event.item for event in events)
    body = u(1, 1) + u(1, kind) + keys + numbers + bytes(32) + u(1, len(name)) + name + u(2, len(events)) + items
    return signed(body, signer)


def signed(body: bytes, signer: bytes = AUTHOR) -> bytes:
    return body + ext.sign(signer, b"iroh-broker batch v1\0" + body)


def refused(data: bytes, *hubs: str, topic: str = TOPIC) -> str:
    """The counter that a batch falls to."""
    with pytest.raises(ValueError, match=r"^(malformed|wrong_topic|bad_signature|not_allowed): .") as caught:
        ext.open_batch(topic, data, hubs)
    return str(caught.value).partition(":")[0]


@given(
    st.lists(st.tuples(details, st.booleans(), st.none() | st.integers(0, 2**53), st.none() | st.text()), max_size=5),
    st.sampled_from([1, 9, 99_998, MAX_SEQ - 5]),
)
def test_events_come_back_as_their_author_wrote_them(
    written: list[tuple[Any, bool, int | None, str | None]], first: int
) -> None:
    author = publication(first)
    events = [reference(5_000_000)]
    for seq, (detail, in_parts, ts, id) in enumerate(written, start=first + 1):
        author.next_seq = seq
        message = author.publish(detail, ts, id)
        events.append(templated(message, seq) if in_parts else raw(message))
    frames = [event.message for event in events]
    expected = (ext.node_id(AUTHOR), EPOCH, first, frames)
    assert ext.open_batch(TOPIC, batch(*events, first=first)) == expected


def test_a_swarm_makes_of_its_authors_events_what_opens_here() -> None:
    author = publication()
    texts = ['"', "\\", '}},"meta":{', "\x00\u2028é😀", "x" * 3_000]
    own = f',"meta":{{"author":"{author.author}","epoch":"{EPOCH}","seq":1}}}}'
    frames = [author.publish({"n": n, text: [own, text]}, ts_ms=n) for n in range(40) for text in texts]
    with node(secret=AUTHOR, gossip_message_bytes=4_096) as one:
        swarm = one.endpoint.join(TOPIC, bytes(32), [])
        assert swarm.publish(EPOCH, 1, frames)
        wait_until(lambda: swarm.counters()["events_out"] == len(frames))
        batches = swarm.batches(one.node_id, EPOCH, 1, len(frames), 1 << 22)
        swarm.leave()
    assert sum(map(len, batches)) < sum(map(len, frames)), "what is the same in every event is left out"
    assert max(map(len, batches)) <= 4_096
    opened = [ext.open_batch(TOPIC, data) for data in batches]
    assert {batch[:2] for batch in opened} == {(author.author, EPOCH)}
    pairs = [(seq, frame) for _, _, first, some in opened for seq, frame in enumerate(some, start=first)]
    assert [seq for seq, _ in pairs] == list(range(1, len(frames) + 1))
    # An event with the 3,000 characters twice fits no batch.
    assert [frame for _, frame in pairs] == [named(frame) if len(frame) > 4_096 else frame for frame in frames]


@given(st.binary(max_size=400))
def test_bytes_that_are_no_batch_are_refused_by_name(data: bytes) -> None:
    assert refused(data) == "malformed"


@given(st.data())
def test_a_batch_that_was_changed_is_refused_by_name(data: st.DataObject) -> None:
    good = batch(templated(publication().publish({"celsius": 21.5}), 1), reference(5_000))
    at = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(at, len(good)))
    changed = good[:at] + data.draw(st.binary(max_size=80)) + good[end:]
    if changed != good:
        assert refused(changed) in ("malformed", "wrong_topic", "bad_signature")


@given(st.data())
def test_whatever_a_signer_signs_says_what_it_is_or_is_refused(data: st.DataObject) -> None:
    """A signer can make any bytes; none of them is another author's event, or another number's."""
    good = batch(templated(publication().publish(1), 1))[:-64]
    at = data.draw(st.integers(123 + len(TOPIC), len(good)))
    changed = signed(good[:at] + data.draw(st.binary(max_size=80)) + good[data.draw(st.integers(at, len(good))) :])
    try:
        author, epoch, first, frames = ext.open_batch(TOPIC, changed)
    except ValueError:
        assert refused(changed) == "malformed"
        return
    own = b',"meta":{"author":"%s","epoch":"%s","seq":%d' % (author.encode(), epoch.encode(), first)
    assert (author, epoch, first) == (ext.node_id(AUTHOR), EPOCH, 1)
    assert all(isinstance(frame, tuple) or own in frame for frame in frames)


def test_an_event_that_claims_another_author_is_malformed() -> None:
    message = publication().publish(1)
    other = message.replace(ext.node_id(AUTHOR).encode(), ext.node_id(OTHER).encode())
    twice = message[:-2] + b',"author":"%s"}}' % ext.node_id(OTHER).encode()
    assert refused(batch(raw(other))) == "malformed"
    assert refused(batch(raw(twice))) == "malformed"
    assert refused(batch(templated(twice, 1))) == "malformed"
    assert refused(batch(raw(message), first=2)) == "malformed"
    assert ext.open_batch(TOPIC, batch(raw(message)))[3] == [message]


def test_only_the_author_and_hubs_may_sign() -> None:
    event = templated(publication().publish(1), 1)
    by_hub = batch(event, signer=HUB)
    assert refused(by_hub) == "not_allowed"
    assert refused(by_hub, ext.node_id(OTHER)) == "not_allowed"
    assert ext.open_batch(TOPIC, by_hub, [ext.node_id(OTHER), ext.node_id(HUB)])[0] == ext.node_id(AUTHOR)
    with pytest.raises(ValueError, match="not a NodeId"):
        ext.open_batch(TOPIC, by_hub, ["hub"])


def test_another_topics_batch_is_refused() -> None:
    good = batch(templated(publication().publish(1), 1))
    for topic in ("plant.line-3", TOPIC + ".x", TOPIC.upper(), "", "x" * 1_000):
        assert refused(good, topic=topic) == "wrong_topic"


def test_a_head_holds_no_events() -> None:
    assert refused(batch(kind=1, first=7)) == "malformed"
    assert refused(batch(kind=0, first=7)) == "malformed"


def test_a_swarm_id_is_keyed_blake3() -> None:
    """Expected: the PyPI package blake3."""
    realm = bytes(range(32))
    assert ext.topic_id(realm, TOPIC, 1).hex() == "575e18d74e82dfb360beee1ada8a41f03e0b57adec1f2b181806af10579e0b31"
    assert (
        ext.topic_id(realm, "a" * 255, 2**64 - 1).hex()
        == "a4399260666c2ab8fd9bf5662ad144965a869e89109781f80ceaae8113bda1be"
    )


@given(st.text(max_size=40), st.integers(0, 2**64 - 2), st.binary(min_size=32, max_size=32))
def test_swarm_ids_differ_by_realm_topic_and_generation(topic: str, generation: int, realm: bytes) -> None:
    one = ext.topic_id(realm, topic, generation)
    assert len(one) == 32
    assert ext.topic_id(realm, topic, generation) == one
    flipped = bytes([realm[0] ^ 1]) + realm[1:]
    for other in [(realm, topic, generation + 1), (realm, topic + "\0", generation), (flipped, topic, generation)]:
        assert ext.topic_id(*other) != one


@pytest.mark.parametrize("realm", [b"", bytes(31), bytes(33)])
def test_a_realms_secret_has_32_bytes(realm: bytes) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {len(realm)}"):
        ext.topic_id(realm, TOPIC, 1)
