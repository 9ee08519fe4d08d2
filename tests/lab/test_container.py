"""Breaking a hub from inside its container: what can be done from there, which process is the hub, whose turn it is.

With a real network and real processes: tests/cluster."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.lab.container import ContainerHands, Process, hub_process
from broker.lab.rounds import Rounds, announced, turn
from broker.lab.scenario import Scenario, scenarios

HERE = {"kill-hub", "pause-hub", "cut-hub", "cut-half-from-hub", "deaf-hub", "lossy-hub"}


@pytest.mark.parametrize("hub", ["hub1", "hub2"])
def test_what_can_be_done_from_a_container_is_what_touches_its_hub(hub: str) -> None:
    hands = ContainerHands(hub, 1, "127.0.0.1:1")
    for name, scenario in scenarios().items():
        if name in HERE:
            hands.check(scenario.at(hub))
        else:
            with pytest.raises(UsageError, match=f"cannot be done from the container of {hub}"):
                hands.check(scenario.at(hub))


def test_a_scenario_at_another_hub_changes_the_two() -> None:
    known = scenarios()
    cut = known["cut-hub"].at("hub2")
    assert (cut.steps[0].cut, cut.steps[1].see) == (
        "hub2",
        (known["cut-hub"].steps[1].see or "").replace("hub2", "hub1"),
    )
    assert cut.at("hub2") == known["cut-hub"]
    assert all(one.at("hub1") == one for one in known.values())


def _process(proc: Path, pid: int, parent: int, state: str, *command: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cmdline").write_bytes("\0".join(command).encode() + b"\0")
    (proc / str(pid) / "stat").write_text(f"{pid} (a b) c) {state} {parent} 1 1")


def test_the_hub_is_found_among_the_processes(tmp_path: Path) -> None:
    _process(tmp_path, 1, 0, "S", "tini", "-g", "--", "bash", "-c", "python3 -m broker")
    _process(tmp_path, 7, 1, "S", "bash", "-c", "while python3 -m broker", "broker", "hub")
    _process(tmp_path, 30, 1, "S", "python3", "-m", "broker", "lab", "havoc", "hub1")
    (tmp_path / "meminfo").touch()
    assert hub_process(tmp_path) is None
    _process(tmp_path, 8, 7, "Z", "python3", "-m", "broker", "hub", "--open")
    assert hub_process(tmp_path) is None, "one that was killed and not yet looked after is none"
    _process(tmp_path, 9, 7, "T", "python3", "-m", "broker", "hub", "--open")
    assert hub_process(tmp_path) == Process(9, 7)


def test_the_seed_says_what_is_done() -> None:
    def drawn(hub: str, seed: int) -> list[str]:
        rounds = Rounds(hub, scenarios().values(), seed, "127.0.0.1:1")
        return [rounds.draw(number).name for number in range(20)]

    assert drawn("hub1", 3) == drawn("hub1", 3)
    assert drawn("hub1", 3) != drawn("hub1", 4)
    assert drawn("hub1", 3) != drawn("hub2", 3)
    assert set(drawn("hub1", 3)) <= HERE
    assert set(drawn("hub1", 3)[: len(HERE)]) == HERE, "each once before any comes again"


def test_a_scenario_that_cannot_be_done_here_is_refused() -> None:
    with pytest.raises(UsageError, match="flood cannot be done from the container of hub1: add 2"):
        Rounds("hub1", [scenarios()["flood"]], 1, "127.0.0.1:1")


def test_prometheus_is_told_while_it_runs(tmp_path: Path) -> None:
    with announced(tmp_path, "hub1", "9465"):
        (file,) = tmp_path.glob("*.json")
        assert json.loads(file.read_text()) == [
            {"targets": ["hub1:9465"], "labels": {"job": "chaos", "node": "chaos-hub1"}}
        ]
    assert list(tmp_path.iterdir()) == []


async def test_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most = 0

    async def take() -> None:
        nonlocal most
        async with turn(tmp_path):
            inside.append(1)
            most = max(most, len(inside))
            for _ in range(5):
                await asyncio.sleep(0)
            inside.pop()

    await asyncio.gather(take(), take(), take())
    assert most == 1


def test_members_that_do_not_exist_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.lab.container._addresses", lambda name: [])
    step = Scenario(name="n", text="t", links=True, steps=scenarios()["cut-hub"].steps).steps[0]
    with pytest.raises(UsageError, match="nobody there"):
        ContainerHands("hub1", 1, "127.0.0.1:1")._cut(step)
