"""What every event target keeps, as base classes: a transport passes by inheriting them and saying how its ends are
made.

``EventTargetContract`` is for all; ``RemoteEventTargetContract`` adds what only a target with a peer can have. The
tests wait for events, with a deadline, and never for time.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from broker.errors import Closed, ConnectionLost, EventTooLarge, SlowConsumer, TopicError
from broker.targets import CLOSE, DRAIN, ERROR, Event, create_pubsub, filter, map, pipe
from tests.contract.links import PATIENCE, Ear, Link, RemoteLink, dispatch

JSON_VALUES = [
    None, True, 0, -1, 2**53, 1.5, "", "naïve ☃ \u0000 \\ \"", [], {}, [1, [2, [3]]], {"a": {"b": [None, {"c": "d"}]}},
    {"type": "call.requested", "detail": {}}, "x" * 100_000,
]  # fmt: skip


class EventTargetContract:
    """Needs :meth:`make`."""

    def make(self) -> AbstractAsyncContextManager[Link]:
        raise NotImplementedError

    @pytest.fixture
    async def link(self) -> AsyncIterator[Link]:
        async with self.make() as link:
            yield link

    # Events.

    async def test_what_one_side_dispatches_the_other_hears(self, link: Link) -> None:
        at_hub, at_spoke = Ear(link.hub, "orders.created"), Ear(link.spoke, "orders.shipped")
        assert link.spoke.dispatch_event(Event("orders.created", {"id": 7}))
        assert link.hub.dispatch_event(Event("orders.shipped", {"id": 8}))
        assert await at_hub.hears() == [Event("orders.created", {"id": 7})]
        assert await at_spoke.hears() == [Event("orders.shipped", {"id": 8})]

    async def test_every_json_value_arrives_as_it_was(self, link: Link) -> None:
        ear = Ear(link.hub, "value")
        for value in JSON_VALUES:
            await dispatch(link.spoke, Event("value", value))
        await ear.hears(len(JSON_VALUES))
        assert ear.details == JSON_VALUES

    async def test_meta_travels_and_none_stays_none(self, link: Link) -> None:
        ear = Ear(link.hub, "t")
        meta = {"author": "a" * 64, "epoch": "0123456789abcdef", "seq": 1}
        link.spoke.dispatch_event(Event("t", 1, meta))
        link.spoke.dispatch_event(Event("t", 2))
        assert [event.meta for event in await ear.hears(2)] == [meta, None]

    async def test_order_is_kept_over_types(self, link: Link) -> None:
        ear = Ear(link.hub, "a", "b.c", "call.responded")
        types = ["a", "b.c", "call.responded"]
        for i in range(3_000):
            await dispatch(link.spoke, Event(types[i % 3], i))
        await ear.hears(3_000)
        assert ear.details == list(range(3_000))

    async def test_an_unreliable_event_is_an_event(self, link: Link) -> None:
        ear = Ear(link.hub, "t")
        async with asyncio.timeout(PATIENCE):
            while not ear.events:  # it may be lost, so one is sent until one is heard
                assert link.spoke.dispatch_event(Event("t", "u"), reliable=False)
                for _ in range(100):
                    await asyncio.sleep(0)
        assert ear.events[0] == Event("t", "u")

    async def test_a_type_that_is_no_topic_is_refused_at_once(self, link: Link) -> None:
        for type in ("", "a b", "a..b", "ü", "a.>.b"):
            with pytest.raises(TopicError):
                link.spoke.add_event_listener(type, print)
            with pytest.raises(TopicError):
                link.spoke.dispatch_event(Event(type))
        with pytest.raises(TopicError):
            link.spoke.dispatch_event(Event("orders.*"))

    async def test_local_types_are_not_dispatched(self, link: Link) -> None:
        for type in (ERROR, CLOSE, DRAIN):
            with pytest.raises(ValueError, match=type):
                link.spoke.dispatch_event(Event(type))

    # Listeners.

    async def test_a_listener_added_twice_hears_once_and_two_hear_in_order(self, link: Link) -> None:
        heard: list[str] = []
        last = Ear(link.hub)

        def first(event: Event) -> None:
            heard.append("first")

        for listener in (first, first, lambda event: heard.append("second"), last):
            link.hub.add_event_listener("t", listener)
        link.spoke.dispatch_event(Event("t"))
        await last.hears()
        assert heard == ["first", "second"]

    async def test_a_removed_listener_hears_nothing(self, link: Link) -> None:
        gone, stays = Ear(link.hub, "t"), Ear(link.hub, "t")
        link.hub.remove_event_listener("t", gone)
        link.hub.remove_event_listener("t", gone)
        link.hub.remove_event_listener("never.added", gone)
        link.spoke.dispatch_event(Event("t"))
        await stays.hears()
        assert gone.events == []

    async def test_a_listener_may_remove_itself_and_others_while_it_is_called(self, link: Link) -> None:
        gone, last = Ear(link.hub), Ear(link.hub)
        calls: list[Any] = []

        def once(event: Event) -> None:
            calls.append(event.detail)
            link.hub.remove_event_listener("t", once)
            link.hub.remove_event_listener("t", gone)

        for listener in (once, gone, last):
            link.hub.add_event_listener("t", listener)
        for i in (1, 2):
            link.spoke.dispatch_event(Event("t", i))
        await last.hears(2)
        assert (calls, gone.events, last.details) == ([1], [], [1, 2])

    async def test_a_listener_that_raises_stops_nobody(self, link: Link, caplog: pytest.LogCaptureFixture) -> None:
        def bad(event: Event) -> None:
            raise RuntimeError("a bug of the program's")

        link.hub.add_event_listener("t", bad)
        ear = Ear(link.hub, "t")
        for i in (1, 2):
            link.spoke.dispatch_event(Event("t", i))
        await ear.hears(2)
        assert ear.details == [1, 2]
        assert "a bug of the program's" in caplog.text

    async def test_a_pattern_hears_its_topics_and_no_word_of_the_wire(self, link: Link) -> None:
        star, rest, done = Ear(link.hub, "orders.*"), Ear(link.hub, ">"), Ear(link.hub, "done")
        for type in ("orders.created", "orders", "orders.a.b", "call.requested", "hub.other", "__subscribe", "done"):
            link.spoke.dispatch_event(Event(type))
        await done.hears()
        assert [event.type for event in star.events] == ["orders.created"]
        assert [event.type for event in rest.events] == ["orders.created", "orders", "orders.a.b", "done"]

    # The end.

    async def test_closing_is_the_last_event_on_both_sides(self, link: Link) -> None:
        at_hub, at_spoke, errors = Ear(link.hub, CLOSE), Ear(link.spoke, CLOSE), Ear(link.hub, ERROR)
        await link.spoke.close()
        for heard in (await at_hub.hears(), await at_spoke.hears()):
            assert (heard[0].detail.code, heard[0].detail.error) == (0, None)
        assert errors.events == []
        for target in (link.hub, link.spoke):
            with pytest.raises((Closed, ConnectionLost)):
                target.dispatch_event(Event("t"))
            assert len(Ear(target, CLOSE).events) == 1, "who asks later is told at once"
        await link.spoke.close()

    async def test_what_was_dispatched_before_closing_arrives(self, link: Link) -> None:
        ear, closed = Ear(link.hub, "t"), Ear(link.hub, CLOSE)
        for i in range(500):
            assert link.spoke.dispatch_event(Event("t", i))
        await link.spoke.close()
        await closed.hears()
        assert ear.details == list(range(500))

    # Publish and subscribe.

    async def test_subscriptions_yield_details_or_events_until_the_target_closes(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)
        details, events = far.subscribe("orders.created"), far.events("orders.*")
        for i in range(3):
            assert near.publish("orders.created", i)
        await link.spoke.close()
        async with asyncio.timeout(PATIENCE):
            assert [detail async for detail in details] == [0, 1, 2]
            assert [event.type async for event in events] == ["orders.created"] * 3

    async def test_a_stopped_subscription_yields_nothing(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)
        ear = Ear(link.hub, "t")
        async with far.subscribe("t") as stopped:
            near.publish("t", 1)
            await ear.hears()
            assert stopped.queued == 1
        near.publish("t", 2)
        await ear.hears(2)
        assert [item async for item in stopped] == []

    async def test_break_unsubscribes(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)
        near.publish("t", 1)
        listeners = len(link.hub._listeners)
        subscription = pipe(far.subscribe("t"), map(lambda value: value), filter(lambda value: True))
        near.publish("t", 2)
        async with asyncio.timeout(PATIENCE):
            async for _ in subscription:
                break
        assert len(link.hub._listeners) == listeners + 2
        del subscription
        gc.collect()
        assert len(link.hub._listeners) == listeners

    async def test_a_reader_that_waits_is_woken_by_an_event_and_by_the_end(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)
        subscription = far.subscribe("t")
        async with asyncio.timeout(PATIENCE):
            first = asyncio.create_task(anext(subscription))
            await asyncio.sleep(0)
            near.publish("t", 1)
            assert await first == 1
            last = asyncio.create_task(anext(subscription, "over"))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await anext(subscription)
            await link.spoke.close()
            assert await last == "over"

    async def test_a_reader_that_falls_behind_is_told_what_it_missed(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)
        subscription, ear = far.subscribe("t", limit=10), Ear(link.hub, "t")
        for i in range(12):
            near.publish("t", i)
        await ear.hears(12)
        assert [await anext(subscription) for _ in range(10)] == list(range(10))
        with pytest.raises(SlowConsumer) as caught:
            await anext(subscription)
        assert caught.value.pending == 11
        assert [item async for item in subscription] == []

    async def test_operators_are_piped_from_left_to_right(self, link: Link) -> None:
        near, far = create_pubsub(link.spoke), create_pubsub(link.hub)

        async def late(value: int) -> bool:
            await asyncio.sleep(0)
            return value > 20

        stream = pipe(
            far.subscribe("t"), filter(lambda value: value % 2 == 0), map(lambda value: value * 10), filter(late)
        )
        for i in range(6):
            near.publish("t", i)
        await link.spoke.close()
        async with asyncio.timeout(PATIENCE):
            assert [value async for value in stream] == [40]


class RemoteEventTargetContract(EventTargetContract):
    """For targets with a peer behind them."""

    def make(self) -> AbstractAsyncContextManager[RemoteLink]:
        raise NotImplementedError

    @pytest.fixture
    async def remote(self) -> AsyncIterator[RemoteLink]:
        async with self.make() as link:
            yield link

    async def test_each_side_knows_who_the_other_is(self, remote: RemoteLink) -> None:
        assert len(remote.spoke.remote_node_id) == len(remote.hub.remote_node_id) == 64
        assert remote.spoke.remote_node_id != remote.hub.remote_node_id

    async def test_the_spokes_first_word_waits_for_a_listener(self, remote: RemoteLink) -> None:
        ear = Ear(remote.hub, "hub.register")
        assert (await ear.hears())[0].detail == {"operations": []}

    async def test_a_close_with_a_code_is_an_error_at_the_other_side(self, remote: RemoteLink) -> None:
        errors, closes = Ear(remote.spoke, ERROR), Ear(remote.spoke, CLOSE)
        subscription = create_pubsub(remote.spoke).subscribe("t")
        await remote.hub.close(34, "kicked")
        [close] = await closes.hears()
        assert (close.detail.code, close.detail.reason, close.detail.remote) == (34, "kicked", True)
        assert [type(error) for error in errors.details] == [ConnectionLost]
        assert errors.details[0] is close.detail.error
        assert (errors.details[0].close_code, errors.details[0].reason) == (34, "kicked")
        with pytest.raises(ConnectionLost, match="kicked"):
            await anext(subscription)
        with pytest.raises(ConnectionLost, match="kicked"):
            remote.spoke.dispatch_event(Event("t"))

    async def test_topics_are_counted_by_reference(self, remote: RemoteLink) -> None:
        ear = Ear(remote.hub, "__subscribe", "__unsubscribe", "probe.done")
        one, two = create_pubsub(remote.spoke), create_pubsub(remote.spoke)
        first, second = one.subscribe("orders.*"), two.subscribe("orders.*")
        remote.spoke.add_event_listener("call.requested", print)
        await first.aclose()
        create_pubsub(remote.spoke).publish("probe.done", "one left")
        await second.aclose()
        create_pubsub(remote.spoke).publish("probe.done", "none left")
        await ear.hears(4)
        assert [(event.type, event.detail) for event in ear.events] == [
            ("__subscribe", {"topics": ["orders.*"]}),
            ("probe.done", "one left"),
            ("__unsubscribe", {"topics": ["orders.*"]}),
            ("probe.done", "none left"),
        ]

    async def test_a_full_path_refuses_and_says_when_it_has_room(self, remote: RemoteLink) -> None:
        ear, drained = Ear(remote.hub, "t"), Ear(remote.spoke, DRAIN)
        filler, sent = "x" * 50_000, 0
        while remote.spoke.dispatch_event(Event("t", [sent, filler])):  # no await: nothing can leave Python meanwhile
            sent += 1
            assert sent < 10_000, "the queue has no bound"
        remote.spoke.add_event_listener("late.topic", print)  # its __subscribe is refused, and said later
        told = Ear(remote.hub, "__subscribe")
        await drained.hears()
        await dispatch(remote.spoke, Event("t", [sent, filler]))
        await ear.hears(sent + 1)
        assert [detail[0] for detail in ear.details] == list(range(sent + 1))
        assert [event.detail for event in await told.hears()] == [{"topics": ["late.topic"]}]

    async def test_the_largest_frame_passes_and_one_byte_more_is_refused(self, remote: RemoteLink) -> None:
        ear, limit = Ear(remote.hub, "t"), 1_048_576
        overhead = len('{"type":"t","detail":""}')
        await dispatch(remote.spoke, Event("t", "x" * (limit - overhead)))
        with pytest.raises(EventTooLarge) as caught:
            remote.spoke.dispatch_event(Event("t", "x" * (limit - overhead + 1)))
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        assert len((await ear.hears())[0].detail) == limit - overhead

    async def test_a_datagram_over_the_paths_size_names_the_limit(self, remote: RemoteLink) -> None:
        with pytest.raises(EventTooLarge) as caught:
            remote.spoke.dispatch_event(Event("t", "x" * 60_000), reliable=False)
        assert 1_000 < caught.value.limit < caught.value.size
        assert str(caught.value.limit) in str(caught.value)

    async def test_what_json_cannot_carry_is_refused(self, remote: RemoteLink) -> None:
        with pytest.raises(ValueError, match="JSON"):
            remote.spoke.dispatch_event(Event("t", object()))

    async def test_a_local_type_from_the_wire_reaches_nobody_and_is_answered(self, remote: RemoteLink) -> None:
        forged, complaint = Ear(remote.hub, ERROR, CLOSE), Ear(remote.spoke, "hub.error")
        remote.spoke._carrier.send(b'{"type":"__error","detail":"forged"}')
        [answer] = await complaint.hears()
        assert (answer.detail["code"], answer.detail["about"]) == ("UNKNOWN_TYPE", ERROR)
        Ear(remote.hub, "hub.register")
        assert forged.events == []

    @pytest.mark.parametrize(
        ("payload", "code"),
        [(b"\xff", 19), (b"{", 20), (b"[" * 2_000 + b"]" * 2_000, 20), (b"[]", 21), (b"{}", 22), (b'{"type":1}', 22)],
        ids=["utf8", "json", "nesting", "array", "no type", "type no string"],
    )
    async def test_a_bad_frame_ends_the_connection_with_its_code(
        self, remote: RemoteLink, payload: bytes, code: int
    ) -> None:
        errors, closes, theirs = Ear(remote.hub, ERROR), Ear(remote.hub, CLOSE), Ear(remote.spoke, CLOSE)
        remote.spoke._carrier.send(payload)
        [close] = await theirs.hears()
        assert (close.detail.code, close.detail.remote) == (code, True)
        [own] = await closes.hears()
        assert (own.detail.code, own.detail.remote, own.detail.error) == (code, False, errors.details[0])
        assert close.detail.reason == str(errors.details[0])

    async def test_a_bad_datagram_is_an_error_and_not_the_end(self, remote: RemoteLink) -> None:
        ear, errors = Ear(remote.hub, "t"), Ear(remote.hub, ERROR)
        async with asyncio.timeout(PATIENCE):
            while not errors.events:
                remote.spoke._carrier.send_datagram(b"[]")
                for _ in range(100):
                    await asyncio.sleep(0)
        await dispatch(remote.spoke, Event("t", 1))
        await ear.hears()
        assert errors.details[0].close_code == 21
