"""Readings of a whole endpoint, and of the runtime."""

from __future__ import annotations

import pytest

from broker import _gossip_ext as ext
from tests.ext.pair import connect, hub, node, wait_until

BOUNDS = (0.0, 1e-9, 10.0)
OURS, GOSSIP = "alkhub/1", "/iroh-gossip/1"


def test_it_sums_over_the_connections() -> None:
    with hub() as h, node() as one, node() as two:
        ends = [connect(one, h)[1], connect(two, h)[1]]
        seen = h.endpoint.overview(BOUNDS)
        assert sorted(seen.paths) == sorted((conn, "direct") for conn in ends)
        counts, total = seen.rtt[OURS]["direct"]
        assert counts == [0, 0, 2, 0]
        stats = [h.endpoint.stats(conn) for conn in ends]
        assert 0 < total < 20
        assert seen.quic[OURS]["bytes_in"] <= sum(one.bytes_received for one in stats if one is not None)
        assert seen.quic[OURS]["packets_out"] > 0
        assert seen.quic[GOSSIP]["packets_out"] == 0
        assert seen.rtt[GOSSIP] == {}
        assert seen.sockets == h.endpoint.addrs()
        assert (seen.queued_bytes, seen.queued_frames) == (0, 0)


def test_what_ended_connections_did_stays_in_the_totals() -> None:
    with hub() as h:
        before = h.endpoint.overview(BOUNDS)
        assert set(before.quic[OURS].values()) == {0}
        with node() as one:
            near, far = connect(one, h)
            one.endpoint.send(near, b"x" * 100_000)
            h.frames(far, 1)
            live = h.endpoint.overview(BOUNDS)
        h.wait(ext.CLOSED)
        after = h.endpoint.overview(BOUNDS)
        assert after.paths == []
        assert after.rtt[OURS] == {}
        assert after.quic[OURS]["bytes_in"] >= live.quic[OURS]["bytes_in"] > 100_000
        assert all(after.quic[OURS][name] >= count for name, count in live.quic[OURS].items())
        totals = h.endpoint.counters()
        wait_until(lambda: h.endpoint.counters()["connections_closed"] == 1)
        assert totals["connections_opened"] == 1
        assert totals["udp_datagrams_in"] > 0


def test_what_waits_in_the_writers_is_counted() -> None:
    with hub() as h, node(inbox_bytes=1_000) as s:
        _, far = connect(s, h)
        while h.endpoint.send(far, b"x" * 100_000):
            pass
        seen = h.endpoint.overview(BOUNDS)
        assert seen.queued_bytes == sum(size for _, size in h.endpoint.queued()) > 100_000
        assert seen.queued_frames > 1


def test_a_closed_endpoint_can_be_read() -> None:
    with hub() as h, node() as s:
        connect(s, h)
    assert h.endpoint.overview(BOUNDS).sockets == []


def test_bounds_belong_to_the_lower_bucket() -> None:
    with hub() as h, node() as s:
        connect(s, h)
        _, total = h.endpoint.overview(()).rtt[OURS]["direct"]
        counts, again = h.endpoint.overview((total,)).rtt[OURS]["direct"]
        assert counts == ([1, 0] if again <= total else [0, 1])


def test_the_runtime_tells_what_it_does() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        before = ext.runtime_stats()
        for _ in range(50):
            s.endpoint.send(near, b"x" * 100_000)
            h.frames(far, 1)
        after = ext.runtime_stats()
    assert after["workers"] == 1
    assert after["alive_tasks"] > 2
    assert after["queue_depth"] >= 0
    assert after["busy_seconds"] > before["busy_seconds"]
    assert after["parks"] > before["parks"]


def test_bounds_are_numbers() -> None:
    with hub() as h, pytest.raises(TypeError):
        h.endpoint.overview(["a"])  # type: ignore[list-item]
