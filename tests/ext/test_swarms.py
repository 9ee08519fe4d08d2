"""Topics over gossip between endpoints on loopback: what arrives, as what, and how it is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import pytest

from broker import _gossip_ext as ext
from broker.errors import Closed
from broker.events import Event
from broker.protocol.codec import Message, decode, decode_parts
from broker.protocol.named import Frame
from tests.ext.pair import hub, wait_until
from tests.ext.swarms import EPOCH, ID, TOPIC, event, events, hear, join, named, neighbour, peers, publish, sized


def test_two_exchange() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        assert at_a.neighbours() == [b.node_id]
        assert at_b.neighbours() == [a.node_id]
        for node, swarm, other, other_swarm in ((a, at_a, b, at_b), (b, at_b, a, at_a)):
            frames = events(node.node_id, 1, 3)
            assert swarm.publish(EPOCH, 1, frames)
            assert hear(other, other_swarm, 3, node.node_id) == dict(enumerate(frames, 1))
        assert (at_a.counters()["events_out"], at_a.counters()["events_in"]) == (3, 3)


def test_five_hear_everything_once_and_nothing_of_their_own() -> None:
    with peers(5) as nodes:
        swarms = join(nodes)
        author, swarm = nodes[2], swarms[2]
        frames = events(author.node_id, 1, 2000)
        publish(author, swarm, 1, frames)
        for node, other in zip(nodes, swarms, strict=True):
            if node is not author:
                assert hear(node, other, 2000) == dict(enumerate(frames, 1))
        assert swarm.counters()["batches_in"] == 0
        assert ext.BATCH not in author.kinds()


def test_a_thousand_identical_payloads_all_arrive() -> None:
    with peers(3) as nodes:
        swarms = join(nodes)
        frames = events(nodes[0].node_id, 1, 1000, {"n": 1})
        publish(nodes[0], swarms[0], 1, frames)
        for node, swarm in zip(nodes[1:], swarms[1:], strict=True):
            assert hear(node, swarm, 1000) == dict(enumerate(frames, 1))


def test_who_joined_for_parts_reads_in_them_what_others_read_in_messages() -> None:
    with peers(3) as (a, b, c):
        at_a, at_b, at_c = (
            a.endpoint.join(TOPIC, ID, []),
            *(node.endpoint.join(TOPIC, ID, [a.node_id], events="parts" if node is b else "frames") for node in (b, c)),
        )
        wait_until(lambda: all(swarm.neighbours() for swarm in (at_a, at_b, at_c)))
        first = event(a.node_id, 1, {"n": [1, "]}"]})
        frames = [first, event(a.node_id, 2, None)[:-2] + b',"ts":1,"id":"}}"}}', *events(a.node_id, 3, 20)]
        publish(a, at_a, 1, frames)
        assert hear(c, at_c, len(frames)) == dict(enumerate(frames, 1))
        read: dict[int, Message] = {}
        while len(read) < len(frames):
            *_, seq, told = b.wait(ext.BATCH, conn=at_b.id)
            assert isinstance(told, tuple)
            read |= enumerate(decode_parts(told, TOPIC, a.node_id, EPOCH, seq, Event), seq)
        assert read == dict(enumerate(map(decode, frames), 1))


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(lambda frame: frame.replace(b'"x"', b"[" * 65 + b"]" * 65), id="too many levels for parts"),
        pytest.param(lambda frame: frame[:-1] + b',"more":1}', id="more beside meta"),
        pytest.param(lambda frame: frame.replace(b'"x"', b'"x","y":1'), id="more beside detail"),
        pytest.param(lambda frame: frame.replace(b":", b": "), id="spaced"),
        pytest.param(lambda frame: frame.replace(b'"x"', b'"%b"' % (b"x" * 5_000)), id="by reference"),
    ],
)
def test_a_batch_with_an_event_that_has_no_parts_comes_in_frames(odd: Callable[[bytes], bytes]) -> None:
    with peers(2) as (a, b):
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id], events="parts")
        wait_until(lambda: bool(at_a.neighbours() and at_b.neighbours()))
        frames = [event(a.node_id, 1), odd(event(a.node_id, 2))]
        publish(a, at_a, 1, frames)
        expected = frames if len(frames[1]) < 4_096 else [frames[0], named(frames[1])]
        assert hear(b, at_b, 2) == dict(enumerate(expected, 1))


def test_who_joined_to_count_is_told_how_many_came_and_which_are_only_named() -> None:
    with peers(2) as (a, b):
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id], events="count")
        wait_until(lambda: bool(at_a.neighbours() and at_b.neighbours()))
        publish(a, at_a, 1, events(a.node_id, 1, 40))
        counted = 0
        while counted < 40:
            _, _, author, epoch, seq, count = b.wait(ext.BATCH, conn=at_b.id)
            assert (author, epoch, seq) == (a.node_id, EPOCH, counted + 1)
            counted += count
        large = event(a.node_id, 42).replace(b'"x"', b'"%b"' % (b"x" * 5_000))
        frames = [event(a.node_id, 41), large]
        publish(a, at_a, 41, frames)
        assert hear(b, at_b, 2) == {41: frames[0], 42: named(large)}


def test_what_was_opened_for_one_of_a_process_is_told_to_each_in_its_way() -> None:
    """More batches than a process keeps opened (gossip_ext/src/opening.rs); most of these hear each as the third or a
    later one."""
    ways: list[Literal["frames", "parts", "count"]] = ["frames", "parts", "count"] * 3
    with peers(1 + len(ways)) as (author, *others):
        own = author.endpoint.join(TOPIC, ID, [])
        swarms = [
            node.endpoint.join(TOPIC, ID, [author.node_id], events=way) for node, way in zip(others, ways, strict=True)
        ]
        wait_until(lambda: all(swarm.neighbours() for swarm in swarms))
        frames = [event(author.node_id, seq, f"{seq}" + "x" * 200) for seq in range(1, 2_001)]
        publish(author, own, 1, frames)
        for node, swarm, way in zip(others, swarms, ways, strict=True):
            if way == "frames":
                assert hear(node, swarm, len(frames), author.node_id) == dict(enumerate(frames, 1))
                continue
            read: dict[int, Message | None] = {}
            while len(read) < len(frames):
                *_, first, told = node.wait(ext.BATCH, conn=swarm.id)
                if isinstance(told, int):
                    read |= dict.fromkeys(range(first, first + told))
                else:
                    read |= enumerate(decode_parts(told, TOPIC, author.node_id, EPOCH, first, Event), first)
            assert read == (
                dict(enumerate(map(decode, frames), 1)) if way == "parts" else dict.fromkeys(range(1, 2_001))
            )
        assert own.counters()["batches_out"] > 64


def test_events_are_told_in_ways_that_there_are() -> None:
    with peers(1) as (a,), pytest.raises(ValueError, match='told as frames, parts or count, not "words"'):
        a.endpoint.join(TOPIC, ID, [], events="words")  # type: ignore[arg-type]


@pytest.mark.parametrize("message_bytes", [512, 4096, 65_536])
def test_an_event_of_the_limit_fits_and_one_byte_more_goes_by_reference(message_bytes: int) -> None:
    with peers(2, message_bytes) as (a, b):
        at_a, at_b = join([a, b])
        limit = at_a.message_bytes()
        frames = [sized(a.node_id, seq, size) for seq, size in enumerate((limit, limit + 1, 900 * 1024, limit), 1)]
        publish(a, at_a, 1, frames)
        assert hear(b, at_b, 4) == {1: frames[0], 2: named(frames[1]), 3: named(frames[2]), 4: frames[3]}
        assert at_a.counters()["references_out"] == 2
        assert at_b.counters()["malformed"] == 0


def test_a_lone_event_is_not_held() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        took = []
        for seq in range(1, 41):
            start = time.monotonic()
            assert at_a.publish(EPOCH, seq, [event(a.node_id, seq)])
            b.wait(ext.BATCH, conn=at_b.id)
            took.append(time.monotonic() - start)
            wait_until(lambda start=start: time.monotonic() - start > 0.02)
        assert at_a.counters()["batches_out"] == 40
        assert min(took) < 0.005  # the least, since a busy machine delays some


def test_a_flood_is_batched_and_a_trickle_waits_5_ms_at_most() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        for seq in range(1, 2001):
            while not at_a.publish(EPOCH, seq, [event(a.node_id, seq)]):
                a.wait(ext.SWARM_DRAINED)
        hear(b, at_b, 2000)
        assert at_a.counters()["events_out"] == 2000
        assert at_a.counters()["batches_out"] < 400


def test_heads_come_after_what_was_published_before_and_are_all_heard() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        assert at_a.publish(EPOCH, 1, events(a.node_id, 1, 3))
        at_a.head(EPOCH, 3)
        assert b.wait(ext.BATCH, ext.HEAD)[0] == ext.BATCH
        assert b.wait(ext.HEAD) == (ext.HEAD, at_b.id, a.node_id, EPOCH, 3)
        at_a.head(EPOCH, 3)  # the same again is news: the author is there
        assert b.wait(ext.HEAD) == (ext.HEAD, at_b.id, a.node_id, EPOCH, 3)
        assert (at_a.counters()["heads_out"], at_b.counters()["heads_in"]) == (2, 2)


def test_batches_are_kept_and_open_again() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        frames = events(a.node_id, 1, 200, "y" * 50)
        publish(a, at_a, 1, frames)
        hear(b, at_b, 200)
        for swarm in (at_a, at_b):
            got: dict[int, Frame] = {}
            for data in swarm.batches(a.node_id, EPOCH, 50, 150):
                author, epoch, first, opened = ext.open_batch(TOPIC, data)
                assert (author, epoch) == (a.node_id, EPOCH)
                assert first > max(got, default=0)
                got.update(enumerate(opened, first))
            assert {seq: got[seq] for seq in range(50, 151)} == {seq: frames[seq - 1] for seq in range(50, 151)}
        everything = at_b.batches(a.node_id, EPOCH, 1, 200)
        assert at_b.batches(a.node_id, EPOCH, 1, 200, len(everything[0])) == everything[:1]
        assert at_b.batches(a.node_id, f"{8:016x}", 1, 200) == []
        with pytest.raises(ValueError, match=r"^wrong_topic"):
            ext.open_batch("orders.other", everything[0])


def test_no_more_than_keep_bytes_is_kept() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b], keep_bytes=20_000)
        publish(a, at_a, 1, events(a.node_id, 1, 2000, "y" * 100))
        hear(b, at_b, 2000)
        assert 10_000 < at_b.counters()["kept_bytes"] <= 20_000
        assert at_b.batches(a.node_id, EPOCH, 1, 10) == []
        assert len(at_b.batches(a.node_id, EPOCH, 1, 2000)) > 1


def test_a_full_queue_refuses_and_says_when_there_is_room() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b], inbox_bytes=1 << 28)  # nothing is drained meanwhile
        frames = events(a.node_id, 1, 8000, "y" * 100)
        assert at_a.publish(EPOCH, 1, frames)  # nothing was queued: any single publish is taken
        refused = 8001
        while at_a.publish(EPOCH, refused, events(a.node_id, refused, 500, "y" * 100)):
            refused += 500
        assert at_a.counters()["publish_full"] == 1
        a.wait(ext.SWARM_DRAINED, conn=at_a.id)
        assert at_a.publish(EPOCH, refused, events(a.node_id, refused, 500, "y" * 100))
        hear(b, at_b, refused + 499)
        assert ext.SWARM_DRAINED not in a.kinds()


def test_two_hundred_topics_at_once() -> None:
    with peers(2) as (a, b):
        at_a = [a.endpoint.join(f"t.{n}", bytes([n]) * 32, []) for n in range(200)]
        at_b = [b.endpoint.join(f"t.{n}", bytes([n]) * 32, [a.node_id]) for n in range(200)]
        wait_until(lambda: all(swarm.neighbours() for swarm in at_a + at_b))
        for n, swarm in enumerate(at_a):
            assert swarm.publish(EPOCH, 1, [event(a.node_id, 1, topic=f"t.{n}")])
        for n, swarm in enumerate(at_b):
            item = b.wait(ext.BATCH, conn=swarm.id)
            assert item[2:] == (a.node_id, EPOCH, 1, [event(a.node_id, 1, topic=f"t.{n}")])
        assert b.endpoint.counters()["gossip_connections"] <= 2


def test_a_hub_publishes_on_behalf_of_others_and_nobody_else_does() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        author = ext.node_id(ext.generate_secret())
        assert at_a.publish(EPOCH, 1, [event(author, 1)], author=author)
        wait_until(lambda: at_b.counters()["not_allowed"] == 1)
        at_b.allow(hubs=[a.node_id], authors=None)
        assert at_a.publish(EPOCH, 2, [event(author, 2)], author=author)
        assert b.wait(ext.BATCH)[2:] == (author, EPOCH, 2, [event(author, 2)])
        assert ext.BATCH not in b.kinds()


def test_who_may_not_publish_is_counted_and_not_heard() -> None:
    with peers(2) as (a, b):
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id], authors=[])
        wait_until(lambda: bool(at_a.neighbours() and at_b.neighbours()))
        assert at_a.publish(EPOCH, 1, [event(a.node_id, 1)])
        wait_until(lambda: at_b.counters()["not_allowed"] == 1)
        at_b.allow(hubs=[], authors=[a.node_id])
        assert at_a.publish(EPOCH, 2, [event(a.node_id, 2)])
        assert b.wait(ext.BATCH)[4] == 2
        assert at_b.batches(a.node_id, EPOCH, 1, 1) == []


def test_another_topic_on_the_same_id_is_counted_and_its_sender_shunned() -> None:
    with peers(2) as (a, b):
        at_a, at_b = a.endpoint.join("orders.other", ID, []), b.endpoint.join(TOPIC, ID, [a.node_id])
        wait_until(lambda: bool(at_a.neighbours() and at_b.neighbours()))
        for seq in range(1, 12):
            assert at_a.publish(EPOCH, seq, [event(a.node_id, seq, topic="orders.other")])
            wait_until(lambda seq=seq: at_b.counters()["wrong_topic"] == seq)
        neighbour(b, at_b, a.node_id, up=False)
        assert ext.BATCH not in b.kinds()
        assert b.endpoint.counters()["gossip_cut"] == 1
        at_a.join_peers([b.node_id])
        wait_until(lambda: b.endpoint.counters()["refused_banned"] >= 1)
        at_b.leave()  # and with it what it held against its neighbour
        again = b.endpoint.join("orders.other", ID, [a.node_id])
        neighbour(b, again, a.node_id, up=True)


def test_malformed_arguments_say_what_is_wrong() -> None:
    with peers(1) as (a,), hub() as silent:
        swarm = a.endpoint.join(TOPIC, ID, [])
        with pytest.raises(RuntimeError, match="gossip_message_bytes"):
            silent.endpoint.join(TOPIC, ID, [])
        with pytest.raises(ValueError, match="32 bytes, not 3"):
            a.endpoint.join(TOPIC, b"abc", [])
        with pytest.raises(ValueError, match="not a NodeId"):
            a.endpoint.join(TOPIC, ID, ["xyz"])
        with pytest.raises(ValueError, match="topic has 1 to 255 bytes"):
            a.endpoint.join("x" * 256, ID, [])
        with pytest.raises(ValueError, match="not an epoch"):
            swarm.publish("7", 1, [b"{}"])
        with pytest.raises(ValueError, match="first_seq must be"):
            swarm.publish(EPOCH, 0, [b"{}"])
        with pytest.raises(ValueError, match="empty payload"):
            swarm.publish(EPOCH, 1, [b""])
        with pytest.raises(ValueError, match="512 to 65536, not 100"):
            ext.Endpoint.bind(ext.generate_secret(), gossip_message_bytes=100)
        assert swarm.publish(EPOCH, 1, [])
        swarm.leave()
        with pytest.raises(Closed):
            swarm.publish(EPOCH, 1, [b"{}"])
