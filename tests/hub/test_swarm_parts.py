"""What a topic's swarm at the hub is made of, piece by piece: what waits, what is told, what is asked and of whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from broker import _gossip_ext as ext
from broker.hub import forwards, peers, swarm_members, swarms
from broker.hub.forwards import GOSSIP_HEADS, RUN_EVENTS, STREAM_HEADS, Forwards, Heads
from broker.hub.holes import DENIALS, REFILL_ASKS, REFILL_EVENTS, REFILL_PAUSE, Holes
from broker.protocol.sequence import Sequences
from tests.hub.gossips import EPOCH, a_gossiper, gossipers, heard, out_of_stream
from tests.rig import Numbers, a_hub, a_peer, until

KEY, OTHER = ("author", EPOCH), ("other", EPOCH)


class FakeSwarm:
    """Takes what there is room for."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.taken: list[tuple[str | None, int, int]] = []

    def publish(self, epoch: str, first_seq: int, frames: Sequence[bytes], *, author: str | None = None) -> bool:
        if len(frames) > self.room:
            return False
        self.room -= len(frames)
        self.taken.append((author, first_seq, len(frames)))
        return True


def flush(one: Forwards, swarm: FakeSwarm, *others: FakeSwarm) -> bool:
    return one.flush(cast(ext.Swarm, swarm), [cast(ext.Swarm, other) for other in others])


def test_what_follows_on_is_handed_over_together() -> None:
    one, swarm, old = Forwards(), FakeSwarm(), FakeSwarm(2)
    for key, seq in ((KEY, 1), (KEY, 2), (OTHER, 1), (KEY, 3), (KEY, 5)):
        one.add(key, seq, b"x")
    assert flush(one, swarm, old)
    assert swarm.taken == [("author", 1, 2), ("other", 1, 1), ("author", 3, 1), ("author", 5, 1)]
    assert old.taken == [("author", 1, 2)], "a swarm that is being left gets what it has room for"
    assert len(one) == 0


def test_a_run_has_bounds_in_events_and_bytes() -> None:
    one, swarm = Forwards(), FakeSwarm()
    for seq in range(1, RUN_EVENTS + 2):
        one.add(KEY, seq, b"x")
    one.add(OTHER, 1, b"x" * 200_000)
    one.add(OTHER, 2, b"x" * 200_000)
    flush(one, swarm)
    assert [count for _, _, count in swarm.taken] == [RUN_EVENTS, 1, 1, 1]


def test_what_waits_is_bounded_and_the_oldest_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "MAX_WAITING", 2 * RUN_EVENTS)
    one, swarm = Forwards(), FakeSwarm(0)
    for seq in range(1, 2 * RUN_EVENTS + 2):
        one.add(KEY, seq, b"x")
    assert not flush(one, swarm)
    assert one.left_out == RUN_EVENTS
    swarm.room = 10**6
    assert flush(one, swarm)
    assert swarm.taken[0] == ("author", RUN_EVENTS + 1, RUN_EVENTS)


def test_what_waits_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "MAX_WAITING_BYTES", 3_000)
    one, swarm = Forwards(), FakeSwarm(0)
    for key, seq in ((KEY, 1), (OTHER, 1), (KEY, 2), (OTHER, 2)):
        one.add(key, seq, b"x" * 1_000)
    assert one.left_out == 1, "the oldest"
    assert len(one) == 3
    swarm.room = 10**6
    assert flush(one, swarm)
    assert swarm.taken == [("other", 1, 1), ("author", 2, 1), ("other", 2, 1)]
    for seq in range(3, 6):
        one.add(KEY, seq, b"x" * 1_000)
    assert one.left_out == 1, "what was handed over does not count any more"
    one.add(OTHER, 3, b"x" * 3_001)
    assert (one.left_out, len(one)) == (5, 0), "one that is larger than the bound is left to repair"


def test_an_end_is_told_at_growing_intervals_and_then_no_more() -> None:
    one = Heads()
    one.moved(KEY, 7, 0.0, gossips=False)
    one.moved(OTHER, 3, 0.0, gossips=True)
    told: list[tuple[float, str]] = []
    while (due := one.next_due()) is not None:
        assert not one.due(due - 0.01)
        told += [(due, key[0]) for key, _ in one.due(due)]
    stream = [at for at, who in told if who == "author"]
    assert stream == [sum(STREAM_HEADS[: count + 1]) for count in range(len(STREAM_HEADS))]
    assert [at for at, who in told if who == "other"] == [
        sum(GOSSIP_HEADS[: count + 1]) for count in range(len(GOSSIP_HEADS))
    ]
    one.moved(KEY, 8, 100.0, gossips=False)
    assert one.due(101.0) == [(KEY, 8)]


