"""The judge of scenarios says no to each thing that may be wrong, with hands that break nothing and answers to order.

With a real lab: test_chaos.py."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from broker.lab import chaos
from broker.lab.chaos import ASTRAY, COUNTS, Chaos, Judgement, Watch
from broker.lab.scenario import Scenario, Step, scenarios

SEEN = "it_is_broken"
Other = dict[tuple[str, str] | str, float | None]
Judge = Callable[..., Judgement]


@dataclass
class Hands:
    """Breaks nothing; knows how far the scenario is."""

    seed: int = 1
    prometheus: str = "nowhere"
    phase: str = "before"

    def check(self, scenario: Scenario) -> None: ...

    def do(self, step: Step, watch: Watch) -> None:
        self.phase = "broken"

    def put_back(self) -> None:
        self.phase = "after"

    def there(self) -> tuple[int, int]:
        return 4, 3


@dataclass
class Prometheus:
    """All is well: 50 events came, none is lost. ``other`` has the answers that are to be others, by how the query
    begins, and optionally the phase; None is no data."""

    hands: Hands
    other: Other = field(default_factory=dict)

    def __call__(self, _address: str, expression: str) -> list[tuple[dict[str, str], float]]:
        value = self._value(expression)
        return [] if value is None else [({"node": "hub1"}, value)]

    def _value(self, expression: str) -> float | None:
        for key, value in self.other.items():
            begins, phase = (key, self.hands.phase) if isinstance(key, str) else key
            if phase == self.hands.phase and expression.startswith(begins):
                return value
        if expression == SEEN:
            return None if self.hands.phase == "before" else 1
        if expression == f"sum({COUNTS['received']})":
            return 150 if self.hands.phase == "after" else 100
        return 0 if expression in {f"sum({metric})" for metric in COUNTS.values()} else 1


BREAKS = (Step(kill="hub1"), Step(see=SEEN, within=0.05))
ENDS_THE_OBSERVER = (Step(kill="observer"), Step(see=SEEN, within=0.05))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    monkeypatch.setattr(chaos, "SETTLE", 0.05)
    monkeypatch.setattr(chaos, "DIRECT", 0.05)
    monkeypatch.setattr(chaos, "POLL", 0.005)

    def run(other: Other, *, verdict: str = "whole", steps: tuple[Step, ...] = BREAKS, nat: bool = False) -> Judgement:
        hands = Hands()
        monkeypatch.setattr(chaos, "_query", Prometheus(hands, other))
        scenario = Scenario.model_validate({"name": "n", "text": "t", "steps": steps, "verdict": verdict, "nat": nat})
        return Chaos(hands, scenario, lambda _: None).run()

    return run


LOST, UNKNOWN = f"sum({COUNTS['lost']})", f"sum({COUNTS['unknown']})"


def test_what_is_well_passes(judge: Judge) -> None:
    judgement = judge({})
    assert judgement.passed, judgement.said
    assert judgement.said[-1][1] == "received and lost are all that was published"
    assert judge({(LOST, "after"): 3}, verdict="told").passed
    assert judge({LOST: 3}).passed, "lost before this scenario"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({(LOST, "after"): 3}, "events were lost"),
        ({(UNKNOWN, "after"): 1}, "events were lost"),
        ({(LOST, "after"): None}, f"no data within 0.05 s: {LOST}"),
        ({(f"sum({COUNTS['received']})", "after"): None}, "no data"),
        ({(f"sum({COUNTS['received']}) !=", "after"): None}, "not seen"),
        ({('(sum(broker_observer_sequences{verdict="pending"})', "after"): 0}, "not seen"),
        ({("(abs(", "after"): 0}, "not seen"),
        ({ASTRAY: None}, "no data"),
        ({SEEN: None}, f"not seen within 0.05 s: {SEEN}"),
        ({SEEN: 1}, f"true before anything was broken: {SEEN}"),
        ({"(sum(up": None}, "not seen"),
        ({("(sum(broker_spoke_connected)", "after"): 0}, "not seen"),
        ({"(sum(broker_spokes_connected)": 0}, "not seen within 0.05 s: (sum(broker_spokes_connected) == 3)"),
    ],
    ids=str,
)
def test_each_thing_that_is_wrong_is_a_failure(judge: Judge, other: Other, why: str) -> None:
    judgement = judge(other)
    assert not judgement.passed
    assert any(text.startswith("FAILED: ") and why in text for _, text in judgement.said), judgement.said


@pytest.mark.parametrize("wrong", [{("(abs(", "after"): 0}, {(UNKNOWN, "after"): None}], ids=str)
def test_told_is_judged_too(judge: Judge, wrong: Other) -> None:
    assert not judge(wrong, verdict="told").passed


def test_behind_nat_all_must_be_on_direct_paths_again(judge: Judge) -> None:
    on_a_relay: Other = {('(sum(broker_spokes_connected{path="direct"})', "after"): 0}
    assert judge({}, nat=True).passed
    assert not judge(on_a_relay, nat=True).passed
    assert judge(on_a_relay).passed, "where there are no routers nobody asks"


def test_counts_of_processes_that_began_anew_are_not_compared(judge: Judge) -> None:
    assert judge({("(abs(", "after"): 0}, steps=ENDS_THE_OBSERVER).passed
    known = scenarios()
    compared = {name for name, one in known.items() if one.same_authors}
    assert {
        "kill-hub",
        "pause-observer",
        "loss-30",
        "bad-json",
        "prometheus-away",
        "clock-back",
        "relay-killed",
    } <= compared
    assert not compared & {"kill-spoke", "kill-observer", "rolling-restart", "clock-forward", "flood", "joiners"}


def test_no_number_is_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"metric": {}, "value": [0, value]} for value in ("NaN", "2")]
    page = json.dumps({"data": {"result": rows}}).encode()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(page))
    assert chaos._query("p", "x") == [({}, 2.0)]


def test_a_scenario_knows_when_it_began() -> None:
    one = Scenario(name="n", text="t", steps=(Step(see="m > (m @ $began)"),)).since(1234.5)
    assert one.steps[0].see == "m > (m @ 1234.500)"
