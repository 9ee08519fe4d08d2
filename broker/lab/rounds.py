"""Havoc in a testbed of containers: which scenario is next, whose turn it is, and what Prometheus is told of it.

Not here: how a hub is broken (container.py), and how it is judged (chaos.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from broker.errors import UsageError
from broker.lab.chaos import Chaos, Judgement, busiest
from broker.lab.container import ContainerHands
from broker.lab.scenario import Scenario

__all__ = ["Rounds", "announced", "turn"]

LOOK: Final = 0.5
"""Seconds between looks whether it is one's turn."""
TURN_FILE: Final = "turn"


class Rounds:
    """The scenarios that can be done at ``hub`` from inside its container, drawn by the seed one after the other."""

    def __init__(self, hub: str, chosen: Iterable[Scenario], seed: int, prometheus: str) -> None:
        self.hub, self._seed, self._prometheus = hub, seed, prometheus
        self.registry = CollectorRegistry()
        self._active = Gauge(
            "broker_chaos_active", "Whether this scenario is being done.", ["scenario"], registry=self.registry
        )
        self._ended = Counter(
            "broker_chaos_scenarios", "Scenarios done, by their judgement.", ["scenario", "judgement"],
            registry=self.registry,
        )  # fmt: skip
        hands = ContainerHands(hub, seed, prometheus)
        self._known = list(_possible(chosen, hands))
        for one in self._known:
            self._active.labels(one.name)
            for judgement in ("passed", "failed"):
                self._ended.labels(one.name, judgement)

    def mine(self) -> bool:
        """Whether most spokes are at this hub. To break the other is another's work."""
        return busiest(self._prometheus) == self.hub

    def draw(self, number: int) -> Scenario:
        """The scenario of round ``number``: each once, in an order drawn by the seed, before any comes again."""
        turn, place = divmod(number, len(self._known))
        return random.Random(f"{self._seed} {self.hub} {turn}").sample(self._known, len(self._known))[place]

    def begin(self, number: int, say: Callable[[str], None], stop: threading.Event) -> Chaos:
        """Round ``number``, about to be done."""
        one = self.draw(number)
        say(f"{one.name}: {one.text}")
        self._active.labels(one.name).set(1)
        hands = ContainerHands(self.hub, self._seed + number, self._prometheus)
        hands.put_back()  # what one that was killed in the middle has left
        return Chaos(hands, one, say, stop=stop)

    def end(self, judgement: Judgement) -> None:
        self._active.labels(judgement.scenario).set(0)
        self._ended.labels(judgement.scenario, "passed" if judgement.passed else "failed").inc()


def _possible(chosen: Iterable[Scenario], hands: ContainerHands) -> Iterator[Scenario]:
    """UsageError when there is none."""
    found, fault = False, UsageError("no scenario was given")
    for one in chosen:
        try:
            hands.check(one.at(hands.hub))
        except UsageError as error:
            fault = error
        else:
            found = True
            yield one
    if not found:
        raise fault


@contextmanager
def announced(shared: Path | None, hub: str, port: str) -> Iterator[None]:
    """Prometheus reads this process while the block runs (file_sd in prometheus.yml)."""
    if shared is None:
        yield
        return
    file = shared / f"chaos-{hub}.json"
    partial = shared / f".{file.name}"
    partial.write_text(json.dumps([{"targets": [f"{hub}:{port}"], "labels": {"job": "chaos", "node": f"chaos-{hub}"}}]))
    partial.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def turn(shared: Path | None) -> AsyncIterator[None]:
    """One at a time of all who share a directory."""
    if shared is None:
        yield
        return
    with (shared / TURN_FILE).open("w") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(LOOK)
        yield
