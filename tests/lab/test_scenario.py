"""Scenarios as data: the ones there are, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import UsageError
from broker.lab.scenario import LINKS, scenarios


def _read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    scenarios(file)


def test_there_are_enough_and_each_sees_something() -> None:
    known = scenarios()
    assert len(known) >= 20
    assert any(one.links for one in known.values())
    assert all(any(step.action == "see" for step in one.steps) for one in known.values())
    for one in known.values():
        if any(step.action in ("cut", "lose", "slow") for step in one.steps):
            assert one.steps[-1].action == "mend", one.name
    assert set(LINKS) <= {step.action for one in known.values() for step in one.steps}


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        ("[{}]", "a step does one thing, this one does nothing"),
        ('[{kill = "hub1", start = "hub1"}]', "this one does kill, start"),
        ('[{kill = "hub1", within = 3}]', "kill takes no within"),
        ('[{see = "up == 0"}]', "write == bool 0"),
        ('[{kill = "hub1"}]', "nothing has to be seen"),
        ('[{explode = "hub1"}]', "Extra inputs are not permitted"),
        ('[{cut = "hub1"}, {see = "up"}]', "links = true"),
        ('[{rebind = "one"}, {see = "up"}]\nlinks = true', "only routers rebind: nat = true"),
        ('[{wait = 1000}, {see = "up"}]', "less than or equal to 60"),
        ('[{bad = "manners"}, {see = "up"}]', "'json', 'words' or 'answers'"),
    ],
)
def test_a_faulty_scenario_is_named_with_its_fault(tmp_path: Path, steps: str, fault: str) -> None:
    with pytest.raises(UsageError) as error:
        _read(tmp_path, f'[odd]\ntext = "t"\nsteps = {steps}\n')
    assert str(error.value).startswith("s.toml, odd: ")
    assert fault in str(error.value)
