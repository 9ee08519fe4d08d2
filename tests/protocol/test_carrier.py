"""Which way a topic goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.carrier import LEAST_COST, LEAST_SUBSCRIBERS, QUIET, Budget, Carrier, Load, weigh

BUDGET = Budget(uplink_bytes=1_000_000, deliveries=10_000)


def load(subscribers: int, *, events: float = 0.0, size: float = 0.0) -> Load:
    return Load(subscribers=subscribers, events=events, bytes=size)


def test_a_topic_moves_when_bytes_or_deliveries_pass_the_budget() -> None:
    for heavy in (load(10, size=100_001), load(10, events=1_001)):
        one = Carrier("auto", BUDGET)
        assert not one.look(load(10, events=1_000, size=100_000), 0.0)
        assert one.look(heavy, 1.0)
        assert one.gossip
        assert one.switches == 1


def test_a_few_subscribers_stay_with_the_stream_whatever_it_costs() -> None:
    one = Carrier("auto", BUDGET)
    assert not one.look(load(LEAST_SUBSCRIBERS - 1, size=1e9), 0.0)
    assert one.look(load(LEAST_SUBSCRIBERS, size=1e9), 1.0)


def test_it_moves_back_after_ten_cheap_seconds_on_end() -> None:
    one = Carrier("auto", BUDGET)
    one.look(load(10, size=200_000), 0.0)
    cheap, dear = load(10, size=30_000), load(10, size=40_000)
    assert not one.look(cheap, 1.0)
    assert not one.look(dear, 5.0), "a third of the budget is not below a third"
    assert not one.look(cheap, 6.0)
    assert not one.look(cheap, 6.0 + QUIET - 0.1)
    assert one.look(cheap, 6.0 + QUIET)
    assert not one.gossip


def test_what_the_config_settles_is_settled() -> None:
    stream, gossip = Carrier("stream", BUDGET), Carrier("gossip", BUDGET)
    for second in range(60):
        assert not stream.look(load(1_000, size=1e9), second)
        assert not gossip.look(load(0), second)
    assert not stream.pin(1)
    stream.found()
    assert not stream.gossip
    assert gossip.gossip


def test_an_author_that_asks_for_gossip_keeps_it_while_it_is_there() -> None:
    one = Carrier("auto", BUDGET)
    assert one.pin(1)
    assert one.gossip
    assert not any(one.look(load(0), float(second)) for second in range(60))
    one.unpin(1)
    assert not one.look(load(0), 60.0)
    assert one.look(load(0), 60.0 + QUIET)


def test_a_swarm_that_a_restarted_hub_finds_is_left_when_it_is_not_worth_it() -> None:
    one = Carrier("auto", BUDGET)
    one.found()
    assert one.gossip
    assert not one.look(load(1), 0.0)
    assert one.look(load(1), QUIET)


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1e5), st.floats(0, 1e7)), max_size=200))
def test_it_never_moves_more_often_than_once_in_ten_seconds_and_back(steps: list[tuple[int, float, float]]) -> None:
    one, moves = Carrier("auto", BUDGET), []
    for second, (subscribers, events, size) in enumerate(steps):
        if one.look(load(subscribers, events=events, size=size), float(second)):
            moves.append(second)
    backs = moves[1::2]
    assert all(back - there >= QUIET for there, back in zip(moves[::2], backs, strict=False))
    assert one.gossip == (len(moves) % 2 == 1)
    assert one.switches == len(moves)


def part(cost: float) -> Load:
    """Streams that cost this part of the budget."""
    return load(10, size=cost * BUDGET.uplink_bytes / 10)


def test_many_topics_that_are_each_within_the_budget_are_not_together() -> None:
    carriers = {f"{number:03}": Carrier("auto", BUDGET) for number in range(100)}
    moved = weigh([(topic, one, part(0.9)) for topic, one in carriers.items()], BUDGET, 0.0)
    assert len(moved) == 99
    assert sum(not one.gossip for one in carriers.values()) == 1


def test_the_dearest_leave_first_and_what_is_not_worth_a_swarm_stays() -> None:
    costs = {"a": 0.5, "b": 0.6, "c": 0.3, "d": LEAST_COST / 2}
    carriers = {topic: Carrier("auto", BUDGET) for topic in costs}
    assert weigh([(topic, carriers[topic], part(cost)) for topic, cost in costs.items()], BUDGET, 0.0) == ["b"]
    cheap = [(str(number), Carrier("auto", BUDGET), part(LEAST_COST * 0.9)) for number in range(200)]
    assert weigh(cheap, BUDGET, 0.0) == []


def test_the_cheapest_come_back_first_as_long_as_there_is_room() -> None:
    carriers = {topic: Carrier("auto", BUDGET) for topic in "abc"}
    for one in carriers.values():
        one.found()
    costs = {"a": 0.2, "b": 0.05, "c": 0.1}
    topics = [(topic, carriers[topic], part(cost)) for topic, cost in costs.items()]
    assert weigh(topics, BUDGET, 0.0) == []
    assert weigh(topics, BUDGET, QUIET) == ["b", "c"], "with a third they would cost more than a third of the budget"


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 20), st.booleans()), max_size=30))
def test_together_streams_stay_within_the_budget_and_none_moves_that_need_not(
    topics: list[tuple[float, int, bool]],
) -> None:
    carriers = [Carrier("auto", BUDGET) for _ in topics]
    loads = [load(many, size=cost * BUDGET.uplink_bytes / max(many, 1)) for cost, many, _ in topics]
    for one, (_, _, gossip) in zip(carriers, topics, strict=True):
        if gossip:
            one.found()
    rows = [(str(index), one, its) for index, (one, its) in enumerate(zip(carriers, loads, strict=True))]
    moved = {int(topic) for topic in weigh(rows, BUDGET, 0.0)}
    assert not any(topics[index][2] for index in moved), "nobody goes back before QUIET"
    costs = [its.cost(BUDGET) for its in loads]
    streams = [index for index, one in enumerate(carriers) if not one.gossip]
    could = [index for index in streams if costs[index] >= LEAST_COST and topics[index][1] >= LEAST_SUBSCRIBERS]
    left = sum(costs[index] for index in streams)
    assert left <= 1.0 + 1e-9 or not could
    if moved:
        cheapest = min(costs[index] for index in moved)
        assert all(costs[index] <= cheapest for index in could), "the dearest first"
        assert left + cheapest > 1.0 - 1e-9
    assert not set(weigh(rows, BUDGET, 0.0)), "asked again, it is the same"
