"""Bytes between two endpoints: order, lanes, bounds, ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import _gossip_ext as ext
from broker.errors import BindError, Closed, EventTooLarge
from tests.ext.pair import PATIENCE, Node, connect, hub, node, wait_until

ROOT = Path(__file__).parents[2]


def test_opened_tells_who_and_which_dial() -> None:
    with hub() as h, node() as s:
        s.endpoint.dial(77, h.node_id, h.endpoint.addrs())
        opened = s.wait(ext.OPENED)
        assert opened[2:] == (h.node_id, False, 77)
        s.endpoint.send(opened[1], b"{}")
        assert h.wait(ext.OPENED)[2:] == (s.node_id, True, 0)


def test_echo_both_ways() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        assert h.endpoint.send(far, [b"a", b"b" * 100_000])
        assert s.frames(near, 2) == [b"a", b"b" * 100_000]


def test_a_hundred_thousand_frames_in_order() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        sent = [b"%d" % number for number in range(100_000)]
        for start in range(0, len(sent), 1000):
            while not s.endpoint.send(near, sent[start : start + 1000]):
                s.wait(ext.DRAINED)
        assert h.frames(far, len(sent)) == sent
        stats = h.endpoint.stats(far)
        assert stats is not None
        assert stats.frames_received == len(sent) + 1
        assert stats.inbox_bytes == 0
        assert (stats.path, stats.remote_addr) == ("direct", s.endpoint.addrs()[0])
        wait_until(lambda: s.endpoint.queued() == [])


def test_the_largest_frame_passes_and_one_byte_more_is_refused_here() -> None:
    with hub(max_frame_bytes=1000) as h, node(max_frame_bytes=1000) as s:
        near, far = connect(s, h)
        s.endpoint.send(near, b"x" * 1000)
        assert h.frames(far, 1) == [b"x" * 1000]
        with pytest.raises(ValueError, match=r"1001 bytes is above max_frame_bytes \(1000\)"):
            s.endpoint.send(near, [b"fine", b"x" * 1001])
        with pytest.raises(ValueError, match="empty payload"):
            s.endpoint.send(near, b"")
        with pytest.raises(ValueError, match="lane"):
            s.endpoint.send(near, b"x", 2)


def stall(s: Node, near: int, lane: int, size: int = 60_000) -> int:
    """Sends until the lane refuses: the peer does not read."""
    count = 0
    while s.endpoint.send(near, b"%08d" % count + b"." * (size - 8), lane):
        count += 1
        assert count < 2000, "no bound"
    return count


@pytest.mark.parametrize("lane", [ext.CALLS, ext.TOPICS])
def test_a_full_lane_refuses_and_tells_when_it_has_room(lane: int) -> None:
    with (
        hub(inbox_bytes=200_000) as h,
        node(calls_queue_bytes=500_000, topics_queue_bytes=500_000) as s,
    ):
        near, far = connect(s, h)
        # The hub's Python does not drain: its inbox, both QUIC windows and then the lane fill up.
        wait_until(lambda: not s.endpoint.send(near, b"." * 60_000, lane))
        assert s.endpoint.counters()["lane_full"] >= 1
        ((conn, queued),) = s.endpoint.queued()
        assert conn == near
        assert queued <= 500_000
        stats = h.endpoint.stats(far)
        assert stats is not None
        assert stats.inbox_bytes < 200_000 + 300_000
        while ext.DRAINED not in s.kinds():
            h.collect(0.05)
            s.collect(0)
        assert s.wait(ext.DRAINED)[1] == near
        assert s.endpoint.send(near, b"." * 60_000, lane)


def test_nothing_is_lost_or_reordered_by_back_pressure() -> None:
    with hub(inbox_bytes=100_000) as h, node(calls_queue_bytes=300_000) as s:
        near, far = connect(s, h)
        count = stall(s, near, ext.CALLS)
        got = h.frames(far, count)
        assert [int(frame[:8]) for frame in got] == list(range(count))


def test_calls_overtake_topics() -> None:
    with hub(inbox_bytes=100_000) as h, node(topics_queue_bytes=2_000_000) as s:
        near, far = connect(s, h)
        topics = stall(s, near, ext.TOPICS, 4000)
        assert s.endpoint.send(near, b"call")
        got = h.frames(far, topics + 1)
        place = got.index(b"call")
        assert topics - place > 300, "the call waited for the whole topics lane"
        assert [int(frame[:8]) for frame in got if frame != b"call"] == list(range(topics))


def test_an_empty_lane_takes_a_payload_above_its_bound() -> None:
    with hub() as h, node(topics_queue_bytes=1000) as s:
        near, far = connect(s, h)
        assert s.endpoint.send(near, b"x" * 50_000, ext.TOPICS)
        assert h.frames(far, 1) == [b"x" * 50_000]


def test_one_batch_for_many_frames_and_one_wake_up() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        before = h.endpoint.counters()["wakeups"]
        for _ in range(50):
            s.endpoint.send(near, b"x")
        wait_until(lambda: (h.endpoint.stats(far) or pytest.fail("gone")).frames_received == 51)
        assert h.endpoint.pending()
        assert h.endpoint.drain() == [(ext.FRAMES, far, [b"x"] * 50)]
        assert not h.endpoint.pending()
        assert h.endpoint.counters()["wakeups"] == before + 1


def test_close_tells_the_other_side_the_code_after_what_was_sent() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        s.endpoint.send(near, [b"last words"] * 100)
        s.endpoint.close_connection(near, 34, "because")
        assert h.frames(far, 100) == [b"last words"] * 100
        assert h.wait(ext.CLOSED) == (ext.CLOSED, far, 34, "because", True)
        assert s.wait(ext.CLOSED) == (ext.CLOSED, near, 34, "because", False)
        assert not s.endpoint.send(near, b"late")
        assert s.endpoint.stats(near) is None
        s.endpoint.close_connection(near, 1, "unknown ids are ignored")


def test_closing_an_endpoint_is_going_away() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        h.endpoint.close()
        h.endpoint.close()
        assert s.wait(ext.CLOSED) == (ext.CLOSED, near, 1, "going away", True)
        assert h.wait(ext.CLOSED) == (ext.CLOSED, far, 1, "going away", False)
        with pytest.raises(Closed):
            h.endpoint.dial(1, s.node_id, s.endpoint.addrs())


def test_dropping_an_endpoint_closes_it() -> None:
    with hub() as h:
        s = Node()
        _, far = connect(s, h)
        del s
        assert h.wait(ext.CLOSED)[:3] == (ext.CLOSED, far, 1)


def test_a_killed_peer_is_noticed_by_the_idle_timeout() -> None:
    body = """
