"""Fan-out: the same bytes to many connections, and one that does not read."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from broker import _gossip_ext as ext
from tests.ext.pair import connect, hub, node, wait_until


def test_every_member_gets_every_frame_in_order() -> None:
    with ExitStack() as stack:
        h = stack.enter_context(hub(topics_queue_bytes=8_000_000))
        spokes = [stack.enter_context(node()) for _ in range(5)]
        ends = [connect(spoke, h) for spoke in spokes]
        group = h.endpoint.group()
        assert all(group.add(far) for _, far in ends)
        assert sorted(group.members()) == sorted(far for _, far in ends)
        events = [b"%d" % number * 100 for number in range(3000)]
        for start in range(0, len(events), 100):
            assert group.send(events[start : start + 100]) == []
        for spoke, (near, _) in zip(spokes, ends, strict=True):
            assert spoke.frames(near, len(events)) == events


def test_a_member_that_does_not_read_leaves_and_the_others_do_not_notice() -> None:
    with hub(topics_queue_bytes=300_000) as h, node(inbox_bytes=100_000) as deaf, node() as fine:
        deaf_near, deaf_far = connect(deaf, h)
        fine_near, fine_far = connect(fine, h)
        group = h.endpoint.group()
        group.add(deaf_far)
        group.add(fine_far)
        sent = 0
        left: list[int] = []
        while not left:
            left = group.send([b"%08d" % sent + b"." * 20_000])
            sent += 1
            assert sent < 2000, "no bound"
            fine.frames(fine_near, 1)
        assert left == [deaf_far]
        assert group.members() == [fine_far]
        assert deaf_far not in group
        assert h.endpoint.counters()["lane_full"] == 1
        # It reads again: DRAINED follows, it has all but the one that was refused, and may join again.
        got = deaf.frames(deaf_near, sent - 1)
        assert [int(frame[:8]) for frame in got] == list(range(sent - 1))
        assert h.wait(ext.DRAINED)[1] == deaf_far
        assert group.add(deaf_far)


def test_a_connection_that_ends_leaves() -> None:
    with hub() as h, node() as s, node() as other:
        near, far = connect(s, h)
        _, other_far = connect(other, h)
        group = h.endpoint.group()
        assert group.add(far)
        assert group.add(other_far)
        assert len(group) == 2
        s.endpoint.close_connection(near, 0, "")
        h.wait(ext.CLOSED, conn=far)
        assert group.members() == [other_far]
        assert group.send([b"x"]) == []
        assert not group.add(far)
        assert not group.remove(far)
        assert group.remove(other_far)
        assert len(group) == 0


def test_what_is_packed_goes_to_one_after_the_other_and_keeps_its_place() -> None:
    with ExitStack() as stack:
        h = stack.enter_context(hub())
        spokes = [stack.enter_context(node()) for _ in range(3)]
        ends = [connect(spoke, h) for spoke in spokes]
        events = [b"%d" % number + b"." * (number * 7 % 3000) for number in range(200)]
        packed = h.endpoint.pack(events)
        for spoke, (near, far) in zip(spokes, ends, strict=True):
            for lane in (ext.TOPICS, ext.CALLS):
                assert h.endpoint.send(far, b"first", lane)
                assert h.endpoint.send(far, packed, lane)
                assert h.endpoint.send(far, [b"last"], lane)
                assert spoke.frames(near, len(events) + 2) == [b"first", *events, b"last"]
            stats = h.endpoint.stats(far)
            assert stats is not None
            assert stats.frames_sent == 2 * (len(events) + 2)


def test_what_is_packed_is_taken_as_a_whole_or_not_at_all() -> None:
    with hub(topics_queue_bytes=300_000) as h, node(inbox_bytes=100_000) as deaf:
        near, far = connect(deaf, h)
        packed = h.endpoint.pack([b"a" * 40_000, b"b" * 40_000])
        sent = 0
        while h.endpoint.send(far, packed, ext.TOPICS):
            sent += 1
            assert sent < 1000, "no bound"
        assert h.endpoint.counters()["lane_full"] == 1
        assert [frame[:1] for frame in deaf.frames(near, 2 * sent)] == [b"a", b"b"] * sent
        assert h.wait(ext.DRAINED)[1] == far
        assert h.endpoint.send(far, packed, ext.TOPICS)
        deaf.endpoint.close_connection(near, 0, "")
        h.wait(ext.CLOSED, conn=far)
        assert not h.endpoint.send(far, packed, ext.TOPICS)


def test_only_what_can_be_sent_is_packed() -> None:
    with hub(max_frame_bytes=100) as h:
        for wrong in ([b"x", b""], [b"x" * 101]):
            with pytest.raises(ValueError, match=r"empty|above max_frame_bytes"):
                h.endpoint.pack(wrong)
        with pytest.raises(TypeError):
            h.endpoint.pack(["text"])  # type: ignore[list-item]


def test_groups_and_sends_keep_one_order() -> None:
    with hub() as h, node() as s:
        near, far = connect(s, h)
        group = h.endpoint.group()
        group.add(far)
        for number in range(0, 300, 3):
            h.endpoint.send(far, b"%d" % number, ext.TOPICS)
            group.send([b"%d" % (number + 1), b"%d" % (number + 2) + b" " * 2000])
        assert [int(frame) for frame in s.frames(near, 300)] == list(range(300))


def test_what_a_group_refuses() -> None:
    with hub(max_frame_bytes=100) as h:
        group = h.endpoint.group()
        assert group.send([]) == []
        with pytest.raises(ValueError, match="empty payload"):
            group.send([b""])
        with pytest.raises(ValueError, match="max_frame_bytes"):
            group.send([b"x" * 101])
        assert not group.add(42)


def test_many_members() -> None:
    with hub() as h, node() as s:
        group = h.endpoint.group()
        ends = [connect(s, h) for _ in range(100)]
        for near, far in ends:
            assert group.add(far)
            s.endpoint.count_only(near)
        for _ in range(20):
            assert group.send([b"e" * 256] * 10) == []
        wait_until(lambda: s.endpoint.counters()["frames_in"] == 20_000)
