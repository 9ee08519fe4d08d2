"""Who may connect: sets given from Python, asked in Rust, without a trace in the inbox."""

from __future__ import annotations

import iroh
import pytest

from broker import _gossip_ext as ext
from tests.ext import raw
from tests.ext.pair import Node, connect, hub, node, wait_until


def refused(s: Node, h: Node) -> tuple[int | None, str]:
    """The code and reason with which ``h`` turns ``s`` away."""
    s.endpoint.dial(9, h.node_id, h.endpoint.addrs())
    item = s.wait(ext.DIAL_FAILED, ext.OPENED)
    if item[0] == ext.DIAL_FAILED:
        assert item[2] == "refused"
        return item[3], item[4]
    closed = s.wait(ext.CLOSED, conn=item[1])
    assert closed[4] is True
    return closed[2], closed[3]


def test_nobody_is_admitted_unless_named() -> None:
    with hub(open=False) as h, node() as s:
        code, reason = refused(s, h)
        assert code == 32
        assert reason == f"not admitted: NodeId {s.node_id} is not on this node's allow list"
        assert h.endpoint.admit(open=False, allow=[s.node_id], deny=[]) == []
        connect(s, h)
        counters = h.endpoint.counters()
        assert (counters["refused_not_admitted"], counters["accepted"]) == (1, 1)


def test_deny_beats_allow_and_open() -> None:
    with hub() as h, node() as s:
        h.endpoint.admit(open=True, allow=[s.node_id], deny=[s.node_id])
        assert refused(s, h) == (33, "banned: this NodeId is on this node's deny list")
        assert h.endpoint.counters()["refused_banned"] == 1
        assert not h.endpoint.pending()
        assert h.items == []


def test_a_change_closes_live_connections_that_it_no_longer_admits() -> None:
    with hub() as h, node() as first, node() as second:
        near, far = connect(first, h)
        near2, far2 = connect(second, h)
        assert h.endpoint.admit(open=False, allow=[second.node_id], deny=[]) == [far]
        assert first.wait(ext.CLOSED)[1:3] == (near, 32)
        assert h.wait(ext.CLOSED)[1:3] == (far, 32)
        assert h.endpoint.admit(open=True, allow=[], deny=[second.node_id]) == [far2]
        assert second.wait(ext.CLOSED)[1:3] == (near2, 33)


def test_the_allow_set_is_for_those_who_dial_us() -> None:
    with hub() as h, node() as s:
        s.endpoint.admit(open=False, allow=[], deny=[])
        connect(s, h)


def test_a_dial_to_a_denied_node_is_refused_here() -> None:
    with hub() as h, node() as s:
        s.endpoint.admit(open=False, allow=[], deny=[h.node_id])
        assert refused(s, h) == (33, "the peer is on this node's own deny list")


def test_a_malformed_node_id_changes_nothing() -> None:
    with hub() as h, node() as s:
        with pytest.raises(ValueError, match="not a NodeId"):
            h.endpoint.admit(open=False, allow=["xyz"], deny=[])
        connect(s, h)


async def test_a_refused_peer_of_another_make_costs_no_python() -> None:
    with hub(open=False) as h:
        async with raw.peer() as peer:
            connections = [await raw.connect(peer, h) for _ in range(3)]
            for connection in connections:
                assert "not admitted" in await raw.closed(connection)
        wait_until(lambda: h.endpoint.counters()["refused_not_admitted"] == 3)
        assert not h.endpoint.pending()


async def test_an_unknown_protocol_is_refused() -> None:
    with hub() as h:
        async with raw.peer() as peer:
            with pytest.raises(iroh.IrohError):
                await raw.connect(peer, h, b"other/1")
        assert not h.endpoint.pending()
