"""The simulator finds bugs: each of those that are put in on purpose, within a few seeds, and makes the seed small."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import pytest

from tests.sim.mutations import MUTATIONS
from tests.sim.scenario import Action, draw
from tests.sim.shrink import failure_of, shrink

SEEDS = 150
"""Within so many in which it can show the simulator finds each; most in two."""
BETWEEN_HUBS = "another_hubs_ring_is_not_asked"


def worlds(name: str) -> Iterator[int]:
    """Seeds in which a bug can show."""
    drawn = (seed for seed in count() if name != BETWEEN_HUBS or any(map(is_join, draw(seed).actions)))
    return islice(drawn, SEEDS)


def is_join(action: object) -> bool:
    """Whether a second hub joins."""
    return isinstance(action, Action) and action.kind == "join"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    found = next((why for seed in worlds(name) if (why := failure_of(draw(seed)))), None)
    assert found is not None
    assert found.startswith("Failure: "), "a promise is named that is broken"


def test_a_bug_between_hubs_is_found_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[BETWEEN_HUBS](monkeypatch)
    seed = next(seed for seed in worlds(BETWEEN_HUBS) if failure_of(draw(seed)))
    scenario = draw(seed)
    alone = [at for at, one in scenario.numbered() if not is_join(one)]
    assert len(alone) < scenario.items, "a second hub joins"
    assert failure_of(scenario.only(alone)) is None, "without it nothing is wrong"


def test_a_failing_seed_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["duplicates_are_delivered"](monkeypatch)
    seed, failure = next((seed, why) for seed in range(SEEDS) if (why := failure_of(draw(seed))))
    kept, smaller = shrink(seed, failure, most=200)
    assert len(kept) < draw(seed).items / 2
    assert failure_of(draw(seed).only(kept)) == smaller, "the printed command replays it"
