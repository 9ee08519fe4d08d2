"""The contract, held by the targets that are all ours: memory, and iroh on loopback with both factories."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from broker.errors import Closed, ConnectionLost, Refused, TicketError, Unreachable
from broker.protocol.codec import encode
from broker.targets import (
    CLOSE,
    Event,
    IrohEndpoint,
    create_hub_iroh_event_target,
    create_spoke_iroh_event_target,
    iroh_endpoint,
)
from tests.contract.contract import EventTargetContract, RemoteEventTargetContract
from tests.contract.links import PATIENCE, Ear, Link, RemoteLink, memory_link, our_connections, our_link
from tests.rig import until


class TestMemory(EventTargetContract):
    def make(self) -> AbstractAsyncContextManager[Link]:
        return memory_link()


class TestIroh(RemoteEventTargetContract):
    def make(self) -> AbstractAsyncContextManager[RemoteLink]:
        return our_link()


async def refusal(spoke: IrohEndpoint, ticket: str) -> Refused | ConnectionLost:
    """How the dialler hears it: it may come before its stream is open, or after."""
    try:
        target = await create_spoke_iroh_event_target(await spoke.connect(ticket))
    except Refused as refused:
        return refused
    [close] = await Ear(target, CLOSE).hears()
    assert isinstance(close.detail.error, ConnectionLost)
    return close.detail.error


class TestIrohEndpoint:
    async def test_a_ticket_is_all_that_a_dialler_needs(self) -> None:
        hub = await IrohEndpoint.bind(accept=True, open=True)
        async with hub, await IrohEndpoint.bind() as spoke:
            connection = await spoke.connect(hub.ticket)
            assert (connection.remote_node_id(), connection.incoming) == (hub.node_id, False)
            async with await create_spoke_iroh_event_target(connection) as target:
                target.dispatch_event(Event("hub.register", {}))
                accepted = await hub.accept()
                assert (accepted.remote_node_id(), accepted.incoming) == (spoke.node_id, True)
                assert (stats := accepted.stats()) is not None
                assert stats.path == "direct"

    async def test_the_wrong_factory_is_refused_at_once(self) -> None:
        async with our_connections() as (dialled, accept):
            with pytest.raises(ValueError, match="create_spoke_iroh_event_target"):
                await create_hub_iroh_event_target(dialled)
            with pytest.raises(TypeError, match="frame_timeout"):
                await create_spoke_iroh_event_target(dialled, frame_timeout=1)
            target = await create_spoke_iroh_event_target(dialled)
            with pytest.raises(ValueError, match="already"):
                await create_spoke_iroh_event_target(dialled)
            target.dispatch_event(Event("hub.register", {}))
            with pytest.raises(ValueError, match="create_hub_iroh_event_target"):
                await create_spoke_iroh_event_target(await accept())

    async def test_events_wait_for_the_first_listener(self) -> None:
        async with our_link() as link:
            for i in range(100):
                assert link.spoke.dispatch_event(Event("t", i))
            probe = Ear(link.spoke, "probe.answer")
            register, ear = Ear(link.hub, "hub.register"), Ear(link.hub, "t")
            await ear.hears(100)
            assert ear.details == list(range(100))
            assert len(register.events) == 1
            assert probe.events == []

    async def test_who_is_not_admitted_is_refused(self) -> None:
        hub = await IrohEndpoint.bind(accept=True)
        async with hub, await IrohEndpoint.bind() as spoke:
            refused = await refusal(spoke, hub.ticket)
            assert (refused.close_code or 0, refused.reason.partition(":")[0]) == (32, "not admitted")

    async def test_nobody_there_is_unreachable(self) -> None:
        gone = await IrohEndpoint.bind(accept=True, open=True)
        node_id, addrs = gone.node_id, gone.addrs()
        await gone.close()
        async with await IrohEndpoint.bind() as spoke:
            with pytest.raises(Unreachable):
                await spoke.connect(node_id, addrs, dial_timeout=0.5)
            with pytest.raises(TicketError):
                await spoke.connect(node_id)

    async def test_closing_ends_everything_that_waits(self) -> None:
        async with our_connections() as (dialled, _accept):
            target = await create_spoke_iroh_event_target(dialled)
            ear = Ear(target, CLOSE)
            await dialled._owner.close()
            await dialled._owner.close()
            [close] = await ear.hears()
            assert (close.detail.code, close.detail.remote, close.detail.error) == (1, False, None)
            with pytest.raises(Closed):
                await dialled._owner.connect("0" * 64, ["127.0.0.1:1"])
            with pytest.raises(Closed):
                await dialled._owner.accept()

    async def test_what_nobody_listens_to_is_kept_in_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(iroh_endpoint, "HELD_BYTES", 1_000)
        async with our_connections() as (dialled, accept), await create_spoke_iroh_event_target(dialled) as spoke:
            closes = Ear(spoke, CLOSE)
            spoke.dispatch_event(Event("hub.register", {}))
            accepted = await accept()
            spoke.dispatch_event(Event("t", "x" * 2_000))
            [close] = await closes.hears()
            assert (close.detail.code, close.detail.remote) == (38, True)
            ear = Ear(await create_hub_iroh_event_target(accepted), "hub.register", CLOSE)
            await ear.hears(2)
            assert [event.type for event in ear.events] == ["hub.register", CLOSE]

    async def test_of_frames_that_come_together_those_before_the_one_without_room_are_kept(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(iroh_endpoint, "HELD_BYTES", 1_000)
        async with our_connections() as (dialled, accept), await create_spoke_iroh_event_target(dialled) as spoke:
            spoke.dispatch_event(Event("hub.register", {}))
            accepted = await accept()
            await until(lambda: accepted._held)
            accepted.frames([encode("a", 1), encode("b", "x" * 2_000), encode("c", 3)])
            accepted.frames([encode("d", 4)])
            ear = Ear(await create_hub_iroh_event_target(accepted), "hub.register", "a", "b", "c", "d", CLOSE)
            await ear.hears(3)
            assert [event.type for event in ear.events] == ["hub.register", "a", CLOSE]

    async def test_connections_that_nobody_takes_are_kept_in_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(iroh_endpoint, "ACCEPT_BACKLOG", 1)
        hub = await IrohEndpoint.bind(accept=True, open=True)
        async with hub, await IrohEndpoint.bind() as spoke:
            closes = []
            for _ in range(2):
                target = await create_spoke_iroh_event_target(await spoke.connect(hub.ticket))
                closes.append(Ear(target, CLOSE))
                target.dispatch_event(Event("hub.register", {}))
            async with asyncio.timeout(PATIENCE):
                waiting = [asyncio.create_task(ear.hears()) for ear in closes]
                done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result()[0].detail.code for task in done] == [40]
            for task in pending:
                task.cancel()

    async def test_a_dial_that_is_given_up_leaves_nothing(self) -> None:
        async with our_connections() as (dialled, _), await IrohEndpoint.bind() as spoke:
            dial = asyncio.create_task(spoke.connect(dialled.remote_node_id(), ["127.0.0.1:9"]))
            await asyncio.sleep(0)
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial
            assert spoke._dials == {}