def asked() -> tuple[Holes, list[tuple[int, int, int]]]:
    questions: list[tuple[int, int, int]] = []

    def ask(peer: int, detail: dict[str, Any]) -> None:
        assert (detail["topic"], detail["epoch"]) == ("a", EPOCH)
        questions.append((peer, detail["from"], detail["to"]))

    return Holes("a", ask), questions


def test_a_hole_is_asked_of_the_author_else_of_members_in_turn() -> None:
    holes, questions = asked()
    assert holes.ask(KEY, 1, 2, 7, [])
    for _ in range(3):
        assert holes.ask(KEY, 1, 2, None, [8, 9])
    assert not holes.ask(KEY, 1, 2, None, []), "nobody is there"
    assert questions == [(7, 1, 2), (8, 1, 2), (9, 1, 2), (8, 1, 2)]
    assert holes.was_asked(KEY)
    assert not holes.was_asked(OTHER)


def members(count: int) -> Callable[[set[int]], bool]:
    return lambda peers: len(peers) >= min(DENIALS, count)


def test_three_members_or_all_have_to_say_that_they_do_not_have_it() -> None:
    holes, _ = asked()
    assert holes.denied(KEY, 1, 1, 10, members(5)) is None
    assert holes.denied(KEY, 1, 1, 10, members(5)) is None, "one member is one"
    assert holes.denied(KEY, 2, 3, 12, members(5)) is None
    assert holes.denied(KEY, 3, 1, 20, members(5)) == (3, 10), "what all of them lack"
    assert holes.denied(KEY, 1, 1, 10, members(1)) == (1, 10)
    assert holes.denied(KEY, 1, 1, 5, members(2)) is None
    assert holes.denied(KEY, 2, 6, 9, members(2)) is None, "they do not speak of the same"


def test_what_is_reported_is_asked_for_piece_by_piece_and_given_up() -> None:
    holes, questions = asked()
    holes.reported(KEY, 1, 5, 5, 0.0)
    assert not holes.refilling(), "the hub has it"
    holes.reported(KEY, 1, 6_000, 0, 0.0)
    holes.reported(KEY, 2, 5_000, 0, 0.0)
    holes.refill(KEY, 0, 0.0)
    holes.refill(KEY, 0, 0.1)
    assert questions == [(1, 1, REFILL_EVENTS)], "of the one who has most, once"
    holes.refill(KEY, 100, 0.2)
    assert len(questions) == 1, "its answer is coming"
    holes.refill(KEY, REFILL_EVENTS, 0.3)
    holes.refill(KEY, REFILL_EVENTS, 0.3 + REFILL_PAUSE)
    assert questions[1:] == [(1, REFILL_EVENTS + 1, 6_000)]
    for moment in range(1, 9):
        holes.refill(KEY, REFILL_EVENTS, 1.0 + moment)
    assert len(questions) == 1 + REFILL_ASKS
    assert not holes.refilling(), "its word was worth nothing"
    assert holes.next_due() is None


def test_a_report_ends_with_its_member_or_when_the_author_is_back() -> None:
    holes, _ = asked()
    holes.reported(KEY, 1, 5, 0, 0.0)
    holes.reported(OTHER, 2, 5, 0, 0.0)
    holes.gone(1)
    assert holes.refilling() == [OTHER]
    holes.wait(OTHER, 10.0)
    assert holes.next_due() == pytest.approx(11.0)
    holes.forget(OTHER)
    assert not holes.refilling()


def test_a_sequence_can_begin_where_something_else_ended() -> None:
    one: Sequences[int] = Sequences(since="start")
    one.begin("a", "author", EPOCH, 5, 0.0)
    assert one.event("a", "author", EPOCH, 4, 4, 0.0) == []
    assert one.event("a", "author", EPOCH, 5, 5, 0.0) == [5]
    one.begin("a", "author", EPOCH, 50, 0.0)
    assert one.event("a", "author", EPOCH, 6, 6, 0.0) == [6], "it is known already"
    assert [verdict.word for verdict in one.verdicts()] == ["complete"]


