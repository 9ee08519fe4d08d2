"""Members of a swarm tell the hub how far they have heard an author, and no author gets out of their sight."""

from __future__ import annotations

from broker.protocol.pacing import REPORT
from tests.rig import PATIENCE, until
from tests.spoke.swarming import TOPIC, hear_again, publish, reading, stop_hearing, swarm_of

EVENTS = 20_000


async def test_members_report_and_a_flood_stays_in_their_sight() -> None:
    async with swarm_of(3) as (hub, (author, one, two)), reading(one) as first, reading(two) as second:
        await publish(author, range(10))
        await first.has(range(10))
        await second.has(range(10))
        await until(lambda: [spoke.carrier(TOPIC) for spoke in (one, two)] == ["gossip"] * 2)
        pacing, ahead = hub.router.swarms.by_topic[TOPIC].pacing, []
        box = author._publisher._boxes[TOPIC]
        allowed, beyond = 0, list[int]()
        heard = type(pacing).heard

        def hears(key: tuple[str, str], peer: int, seq: int, patience: float, now: float) -> bool:
            nonlocal allowed
            allowed = max(allowed, pacing.ahead(key))
            ahead.append(box.gossiped - seq)
            beyond.append(ahead[-1] - allowed)
            return heard(pacing, key, peer, seq, patience, now)

        pacing.heard = hears  # type: ignore[method-assign]
        await publish(author, range(10, EVENTS))
        await author.flush(PATIENCE)
        await first.has(range(EVENTS))
        await second.has(range(EVENTS))
        assert len(ahead) >= 2 * (EVENTS // (2 * REPORT)), "a word at least every other time that one is due"
        assert max(beyond) <= 0, "as far as it has ever been let"
        for reader in (first, second):
            assert all(verdict.word == "complete" or verdict.lost == () for verdict in reader.events.verdicts)


async def test_a_member_that_hangs_is_waited_for_and_then_left_behind_and_gets_all_of_it_in_the_end() -> None:
    async with swarm_of(2) as (hub, (author, one)), reading(one, patience=1.0) as reader:
        await publish(author, range(1_000))
        await reader.has(range(1_000))
        pacing = hub.router.swarms.by_topic[TOPIC].pacing
        await until(lambda: bool(pacing.followed((author.node_id, author._publisher._boxes[TOPIC].publication.epoch))))
        stop_hearing(one)
        await publish(author, range(1_000, 8_000))
        await author.flush(2 * PATIENCE)
        assert pacing.left_behind == 1
        assert author.carrier(TOPIC) == "gossip", "a hub that lets its author wait is no hub that has not heard it"
        hear_again(one)
        await reader.has(range(8_000))
        assert reader.events.verdicts[0].lost == ()
