"""Lets a scenario be done to a testbed, and judges by what Prometheus and the observer tell.

A scenario is judged in three parts: traffic flowed before; each `see` came true in time, the first of them not before
anything was broken; afterwards, all mended and running, traffic flows again, the verdicts are what the scenario
promises, and they account for all that was published. No data is never an answer. Not here: the scenarios
(scenarios.toml), and how anything is broken (hands.py for a lab of processes, container.py for one of containers).
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from operator import itemgetter
from typing import Any, Final, Protocol

from broker.errors import UsageError
from broker.lab.scenario import Scenario, Step

__all__ = ["SETTLE", "Chaos", "Hands", "Judgement", "Stopped", "Watch", "busiest", "draw"]

POLL: Final = 0.25
SETTLE: Final = 60.0
"""Seconds in which everything must be well again."""
DIRECT: Final = 150.0
"""Seconds in which all must have a direct path: iroh looks for one every minute (its UPGRADE_INTERVAL), and in vain as
long as it does not know of a new port."""
COUNTS: Final = {
    "lost": "broker_observer_events_lost_total",
    "unknown": 'broker_observer_sequences{verdict="unknown"}',
    "received": "broker_observer_events_received_total",
    "repaired": "broker_observer_events_repaired_total",
}
ASTRAY: Final = (
    f'sum(broker_spoke_events_published_total{{job="spoke"}}) - sum({COUNTS["received"]}) - sum({COUNTS["lost"]})'
)
"""Published, and by the observer neither received nor named as lost: on the way, when all is well."""
ON_THE_WAY: Final = '5 * sum(rate(broker_spoke_events_published_total{job="spoke"}[30s]))'
"""How far ASTRAY may move: events in flight, and that nodes and observer are read at other moments (every 1 to 2 s)."""


@dataclass(slots=True)
class Judgement:
    """``said`` is a line for each step and check, with the seconds since the beginning."""

    scenario: str
    seed: int
    passed: bool = True
    said: list[tuple[float, str]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        said = [f"{at:.1f} s: {text}" for at, text in self.said]
        return {"scenario": self.scenario, "seed": self.seed, "passed": self.passed, "said": said}


class Failed(Exception):
    """A check that did not hold."""


class Stopped(Exception):
    """Told to stop in the middle of a scenario; all is put back."""


class Watch(Protocol):
    """What hands may ask for while they do a step."""

    def note(self, text: str) -> None: ...
    def see(self, expression: str, within: float) -> None: ...


class Hands(Protocol):
    """Break a testbed and mend it, for one scenario. ``seed`` says who is hit; ``prometheus`` is HOST:PORT."""

    seed: int
    prometheus: str

    def check(self, scenario: Scenario) -> None:
        """Raises UsageError when this scenario cannot be done here."""

    def do(self, step: Step, watch: Watch) -> None:
        """Any step but `see` and `wait`."""

    def put_back(self) -> None:
        """Mends all that was broken, however far the scenario came."""

    def there(self) -> tuple[int, int]:
        """How many targets Prometheus must see when all is well, and how many of them have a hub."""


def draw(spokes: Iterable[str], seed: int) -> dict[str, list[str]]:
    """Who is "one", "half" and "rest", drawn by the seed."""
    drawn = list(spokes)
    random.Random(seed).shuffle(drawn)
    middle = len(drawn) // 2
    return {"one": drawn[:1], "half": drawn[:middle], "rest": drawn[middle:]}


def busiest(prometheus: str) -> str:
    """The hub that most spokes are at: to break another would prove little. hub1 while nobody knows."""
    hubs = _query(prometheus, "sum by (node) (broker_spokes_connected)")
    return max(hubs, key=itemgetter(1), default=({"node": "hub1"}, 0.0))[0]["node"]


def _query(prometheus: str, expression: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of its series, without NaN; empty while Prometheus does not answer, or still starts."""
    url = f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return []
            raise UsageError(f"{expression}: {json.load(error).get('error')}") from None
    except OSError:
        return []
    values = [(row["metric"], float(row["value"][1])) for row in found["data"]["result"]]
    return [(labels, value) for labels, value in values if not math.isnan(value)]


