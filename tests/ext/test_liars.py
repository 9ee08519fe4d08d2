"""A live swarm into which raw bytes are thrown: each kind of lie is counted by its name, and none of it is delivered.

The liar is a member like any other, with its own key, that broadcasts what it likes (`Swarm.relay`). The batches are
written out in test_batches.py. Not here: the rules by themselves (gossip_ext/tests/pure/chains.rs, faults.rs), and that
who goes on is shunned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from broker import _gossip_ext as ext
from broker.hub.swarm_metrics import SwarmTotals
from tests.ext.pair import Node, node, wait_until
from tests.ext.swarms import ID, acquaint, join
from tests.ext.test_batches import AUTHOR, EPOCH, OTHER, TOPIC, Event, batch, publication, raw, signed, templated, u

pytestmark = pytest.mark.timeout(120)

HONEST = ext.node_id(AUTHOR)
STARTED = slice(82, 90)
"""Of a body: when its epoch began, after version, kind, two keys, epoch and number."""
PREVIOUS = slice(90, 122)
"""The hash of the batch before."""
RATE, BURST = 400_000, 800_000
"""Points a second that an author may spend, and those that it may have saved (gossip_ext/src/chain.rs)."""
MANY = 6_400
"""Events of 10 bytes that fill a message: 6,408 points."""


@contextmanager
def beside_a_liar() -> Iterator[tuple[Node, ext.Swarm, ext.Swarm]]:
    """A member, its swarm, and the liar's."""
    options = {"accept": True, "open": True, "gossip_message_bytes": 65_536}
    with node(**options) as a, node(secret=OTHER, **options) as liar:
        acquaint([a, liar])
        at_a, at_liar = join([a, liar], TOPIC, ID)
        yield a, at_a, at_liar


def of(first: int, count: int = 3) -> bytes:
    """A batch that holds, of the honest author."""
    author = publication(first)
    return batch(*(templated(author.publish(seq), seq) for seq in range(first, first + count)), first=first)


def altered(data: bytes, place: slice, value: bytes) -> bytes:
    """The same with other bytes there, signed anew by its author."""
    body = bytearray(data[:-64])
    assert len(body[place]) == len(value)
    body[place] = value
    return signed(bytes(body))


def delivered(a: Node, at_a: ext.Swarm) -> list[int]:
    """Numbers of the honest author, in the order of arrival."""
    a.collect(0)
    batches = [item for item in a.items if item[0] == ext.BATCH and item[1] == at_a.id]
    assert {item[2] for item in batches} <= {HONEST}
    return [seq for item in batches for seq in range(item[4], item[4] + len(item[5]))]


def told(a: Node, at_a: ext.Swarm, liar: ext.Swarm, message: bytes, counter: str) -> None:
    """It arrives, is counted by that name alone, and nothing comes of it."""
    before, had = at_a.counters(), delivered(a, at_a)
    liar.relay(message)
    wait_until(lambda: at_a.counters()[counter] == before[counter] + 1)
    after = at_a.counters()
    bad = ("malformed", "wrong_topic", "bad_signature", "not_allowed", "bad_chain", "stale", "over_rate")
    assert {name for name in bad if after[name] != before[name]} == {counter}
    assert (after["batches_in"], delivered(a, at_a)) == (before["batches_in"], had)


def test_what_holds_is_delivered_whoever_passes_it_on() -> None:
    with beside_a_liar() as (a, at_a, liar):
        liar.relay(of(1))
        wait_until(lambda: delivered(a, at_a) == [1, 2, 3])
        assert at_a.counters()["batches_in"] == 1


def test_a_wrong_signature() -> None:
    with beside_a_liar() as (a, at_a, liar):
        forged = bytearray(of(1))
        forged[-1] ^= 1
        told(a, at_a, liar, bytes(forged), "bad_signature")
        another = batch(raw(publication().publish("forged")), signer=OTHER, author=AUTHOR)
        told(a, at_a, liar, another, "not_allowed")
        told(a, at_a, liar, of(1)[:-64] + of(4)[-64:], "bad_signature")
        told(a, at_a, liar, b"no batch at all", "malformed")
        told(a, at_a, liar, batch(topic="another"), "wrong_topic")


def test_a_wrong_hash_of_the_batch_before() -> None:
    with beside_a_liar() as (a, at_a, liar):
        liar.relay(of(1))
        wait_until(lambda: delivered(a, at_a) == [1, 2, 3])
        told(a, at_a, liar, altered(of(4), PREVIOUS, b"\x55" * 32), "bad_chain")


def test_a_recording_of_an_earlier_epoch_and_of_this_one() -> None:
    with beside_a_liar() as (a, at_a, liar):
        liar.relay(of(1))
        wait_until(lambda: delivered(a, at_a) == [1, 2, 3])
        earlier = of(1).replace(bytes.fromhex(EPOCH), b"\x00" * 7 + b"\x01", 1)
        earlier = altered(earlier, STARTED, (1_780_000_000_000).to_bytes(8, "big"))
        told(a, at_a, liar, earlier, "stale")
        author = publication(2)
        told(a, at_a, liar, batch(templated(author.publish(2), 2), first=2), "stale")


def flood(first: int) -> bytes:
    """The liar's own, and right: what is wrong with them is their number. None follows another, so none is chained."""
    event = Event(b"", u(1, 1) + u(4, 1) + b"1" + u(2, 2) + b"}}")
    return batch(*[event] * MANY, first=first, signer=OTHER, author=OTHER)


def test_a_flood_beyond_an_authors_rate() -> None:
    with beside_a_liar() as (a, at_a, liar):
        began, sent, heard = time.monotonic(), 0, {ext.node_id(OTHER): 0, HONEST: 0}

        def looked() -> bool:
            """Takes what has come. Whether so many are under way that gossip might drop some."""
            a.collect(0)
            for item in a.items:
                if item[0] == ext.BATCH:
                    heard[item[2]] += len(item[5])
            a.items.clear()
            counted = at_a.counters()
            return sent - counted["batches_in"] - counted["over_rate"] < 20

        while not at_a.counters()["over_rate"] >= 20:
            wait_until(looked)
            liar.relay(flood(1 + sent * 2 * MANY))
            sent += 1
            assert time.monotonic() < began + 60, "this machine passes on less than the rate"
        liar.relay(of(1))
        wait_until(lambda: looked() and heard[HONEST] == 3)
        wait_until(lambda: at_a.counters()["batches_in"] + at_a.counters()["over_rate"] == sent + 1)
        looked()
        counted = at_a.counters()
        assert counted["lagged"] == 0
        taken = counted["batches_in"] - 1
        assert heard[ext.node_id(OTHER)] == taken * MANY, "what was over the rate is not delivered"
        assert taken * (MANY + 8) <= BURST + RATE * (time.monotonic() - began)
        totals = SwarmTotals()
        totals.add(counted)
        bad = next(one for one in totals.families([]) if one.name == "broker_swarm_bad_batches")
        assert {one.labels["reason"]: one.value for one in bad.samples if one.value} == {
            "over_rate": counted["over_rate"]
        }
