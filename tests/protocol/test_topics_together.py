"""Publication, Ring and Sequences over simulated links: whatever breaks, each event arrives once or is named lost."""

from __future__ import annotations

import pytest

from broker.protocol.sequence import Origin, Verdict
from tests.protocol.together import Sim, Subscriber

SEEDS = 200


def judge(sim: Sim, one: Subscriber) -> None:
    verdicts = {(v.topic, v.author, v.epoch): v for v in one.sequences.verdicts()}
    for key, order in one.read.items():
        assert order == sorted(set(order)), "out of order, or twice"
        assert key in verdicts
    for key, verdict in verdicts.items():
        lost = {seq for a, b in verdict.lost for seq in range(a, b + 1)}
        read = set(one.read.get(key, ()))
        assert not verdict.missing
        assert not lost & read
        assert lost | read == set(range(verdict.start, verdict.known + 1)), "neither delivered nor named"
        assert one.dropped.get(key, set()) <= lost
        assert (verdict.word == "complete") <= (len(read) == verdict.known - verdict.start + 1)
        assert verdict.known <= max(sim.published[key], verdict.start - 1)
    for topic, place in one.due:
        judge_due(sim, one, verdicts.get((topic, place.author, place.epoch)), topic, place)


def judge_due(sim: Sim, one: Subscriber, verdict: Verdict | None, topic: str, place: Origin) -> None:
    """An event that a hub took while it was subscribed: known to the verdict, unless nobody is left who knows of it."""
    if verdict is not None and verdict.start <= place.seq <= verdict.known:
        return
    if verdict is not None and place.seq < verdict.start:
        raise AssertionError(f"{topic} {place} was due, the verdict begins at {verdict.start}")
    epochs = {book.epoch for author in sim.authors for book in author.books.values() if author.name == place.author}
    assert place.epoch not in epochs, "its author could have told"
    assert sim.hub.rings[topic].newest(place.author, place.epoch) < place.seq, "the hub could have told"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_delivered_once_or_named_lost(seed: int) -> None:
    sim = Sim(seed)
    sim.run()
    for one in sim.subscribers:
        judge(sim, one)


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_nothing_is_lost_that_need_not_be(seed: int) -> None:
    """With room for everything, broken links and slow readers cost nothing."""
    sim = Sim(seed, gentle=True)
    sim.run()
    for one in sim.subscribers:
        judge(sim, one)
        assert one.sequences.summary().lost == 0
        assert one.due <= {(topic, Origin(author, epoch, seq))
                           for (topic, author, epoch), read in one.read.items() for seq in read}  # fmt: skip
