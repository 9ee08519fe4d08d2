"""An endpoint that was made anew for its relays: what goes where, what ends, what is counted, what is left behind."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from broker import _gossip_ext as ext
from broker.errors import Closed
from broker.relay import RelayServer
from tests.ext.pair import Node, connect, hub, node, wait_until
from tests.ext.swarms import ID, TOPIC
from tests.relay.stage import Stage
from tests.rig import Pkarr, until

pytestmark = pytest.mark.timeout(120)

RETRIED = 60.0
"""Patience with iroh, which tries again to reach a relay after 16 s at most."""
T = TypeVar("T")
GOING_AWAY, REFUSED, BANNED = 1, 32, 33


def with_relay(stage: Stage, relay: RelayServer) -> dict[str, Any]:
    return {"relay_urls": [relay.url], "relay_ca": stage.authority.file.read_bytes()}


def connected(one: Node) -> bool:
    return (home := one.endpoint.home_relay()) is not None and home[1]


@contextmanager
def at_home(stage: Stage, relay: RelayServer, **options: Any) -> Iterator[Node]:
    """A hub that is connected to the relay."""
    with hub(**with_relay(stage, relay), **options) as made:
        wait_until(lambda: connected(made))
        yield made


@contextmanager
def apart(stage: Stage, relay: RelayServer, **options: Any) -> Iterator[Node]:
    """A node that no direct path leads to."""
    with node(bind="[::1]:0", **with_relay(stage, relay), **options) as made:
        yield made


def told(question: Callable[[], T | None]) -> T:
    """The first answer."""
    answers: list[T] = []

    def asked() -> bool:
        if (answer := question()) is not None:
            answers.append(answer)
        return bool(answers)

    wait_until(asked)
    return answers[0]


def rebuild(one: Node) -> None:
    one.endpoint.rebuild()
    assert told(one.endpoint.rebuilt) == ""
    wait_until(lambda: connected(one))


def sockets(one: Node) -> list[str]:
    return one.endpoint.overview([]).sockets


def by_relay(spoke: Node, to: Node, relay: RelayServer) -> tuple[int, int]:
    """Connects, and gives the connection's id on either side."""
    spoke.endpoint.dial(7, to.node_id, [], [relay.url])
    near = int(spoke.wait(ext.OPENED)[1])
    assert spoke.endpoint.send(near, b"hello")
    far = int(to.wait(ext.OPENED)[1])
    assert to.frames(far, 1) == [b"hello"]
    assert (stats := to.endpoint.stats(far)) is not None
    assert stats.path == "relay"
    return near, far


