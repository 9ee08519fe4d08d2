"""Networks that lose packets and fall apart while a topic travels by gossip: what each subscriber says is true, and
after a partition they all know within ten seconds. Each process is on a host of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.gossiping import Place, a_network, metric, published, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

READY = 60.0
LOSSY = 120.0
PARTITION = 60.0
HEALED = 10.0
"""Seconds after which nobody may be in doubt any more."""


def test_of_what_arrives_anywhere_thirty_packets_in_a_hundred_are_lost(tmp_path: Path) -> None:
    count, subscribers = 600, ("s1", "s2", "s3")
    with a_network("l", "hub", "author", *subscribers) as network, Place(tmp_path, network) as place:
        _, ready = place.hub("hub")
        subs = [place.sub(host, ready["ticket"], count) for host in subscribers]
        until(lambda: metric(ready, "broker_swarm_members") >= len(subs), READY)
        network.lose(network.hosts, 30)
        author = place.pub("author", ready["ticket"], count, "--rate", 100, "--connect-timeout", 60)
        authors = dict([published(author, count, LOSSY)])
        for sub in subs:
            assert sub.verdict(authors, LOSSY) == [0], "all of it is still in the hub's history"
        network.mend()
        assert metric(ready, "broker_swarm_events_total") >= count / 2, "by gossip, in the main"


def test_halves_that_were_apart_for_a_minute_know_all_ten_seconds_later(tmp_path: Path) -> None:
    """An author in each half goes on; the hub is in one of them."""
    near, far, count = ("hub", "s1", "a1"), ("s2", "s3", "a2"), 1_000
    with a_network("p", *near, *far) as network, Place(tmp_path, network) as place:
        _, ready = place.hub("hub")
        subs = [place.sub(host, ready["ticket"], 2 * count) for host in ("s1", "s2", "s3")]
        until(lambda: metric(ready, "broker_swarm_members") >= len(subs), READY)
        pubs = [place.pub(host, ready["ticket"], count, "--rate", 20) for host in ("a1", "a2")]
        until(lambda: all(sub.program.lines() > 40 for sub in subs), READY)
        network.cut(near, far)
        cut, heard = time.monotonic(), [sub.program.lines() for sub in subs]
        until(lambda: time.monotonic() - cut > PARTITION, PARTITION + 5)
        assert all(sub.program.running for sub in subs)
        assert all(sub.program.lines() > before + 100 for sub, before in zip(subs, heard, strict=True)), (
            "each half has its author"
        )
        network.mend()
        mended = time.monotonic()
        authors = dict(published(pub, count, READY) for pub in pubs)
        for sub in subs:
            sub.verdict(authors, READY)
        assert time.monotonic() - mended < HEALED
        assert metric(ready, "broker_swarm_events_total") >= count / 2, "by gossip, in the main"


def test_who_was_cut_off_for_longer_than_the_history_lasts_is_told_what_it_lost(tmp_path: Path) -> None:
    """Nobody else loses anything, and to them it makes no difference."""
    count, kept = 6_000, 500
    with a_network("c", "hub", "author", "s1", "s2") as network, Place(tmp_path, network) as place:
        _, ready = place.hub("hub", BROKER_TOPICS_RING_EVENTS=str(kept))
        alone, other = (place.sub(host, ready["ticket"], count) for host in ("s1", "s2"))
        until(lambda: metric(ready, "broker_swarm_members") >= 2, READY)
        author = place.pub("author", ready["ticket"], count, "--rate", 500)
        until(lambda: alone.program.lines() > 100, READY)
        network.cut(["s1"], ["hub", "author", "s2"])
        authors = dict([published(author, count, READY)])
        assert other.verdict(authors, READY) == [0]
        network.mend()
        mended = time.monotonic()
        (lost,) = alone.verdict(authors, READY)
        assert time.monotonic() - mended < HEALED
        assert 0 < lost < count - kept, "what it had and what the history holds is not lost"