import sys
from broker import _gossip_ext as ext
ext.start_thread()
hub = ext.Endpoint.bind(ext.generate_secret(), accept=True, open=True)
print(hub.node_id, hub.addrs()[0], flush=True)
sys.stdin.read()
"""
    with (
        subprocess.Popen(
            [sys.executable, "-c", body], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        node(idle_timeout=1.0) as s,
    ):
        assert process.stdout is not None
        peer, address = process.stdout.readline().split()
        s.endpoint.dial(1, peer, [address])
        near = s.wait(ext.OPENED)[1]
        s.endpoint.send(near, b"{}")
        process.kill()
        assert s.wait(ext.CLOSED) == (ext.CLOSED, near, None, "idle timeout", False)


def test_a_dial_that_nobody_answers() -> None:
    with node() as s:
        s.endpoint.dial(5, ext.node_id(ext.generate_secret()), ["127.0.0.1:9"], timeout=0.3)
        kind, token, what, code, message = s.wait(ext.DIAL_FAILED)
        assert (kind, token, what, code) == (ext.DIAL_FAILED, 5, "unreachable", None)
        assert message == "nobody answered at 127.0.0.1:9 within 0.3 s"


def test_a_dial_to_who_does_not_accept_is_refused() -> None:
    with node() as deaf, node() as s:
        s.endpoint.dial(5, deaf.node_id, deaf.endpoint.addrs())
        assert s.wait(ext.DIAL_FAILED)[1:4] == (5, "refused", None)


def test_a_dial_to_another_key_than_the_one_asked_for_fails() -> None:
    with hub() as h, node() as s:
        s.endpoint.dial(5, ext.node_id(ext.generate_secret()), h.endpoint.addrs())
        assert s.wait(ext.DIAL_FAILED)[2] == "refused"


def test_datagrams() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        limit = s.endpoint.max_datagram_size(near)
        assert limit is not None
        assert limit > 1000
        s.endpoint.send_datagram(near, b"one")
        assert h.wait(ext.DATAGRAM) == (ext.DATAGRAM, far, b"one")
        limit = s.endpoint.max_datagram_size(near) or 0
        with pytest.raises(EventTooLarge, match="above the path's limit") as caught:
            s.endpoint.send_datagram(near, b"x" * 70_000)
        assert (caught.value.size, caught.value.limit >= limit) == (70_000, True)
        assert h.endpoint.max_datagram_size(999) is None


def test_count_only() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        s.endpoint.count_only(near)
        h.endpoint.send(far, [b"x"] * 1000, ext.TOPICS)
        wait_until(lambda: (s.endpoint.stats(near) or pytest.fail("gone")).frames_received == 1000)
        assert not s.endpoint.pending()


def test_small_writes_that_nothing_answers_are_held_back_unless_the_peer_takes_them() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        s.endpoint.count_only(near)

        def write(count: int) -> float:
            began = time.monotonic()
            for _ in range(count):
                h.endpoint.send(far, [b"x"])
                while (h.endpoint.stats(far) or pytest.fail("gone")).queued_bytes > 0:
                    assert time.monotonic() - began < PATIENCE
                    time.sleep(0)
            return time.monotonic() - began

        held = write(256 + 200)
        assert held >= 199 * 0.005
        h.endpoint.write_at_once(far)
        assert write(256 + 200) < held
        h.endpoint.write_at_once(999)


def test_a_port_in_use_is_named() -> None:
    with hub() as h:
        (taken,) = h.endpoint.addrs()
        with pytest.raises(BindError, match=f"cannot bind {taken}: Address already in use"):
            Node(bind=taken)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(BindError, match=r"cannot bind 192\.0\.2\.1:0.*\nthis machine has no such address"):
        Node(bind="192.0.2.1:0")


def test_the_port_is_free_again_after_close() -> None:
    with hub() as h:
        (address,) = h.endpoint.addrs()
    with hub(bind=address) as again:
        assert again.endpoint.addrs() == [address]


@pytest.mark.parametrize(
    "options",
    [
        {"secret": b"short"},
        {"bind": "nowhere"},
        {"bind": "127.0.0.1"},
        {"relay_urls": ["not a url"]},
        {"open_timeout": 0.0},
        {"idle_timeout": -1.0},
        {"frame_timeout": float("nan")},
        {"max_frame_bytes": 0},
    ],
)
def test_malformed_arguments(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Node(**options)  # type: ignore[arg-type]


def test_malformed_dials() -> None:
    with node() as s:
        with pytest.raises(ValueError, match="not a NodeId"):
            s.endpoint.dial(1, "xyz", [])
        with pytest.raises(ValueError, match="not ip:port"):
            s.endpoint.dial(1, s.node_id, ["localhost"])


def test_an_endpoint_on_all_interfaces_names_them() -> None:
    with hub(bind="0.0.0.0:0") as h:
        addresses = h.endpoint.addrs()
        assert addresses
        assert all(not address.startswith("0.0.0.0") for address in addresses)


def test_ipv6() -> None:
    with hub(bind="[::1]:0") as h, node(bind="[::1]:0") as s:
        assert h.endpoint.addrs()[0].startswith("[::1]:")
        connect(s, h)


def test_keys() -> None:
    secret = ext.generate_secret()
    me = ext.node_id(secret)
    assert (len(secret), len(me)) == (32, 64)
    signature = ext.sign(secret, b"message")
    assert len(signature) == 64
    assert ext.verify(me, b"message", signature)
    assert not ext.verify(me, b"another", signature)
    assert not ext.verify(ext.node_id(ext.generate_secret()), b"message", signature)
    assert not ext.verify("nonsense", b"message", signature)
    assert not ext.verify(me, b"message", b"short")
    for call in (ext.node_id, lambda key: ext.sign(key, b"")):
        with pytest.raises(ValueError, match="32 bytes, not 5"):
            call(b"short")