def free(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def speaks(spoke: Node, near: int, to: Node, far: int) -> None:
    assert spoke.endpoint.send(near, b"there")
    assert to.frames(far, 1) == [b"there"]
    assert to.endpoint.send(far, b"and back")
    assert spoke.frames(near, 1) == [b"and back"]


async def test_what_is_direct_stays_and_what_is_new_by_relay_comes_to_another_socket(stage: Stage) -> None:
    async with stage.relay() as relay:
        with at_home(stage, relay) as h, node() as near, node() as newcomer, apart(stage, relay) as far:
            stays = connect(near, h)
            before, addrs = sockets(h), h.endpoint.addrs()
            rebuild(h)
            assert sockets(h)[:1] == before
            assert len(sockets(h)) == 2
            assert h.endpoint.addrs() == addrs
            assert h.endpoint.relay_urls() == [f"{relay.url}/"]
            comes = by_relay(far, h, relay)
            speaks(far, comes[0], h, comes[1])
            speaks(near, stays[0], h, stays[1])
            connect(newcomer, h)
            assert ext.CLOSED not in h.kinds() + near.kinds()
            h.endpoint.probe(relay.url, 10.0)
            assert told(h.endpoint.probed)[0] == "ok"


async def test_bound_to_all_addresses_it_is_dialled_at_its_port_and_where_relays_see_the_other(stage: Stage) -> None:
    async with stage.relay() as relay:
        with at_home(stage, relay, bind="0.0.0.0:0") as h:  # the relay sees loopback, which is no interface's here
            interfaces = {address for address in h.endpoint.addrs() if not address.startswith("127.")}
            rebuild(h)
            seen = "127.0.0.1:" + sockets(h)[1].rsplit(":", 1)[1]
            wait_until(lambda: seen in h.endpoint.addrs())
            assert set(h.endpoint.addrs()) == interfaces | {seen}
            for address in h.endpoint.addrs():
                with node() as newcomer:
                    newcomer.endpoint.dial(1, h.node_id, [address])
                    newcomer.wait(ext.OPENED)


async def test_who_goes_by_relay_is_told_and_comes_back(stage: Stage) -> None:
    async with stage.relay() as relay:
        with at_home(stage, relay) as h, apart(stage, relay) as far:
            gone, _ = by_relay(far, h, relay)
            rebuild(h)
            _, conn, code, reason, remote = far.wait(ext.CLOSED)
            assert (conn, code, remote) == (gone, 0, True)
            assert "relays anew" in reason
            by_relay(far, h, relay)
            assert h.endpoint.counters()["relay_cut"] == 1


async def test_a_second_time_replaces_the_other_socket_and_no_count_goes_back(stage: Stage) -> None:
    async with stage.relay() as relay:
        with (
            at_home(stage, relay) as h,
            node() as near,
            node(**with_relay(stage, relay)) as moves,
            apart(stage, relay) as far,
        ):
            stays = connect(near, h)
            rebuild(h)
            by_relay(far, h, relay)
            moves.endpoint.dial(7, h.node_id, [], [relay.url])
            ends = int(moves.wait(ext.OPENED)[1])
            assert moves.endpoint.send(ends, b"hello")
            h.wait(ext.OPENED)
            wait_until(lambda: (stats := moves.endpoint.stats(ends)) is not None and stats.path == "direct")
            assert (stats := moves.endpoint.stats(ends)) is not None
            assert stats.remote_addr == sockets(h)[1]
            before, counted = sockets(h), [h.endpoint.counters()]
            rebuild(h)
            assert moves.wait(ext.CLOSED)[1:4] == (ends, GOING_AWAY, "going away")
            far.wait(ext.CLOSED)

            def replaced() -> bool:
                counted.append(h.endpoint.counters())
                return len(sockets(h)) == 2 and sockets(h)[1] != before[1]

            wait_until(replaced)
            assert sockets(h)[0] == before[0]
            counted.append(h.endpoint.counters())
            now = {"gossip_connections"}
            for sooner, later in pairwise(counted):
                assert {name for name in sooner.keys() - now if later[name] < sooner[name]} == set()
            speaks(near, stays[0], h, stays[1])
            by_relay(far, h, relay)


async def test_closing_leaves_no_port_and_no_task(stage: Stage) -> None:
    async with stage.relay() as relay:
        before = ext.runtime_stats()["alive_tasks"]
        for times in (1, 2):
            with at_home(stage, relay) as h:
                for _ in range(times):
                    rebuild(h)
                bound = sockets(h)
            assert len(bound) >= 2
            assert free(bound[0])
            wait_until(lambda: all(map(free, bound)))  # noqa: B023 - it is called here
            with pytest.raises(Closed):
                h.endpoint.rebuild()
            assert sockets(h) == []
            wait_until(lambda: ext.runtime_stats()["alive_tasks"] <= before)


async def test_closing_at_once_leaves_nothing_either(stage: Stage) -> None:
    async with stage.relay() as relay:
        with at_home(stage, relay) as h:
            h.endpoint.rebuild()
            bound = h.endpoint.addrs()
        assert sockets(h) == []
        assert all(map(free, bound))


async def test_admission_is_one_for_both(stage: Stage) -> None:
    async with stage.relay() as relay:
        with (
            at_home(stage, relay, open=False) as h,
            node() as near,
            node() as stranger,
            apart(stage, relay) as far,
            apart(stage, relay) as far_stranger,
        ):
            h.endpoint.admit(open=False, allow=[near.node_id, far.node_id], deny=[])
            direct = connect(near, h)[1]
            rebuild(h)
            relayed = by_relay(far, h, relay)[1]
            stranger.endpoint.dial(1, h.node_id, h.endpoint.addrs())
            far_stranger.endpoint.dial(1, h.node_id, [], [relay.url])
            for refused in (stranger, far_stranger):
                item = refused.wait(ext.CLOSED, ext.DIAL_FAILED)
                assert REFUSED in item
            ended = h.endpoint.admit(open=False, allow=[], deny=[near.node_id, far.node_id])
            assert sorted(ended) == sorted([direct, relayed])
            assert (near.wait(ext.CLOSED)[2], far.wait(ext.CLOSED)[2]) == (BANNED, BANNED)


async def test_gossip_goes_by_the_socket_that_has_the_relays_in_both_directions(stage: Stage) -> None:
    async with stage.relay() as relay:
        options = {"gossip_message_bytes": 4096, "accept": True, "open": True}
        for dials in ("hub", "peer"):
            with at_home(stage, relay, gossip_message_bytes=4096) as h, apart(stage, relay, **options) as far:
                wait_until(lambda: connected(far))
                rebuild(h)
                for one, other in ((h, far), (far, h)):
                    one.endpoint.admit_peers([other.node_id])
                    one.endpoint.learn(other.node_id, [], [relay.url])
                waits, goes = (far, h) if dials == "hub" else (h, far)
                swarms = [
                    waits.endpoint.join(TOPIC, ID, []),
                    goes.endpoint.join(TOPIC, ID, [waits.node_id]),
                ]
                wait_until(lambda: all(swarm.neighbours() for swarm in swarms))  # noqa: B023 - as above


async def test_the_first_socket_does_not_come_back_to_a_relay_that_comes_back(stage: Stage) -> None:
    async with stage.relay() as relay:
        address = relay.relay.address()
        with at_home(stage, relay) as h, apart(stage, relay) as far:
            rebuild(h)
            await asyncio.to_thread(relay.relay.close)
            wait_until(lambda: not connected(h))
            async with stage.relay(bind=address) as again:
                wait_until(lambda: connected(h), RETRIED)
                failed = h.endpoint.counters()["relay_connects_failed"]
                wait_until(lambda: h.endpoint.counters()["relay_connects_failed"] > failed, RETRIED)
                by_relay(far, h, again)
                wait_until(lambda: again.relay.counters()["clients"] == 2)
                assert again.relay.counters()["connections"] == 2


async def test_a_lookup_service_is_told_where_the_socket_that_has_the_relays_is(stage: Stage) -> None:
    async with stage.relay() as relay, Pkarr.on_loopback() as (pkarr, url):
        with at_home(stage, relay, lookup=url) as h:

            def said(address: str) -> bool:
                return any(address.encode() in record for record in pkarr.records.values())

            (first,) = sockets(h)
            await until(lambda: said(first))
            h.endpoint.rebuild()
            await until(lambda: len(sockets(h)) == 2)
            second = sockets(h)[1]
            await until(lambda: said(second) and said(relay.url))
            assert not said(first)


async def test_what_goes_wrong_is_told_and_changes_nothing(stage: Stage) -> None:
    async with stage.relay() as relay:
        with at_home(stage, relay) as h, apart(stage, relay) as far:
            by_relay(far, h, relay)
            before, limits = sockets(h), resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                h.endpoint.rebuild()
                error = told(h.endpoint.rebuilt)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert "Too many open files" in error
            assert h.endpoint.rebuilt() is None
            assert sockets(h) == before
            rebuild(h)
            by_relay(far, h, relay)


def test_an_endpoint_without_relays_has_none_to_be_made_anew_for() -> None:
    with hub() as h:
        with pytest.raises(RuntimeError, match="has no relays"):
            h.endpoint.rebuild()
        assert h.endpoint.rebuilt() is None
        assert h.endpoint.lost_relays() == []


async def test_an_endpoint_with_several_relays_says_which_one_is_gone(stage: Stage) -> None:
    async with stage.relay() as one, stage.relay() as other:
        options = with_relay(stage, one) | {"relay_urls": [one.url, other.url]}
        with hub(**options) as h:
            wait_until(lambda: connected(h))
            dies = one if h.endpoint.relay_urls() == [f"{one.url}/"] else other
            assert h.endpoint.lost_relays() == []
            await asyncio.to_thread(dies.relay.close)
            assert told(lambda: h.endpoint.lost_relays() or None) == [f"{dies.url}/"]
            assert h.endpoint.lost_relays() == []
