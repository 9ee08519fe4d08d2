"""Some scenarios in a lab of namespaces, judged by themselves; `make chaos` runs all of them. And that the judge can
say no."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from broker.lab.chaos import Chaos, draw
from broker.lab.cluster import Cluster, build
from broker.lab.hands import LabHands
from broker.lab.scenario import Scenario, Step, scenarios

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

IN_CI = ("kill-hub", "partition-halves", "loss-30", "bad-json", "clock-forward")
BEHIND_NAT = ("relay-killed",)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("chaos") / "lab"
    cluster = build(directory, hubs=2, spokes=4, rate=10, size=0, calls=2, plain=False)
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.mark.parametrize("name", IN_CI)
def test_a_scenario_ends_as_it_should(cluster: Cluster, name: str) -> None:
    judgement = Chaos(LabHands(cluster, 1), scenarios()[name], lambda _: None).run()
    assert judgement.passed, "\n".join(judgement.row()["said"])


@pytest.fixture(scope="module")
def behind_nat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("nat") / "lab"
    cluster = build(directory, hubs=1, spokes=3, rate=10, size=0, calls=2, plain=False, nat=True)
    try:
        yield cluster
    finally:
        cluster.down()
        assert cluster.network is not None
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert cluster.network.prefix not in left


@pytest.mark.parametrize("name", BEHIND_NAT)
def test_a_scenario_behind_nat_ends_as_it_should(behind_nat: Cluster, name: str) -> None:
    judgement = Chaos(LabHands(behind_nat, 1), scenarios()[name], lambda _: None).run()
    assert judgement.passed, "\n".join(judgement.row()["said"])


def test_what_does_not_come_true_is_a_failure(cluster: Cluster) -> None:
    never = Scenario(name="never", text="t", steps=(Step(see='up{node="nobody"}', within=1),))
    judgement = Chaos(LabHands(cluster, 1), never, lambda _: None).run()
    assert not judgement.passed
    assert any("FAILED: not seen within 1 s" in line for line in judgement.row()["said"])


def test_the_seed_says_who_is_hit() -> None:
    spokes = [f"spoke{number}" for number in range(6)]
    hit = {seed: draw(spokes, seed) for seed in range(8)}
    assert hit[3] == draw(spokes, 3)
    assert len({tuple(drawn["half"]) for drawn in hit.values()}) > 1
    assert all(sorted(drawn["half"] + drawn["rest"]) == spokes for drawn in hit.values())
