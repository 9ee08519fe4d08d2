"""Who may gossip, how neighbours come and go, and what one that misbehaves does to the others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import iroh
import pytest

from broker import _gossip_ext as ext
from tests.ext import raw
from tests.ext.pair import Node, connect, hub, node, wait_until
from tests.ext.swarms import (
    EPOCH,
    ID,
    MESSAGE_BYTES,
    TOPIC,
    acquaint,
    event,
    events,
    hear,
    join,
    neighbour,
    peers,
    publish,
)

# Runs one member in a process of its own, which drains and keeps nothing.
MEMBER = """
import json, sys
from broker import _gossip_ext as ext
secret, topic, id_, others = sys.argv[1:]
others = json.loads(others)
ext.start_thread()
endpoint = ext.Endpoint.bind(bytes.fromhex(secret), accept=True, gossip_message_bytes=4096)
for node_id, addrs in others.items():
    endpoint.admit_peers([node_id])
    endpoint.learn(node_id, addrs)
swarm = endpoint.join(topic, bytes.fromhex(id_), list(others))
print(json.dumps(endpoint.addrs()), flush=True)
sys.stdin.read()
"""


def test_who_is_not_among_the_peers_is_refused_in_the_handshake_and_counted() -> None:
    with hub(gossip_message_bytes=MESSAGE_BYTES) as a, hub(gossip_message_bytes=MESSAGE_BYTES) as b:
        b.endpoint.admit_peers([a.node_id])
        b.endpoint.learn(a.node_id, a.endpoint.addrs())
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id])
        wait_until(lambda: a.endpoint.counters()["refused_not_admitted"] == 1)
        a.endpoint.admit_peers([b.node_id])
        at_b.join_peers([a.node_id])
        neighbour(a, at_a, b.node_id, up=True)
        assert a.endpoint.counters()["refused_banned"] == 0


def test_a_peer_that_is_removed_is_cut_at_once_and_stays_out() -> None:
    with peers(3) as (a, b, c):
        at_a, at_b, at_c = swarms = join([a, b, c])
        wait_until(lambda: all(len(swarm.neighbours()) == 2 for swarm in swarms))
        took = []
        for _ in range(3):
            a.endpoint.admit_peers([b.node_id])
            at_b.join_peers([a.node_id])
            wait_until(lambda: b.node_id in at_a.neighbours() and a.node_id in at_b.neighbours())
            start = time.monotonic()
            a.endpoint.admit_peers([], [b.node_id])
            neighbour(a, at_a, b.node_id, up=False)
            neighbour(b, at_b, a.node_id, up=False)
            took.append(time.monotonic() - start)
        assert median(took) < 1, "a busy machine delays one"
        assert at_a.neighbours() == [c.node_id]
        assert a.endpoint.counters()["gossip_cut"] >= 1
        at_b.join_peers([a.node_id])
        wait_until(lambda: a.endpoint.counters()["refused_not_admitted"] >= 1)
        at_a.join_peers([b.node_id])  # nor does it dial who is not among its peers
        wait_until(lambda: a.endpoint.counters()["gossip_dials_failed"] >= 1)
        assert b.node_id not in at_a.neighbours()
        assert sorted(at_c.neighbours()) == sorted([a.node_id, b.node_id])


def test_full_takes_the_place_of_the_whole_set() -> None:
    with peers(3) as (a, b, c):
        swarms = join([a, b, c])
        at_a = swarms[0]
        wait_until(lambda: all(len(swarm.neighbours()) == 2 for swarm in swarms))
        a.endpoint.admit_peers([c.node_id], full=True)
        neighbour(a, at_a, b.node_id, up=False)
        assert at_a.neighbours() == [c.node_id]
        assert all(swarm.neighbours() for swarm in swarms)


def test_who_is_denied_is_cut_from_gossip_too_and_refused_as_banned() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        a.endpoint.admit(open=True, allow=[], deny=[b.node_id])
        neighbour(a, at_a, b.node_id, up=False)
        neighbour(b, at_b, a.node_id, up=False)
        at_b.join_peers([a.node_id])
        wait_until(lambda: a.endpoint.counters()["refused_banned"] >= 1)
        a.endpoint.admit(open=True, allow=[], deny=[])
        at_b.join_peers([a.node_id])
        neighbour(a, at_a, b.node_id, up=True)


def test_peers_may_gossip_with_a_spoke_that_admits_nobody_else() -> None:
    with peers(2, open=False) as (a, b), node() as stranger:
        _swarms = join([a, b])
        stranger.endpoint.dial(1, a.node_id, a.endpoint.addrs())
        item = stranger.wait(ext.CLOSED, ext.DIAL_FAILED)
        assert 32 in item
        b.endpoint.dial(1, a.node_id, a.endpoint.addrs())  # nor a peer, when it wants more than gossip
        assert 32 in b.wait(ext.CLOSED, ext.DIAL_FAILED)


def test_peers_that_are_framed_may_connect_for_more_than_gossip_until_they_are_none() -> None:
    with peers(2, open=False) as (a, b), node() as stranger:
        a.endpoint.admit_peers([], framed=True)
        b.endpoint.dial(1, a.node_id, a.endpoint.addrs())
        conn = b.wait(ext.OPENED)[1]
        b.endpoint.send(conn, b"hello")
        assert a.wait(ext.FRAMES)[2] == [b"hello"]
        stranger.endpoint.dial(1, a.node_id, a.endpoint.addrs())
        assert 32 in stranger.wait(ext.CLOSED, ext.DIAL_FAILED)
        a.endpoint.admit_peers([], [b.node_id], framed=True)
        b.endpoint.dial(2, a.node_id, a.endpoint.addrs())
        assert 32 in b.wait(ext.CLOSED, ext.DIAL_FAILED)


def test_gossip_and_streams_share_an_endpoint() -> None:
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        near, far = connect(b, a)
        assert a.endpoint.send(far, b"by stream")
        assert at_a.publish(EPOCH, 1, [event(a.node_id, 1)])
        assert b.frames(near, 1) == [b"by stream"]
        assert hear(b, at_b, 1) == {1: event(a.node_id, 1)}
        assert at_a.id not in (near, far)


@pytest.mark.parametrize("dropped", [False, True])
def test_leaving_sends_what_is_queued_and_tells_the_neighbours(dropped: bool) -> None:
    with peers(2) as (a, b):
        swarms = join([a, b])
        at_b = swarms.pop()
        frames = events(a.node_id, 1, 3000)
        assert swarms[0].publish(EPOCH, 1, frames)
        if not dropped:
            swarms[0].leave()
            swarms[0].leave()
        swarms.clear()
        assert hear(b, at_b, 3000) == dict(enumerate(frames, 1))
        neighbour(b, at_b, a.node_id, up=False)
        neighbour(a, a.endpoint.join(TOPIC, ID, [b.node_id]), b.node_id, up=True)


def test_an_endpoint_closes_in_time_with_swarms_joined() -> None:
    with peers(2) as (a, b):
        topics = [(f"t.{n}", bytes([n]) * 32) for n in range(50)]
        joined = [join([a, b], topic, id_) for topic, id_ in topics]
        for at_a, _ in joined:
            assert at_a.publish(EPOCH, 1, events(a.node_id, 1, 1000))
        start = time.monotonic()
        a.endpoint.close(timeout=60)
        assert time.monotonic() - start < 30, "by itself, and not because its time was up"
        for _, at_b in joined:
            neighbour(b, at_b, a.node_id, up=False)


def test_a_peer_that_could_not_be_dialled_is_dialled_again_where_it_is_now() -> None:
    with peers(2) as (a, b), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        b.endpoint.learn(a.node_id, [f"127.0.0.1:{nobody.getsockname()[1]}"])
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id])
        wait_until(lambda: b.endpoint.counters()["gossip_dials_failed"] == 1)
        b.endpoint.learn(a.node_id, a.endpoint.addrs())
        at_b.join_peers([a.node_id])
        neighbour(b, at_b, a.node_id, up=True)
        assert at_a.neighbours() == [b.node_id]


def test_halves_that_lost_their_middle_find_each_other_again() -> None:
    with peers(3) as (middle, a, b):
        a.endpoint.admit_peers([], [b.node_id])  # so that they are neighbours of the middle alone
        b.endpoint.admit_peers([], [a.node_id])
        at_middle, at_a, at_b = join([middle, a, b])
        at_middle.leave()
        neighbour(a, at_a, middle.node_id, up=False)
        neighbour(b, at_b, middle.node_id, up=False)
        acquaint([a, b])
        at_a.join_peers([b.node_id])
        neighbour(a, at_a, b.node_id, up=True)
        assert at_b.publish(EPOCH, 1, [event(b.node_id, 1)])
        assert hear(a, at_a, 1) == {1: event(b.node_id, 1)}


def test_a_program_that_drains_nothing_is_overrun_and_told_so_and_goes_on() -> None:
    with peers(2) as (a, b):
        at_a, at_b = a.endpoint.join(TOPIC, ID, []), b.endpoint.join(TOPIC, ID, [a.node_id], inbox_bytes=200_000)
        neighbour(a, at_a, b.node_id, up=True)
        neighbour(b, at_b, a.node_id, up=True)
        frames = events(a.node_id, 1, 60_000, "y" * 100)
        publish(a, at_a, 1, frames)
        b.collect(5)
        first = [item for item in b.items if item[0] == ext.BATCH]
        held = sum(len(frame) + 64 for item in first for frame in item[5])
        assert 190_000 < held < 220_000
        b.wait(ext.LAGGED, conn=at_b.id)
        seq = 60_001
        while not any(item[0] == ext.BATCH and item[4] > 60_000 for item in b.items):
            assert at_a.publish(EPOCH, seq, [event(a.node_id, seq)])
            seq += 1
            b.collect(0.1)
        counters = at_b.counters()
        assert counters["lagged"] >= 1
        assert counters["events_in"] < 60_000
        assert at_b.neighbours() == [a.node_id]


@contextmanager
def member(secret: bytes, nodes: list[Node]) -> Iterator[subprocess.Popen[str]]:
    """A member in a process of its own, by way of every node; they know it and it knows them."""
    others = json.dumps({node.node_id: node.endpoint.addrs() for node in nodes})
    for other in nodes:
        other.endpoint.admit_peers([ext.node_id(secret)])
    command = [sys.executable, "-c", MEMBER, secret.hex(), TOPIC, ID.hex(), others]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


def test_a_neighbour_that_stops_reading_does_not_hold_up_the_others_for_long() -> None:
    secret = ext.generate_secret()
    with peers(2) as (a, b):
        at_a, at_b = join([a, b])
        with member(secret, [a, b]) as process:
            stopped = ext.node_id(secret)
            neighbour(a, at_a, stopped, up=True)
            neighbour(b, at_b, stopped, up=True)
            os.kill(process.pid, signal.SIGSTOP)
            seq, pauses, last = 1, [0.0], time.monotonic()
            while stopped in at_a.neighbours() + at_b.neighbours():
                assert time.monotonic() - last < 10
                if at_a.publish(EPOCH, seq, events(a.node_id, seq, 50, "y" * 200)):
                    seq += 50
                else:
                    a.collect(0.05)
                b.collect(0.01)
                if any(item[0] == ext.BATCH for item in b.items):
                    pauses.append(time.monotonic() - last)
                    last = time.monotonic()
                    b.items = [item for item in b.items if item[0] != ext.BATCH]
        assert max(pauses) < 6
        assert a.endpoint.counters()["gossip_stalled"] + b.endpoint.counters()["gossip_stalled"] >= 1
        assert at_a.neighbours() == [b.node_id]


async def test_a_peer_that_is_no_neighbour_loses_its_connection_though_it_uses_it() -> None:
    """iroh-gossip tells it of messages, or sends them, for as long as there is a connection."""
    with peers(2) as (a, b):
        at_a, _ = join([a, b])
        async with raw.peer() as stranger:
            a.endpoint.admit_peers([str(stranger.id())])
            connection = await raw.connect(stranger, a, b"/iroh-gossip/1")
            ended = asyncio.create_task(raw.closed(connection))
            stream = await connection.open_uni()
            await stream.write_all(struct.pack(">I", 1_000))  # of a header that takes its time
            while not ended.done():
                await asyncio.wait([ended], timeout=0.2)
                with suppress(iroh.IrohError):
                    await stream.write_all(b"x")
            assert "not used any more" in await ended
        assert a.endpoint.counters()["gossip_unused"] >= 1
        assert at_a.neighbours() == [b.node_id]