class Chaos:
    """One scenario on a testbed that is up and has Prometheus. ``say`` is told of each step as it begins; ``stop`` ends
    it before its time."""

    def __init__(
        self,
        hands: Hands,
        scenario: Scenario,
        say: Callable[[str], None],
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self._hands, self._scenario, self._say = hands, scenario, say
        self._stop = stop or threading.Event()
        self._judgement = Judgement(scenario.name, hands.seed)
        self._began = time.monotonic()
        self._before: dict[str, float] = {}
        self._astray = 0.0

    def run(self) -> Judgement:
        """Also puts everything back, whatever happened. Raises Stopped."""
        try:
            self._flows("before")
            hub = busiest(self._hands.prometheus)
            self._scenario = self._scenario.at(hub).since(time.time())
            self.note(f"most spokes are at {hub}")
            self._hands.check(self._scenario)
            self._before, self._astray = self._counts(), self._number(ASTRAY)
            self._not_yet()
            for step in self._scenario.steps:
                self.note(str(step))
                self._do(step)
        except Failed as failure:
            self._fail(failure)
        finally:
            self._hands.put_back()
            self.note("mended, all running")
        try:
            # Not what Prometheus still knows from before: something has to come.
            received = self._number(f"sum({COUNTS['received']})")
            self._flows("afterwards")
            self.see(f"sum({COUNTS['received']}) != {received}", SETTLE)
            if self._before:  # else it has failed already, and there is nothing to compare with
                self._verdicts()
        except Failed as failure:
            self._fail(failure)
        return self._judgement

    def note(self, text: str) -> None:
        self._judgement.said.append((time.monotonic() - self._began, text))
        self._say(text)

    def see(self, expression: str, within: float) -> None:
        """Returns when the query has a value other than 0. Raises Failed."""
        deadline = time.monotonic() + within
        while not any(self._query(expression)):
            if time.monotonic() > deadline:
                raise Failed(f"not seen within {within:g} s: {expression}")
            self._wait(POLL)

    def _not_yet(self) -> None:
        """What is seen first must come from what is broken. Raises Failed."""
        first = next(step.see for step in self._scenario.steps if step.see is not None)
        if any(self._query(first)):
            raise Failed(f"true before anything was broken: {first}")

    def _number(self, expression: str) -> float:
        """Of a query with one value, as soon as it has one. Raises Failed when it has none."""
        deadline = time.monotonic() + SETTLE
        while not (found := self._query(expression)):
            if time.monotonic() > deadline:
                raise Failed(f"no data within {SETTLE:g} s: {expression}")
            self._wait(POLL)
        return found[0]

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _fail(self, failure: Failed) -> None:
        self._judgement.passed = False
        self.note(f"FAILED: {failure}")

    def _do(self, step: Step) -> None:
        if step.see is not None:
            self.see(step.see, step.within)
        elif step.wait is not None:
            self._wait(step.wait)
        else:
            self._hands.do(step, self)

    def _query(self, expression: str) -> list[float]:
        return [value for _, value in _query(self._hands.prometheus, expression)]

    def _flows(self, when: str) -> None:
        """Everybody is there, by a direct path where there are routers, and events reach the observer."""
        there, connected = self._hands.there()
        self.see(f'(sum(up{{job=~"hub|spoke|observer"}}) == {there})', SETTLE)
        self.see(f"(sum(broker_spoke_connected) == {connected})", SETTLE)
        # Who was killed is counted until its hub has missed it, and must not be in what is compared with later.
        self.see(f"(sum(broker_spokes_connected) == {connected})", SETTLE)
        if self._scenario.nat:
            self.see(f'(sum(broker_spokes_connected{{path="direct"}}) == {connected})', DIRECT)
        self.see("sum(rate(broker_observer_events_received_total[5s])) > 0", SETTLE)
        self.note(f"traffic flows {when}")

    def _counts(self) -> dict[str, float]:
        return {what: self._number(f"sum({metric})") for what, metric in COUNTS.items()}

    def _verdicts(self) -> None:
        """Judges what came since this scenario began: a testbed may have a past."""
        self.see('(sum(broker_observer_sequences{verdict="pending"}) == bool 0)', SETTLE)
        counts = self._counts()
        if counts["received"] >= self._before["received"]:  # else the observer began anew
            counts = {what: count - self._before[what] for what, count in counts.items()}
        self.note("verdicts: " + ", ".join(f"{what} {count:g}" for what, count in counts.items()))
        if self._scenario.verdict == "whole" and (counts["lost"] > 0 or counts["unknown"] > 0):
            raise Failed("events were lost")
        if self._scenario.same_authors:
            self.see(f"(abs({ASTRAY} - {self._astray}) <= bool {ON_THE_WAY})", SETTLE)
            self.note("received and lost are all that was published")