async def test_authors_wait_for_acknowledgements_while_gossip_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        a_hub(topics={"carrier": "gossip"}) as hub,
        a_peer(hub.ticket) as old,
        gossipers(hub, "x", want=True) as (x,),
    ):
        swarm = hub.router.swarms.by_topic["a"]
        (handle,) = swarm.handles.values()
        full = FakeSwarm(0)
        monkeypatch.setitem(cast("dict[int, Any]", swarm.handles), 1, full)
        for _ in range(300):
            old.say("a", 1)
        await until(lambda: hub.router.topics.channels["a"].published == 300)
        await old_answers(old)
        assert not [message for message in old.received if message["type"] == "topic.ack"]
        swarm.handles[1] = handle
        hub.router.swarms.swarm_drained(handle.id)
        hub.router.settle()
        await old.hears("topic.ack", seq=300)
        await until(lambda: len(x.events) >= 300)


async def old_answers(peer: Any) -> None:
    """Whatever the hub had to say before this, has come."""
    peer.say("call.requested", {"requestId": "1", "operationId": "hub.topics", "input": None})
    await peer.hears("call.responded")


async def test_a_topic_with_more_authors_than_can_be_told_goes_by_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_members, "MAX_AUTHORS_LISTED", 1)
    scopes = {"all": {"subscribe": [">"], "publish": [">"], "call": [">"]}}
    config = {"access": {"scopes": scopes, "default": ["all"]}, "topics": {"carrier": "gossip"}}
    async with (
        a_hub(**config) as hub,
        a_peer(hub.ticket) as one,
        a_peer(hub.ticket) as two,
        gossipers(hub, "x", want=True) as (x,),
    ):
        one.say("a", 1)
        await until(lambda: len(x.events) == 1)
        two.say("a", 2)
        await until(lambda: "a" not in hub.router.swarms.by_topic)
        one.say("a", 3)
        await until(lambda: 3 in heard(x) and 2 in heard(x))
        x.say("topic.swarm", {"topic": "a", "generation": 0, "joined": False, "want": True})
        await x.hears("hub.error", code="NO_SWARM")


async def test_an_epoch_that_no_batch_can_carry_is_refused_where_gossip_carries() -> None:
    async with a_hub(topics={"carrier": "gossip"}) as hub, a_gossiper(hub, "x") as x:
        x.publish("a", 1, epoch="ZZZZZZZZZZZZZZZZ")
        error = await x.hears("hub.error", code="VALIDATION_ERROR")
        assert error["about"] == "a"
        assert hub.router.topics.channels["a"].published == 0


async def test_who_was_overrun_narrows_the_window() -> None:
    async with a_hub(topics={"carrier": "gossip"}) as hub, gossipers(hub, "x", want=True) as (x,):
        swarm = hub.router.swarms.by_topic["a"]
        before = swarm.pacing.size
        said = {"topic": "a", "generation": swarm.overlay.generation, "joined": True, "neighbours": 1}
        x.say("topic.swarm", said)
        await old_answers(x)
        assert swarm.pacing.size == before
        x.say("topic.swarm", {**said, "lagged": True})
        await until(lambda: swarm.pacing.size == before // 2)
        assert out_of_stream(hub, x)


async def test_swarms_beyond_the_bound_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarms, "MAX_SWARMS", 1)
    async with a_hub(topics={"carrier": "gossip"}) as hub, a_peer(hub.ticket) as one:
        one.say("a", 1)
        one.say("b", 1)
        await until(lambda: Numbers(hub)("limited_total", limit="swarms") == 1)
        assert list(hub.router.swarms.by_topic) == ["a"]


async def test_peers_of_another_hub_beyond_the_bound_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_REMOTE", 2)
    ids = [ext.node_id(ext.generate_secret()) for _ in range(3)]
    async with a_hub() as hub:
        known = hub.router.swarms.members.peers
        assert known.heard("hub", ids, [], True, 0.0) == 1
        assert known.heard("hub", ids[:2], [], False, 0.0) == 0, "who is known takes no more room"
        assert set(ids[:2]) <= set(known.node_ids())
        assert ids[2] not in known.node_ids()


async def test_a_topic_without_events_hides_none_that_has_them() -> None:
    """What topics cost is looked at in the order of their last event, and one that was just opened is last."""
    async with a_hub() as hub, a_peer(hub.ticket) as one:
        one.say("a", 1)
        await until(lambda: "a" in hub.router.topics.channels)
        looking = hub.router.swarms
        assert looking._moved(looking._looked_at + 1.0) == {"a": 1.0}
        one.say("a", 2)
        await until(lambda: hub.router.topics.channels["a"].published == 2)
        hub.router.topics.channel("new")
        assert looking._moved(looking._looked_at + 1.0) == {"new": 0.0, "a": 1.0}
        assert looking._moved(looking._looked_at + 1.0) == {}
