"""The simulator finds bugs: each of those that are put in on purpose, within a few seeds, and makes the seed small."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS
from tests.sim.scenario import Action, draw
from tests.sim.shrink import failure_of, shrink

SEEDS = 150
"""Within so many the simulator finds each; most in two."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    found = next((why for seed in range(SEEDS) if (why := failure_of(draw(seed)))), None)
    assert found is not None
    assert found.startswith("Failure: "), "a promise is named that is broken"


def test_a_bug_between_hubs_is_found_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["another_hubs_ring_is_not_asked"](monkeypatch)
    seed = next(seed for seed in range(SEEDS) if failure_of(draw(seed)))
    scenario = draw(seed)
    alone = [at for at, one in scenario.numbered() if not (isinstance(one, Action) and one.kind == "join")]
    assert len(alone) < scenario.items, "a second hub joins"
    assert failure_of(scenario.only(alone)) is None, "without it nothing is wrong"


def test_a_failing_seed_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["duplicates_are_delivered"](monkeypatch)
    seed, failure = next((seed, why) for seed in range(SEEDS) if (why := failure_of(draw(seed))))
    kept, smaller = shrink(seed, failure, most=200)
    assert len(kept) < draw(seed).items / 2
    assert failure_of(draw(seed).only(kept)) == smaller, "the printed command replays it"
