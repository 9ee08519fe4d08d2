"""Breaks a lab of processes, and mends it: ends, pauses, cuts, fills, adds.

Not here: what is broken when, and what must be seen then (chaos.py).
"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

from broker.errors import UsageError
from broker.lab.chaos import SETTLE, Watch, draw
from broker.lab.cluster import Cluster
from broker.lab.scenario import Scenario, Step

__all__ = ["LabHands"]

FILL_NAME: Final = "filling"


class LabHands:
    """For one scenario, on a lab that is up and has Prometheus. UsageError when it has none."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.seed, self._cluster = seed, cluster
        if "prometheus" not in cluster.members:
            raise UsageError("scenarios are judged by Prometheus; as root, type: apt-get install prometheus")
        self.prometheus = cluster.members["prometheus"].http
        self._added: list[str] = []
        self._drawn = draw([member.name for member in cluster.of("spoke")], seed)

    def check(self, scenario: Scenario) -> None:
        if scenario.links and self._cluster.network is None:
            raise UsageError(f"{scenario.name} breaks links: it needs a lab of namespaces, this one is --plain")
        if scenario.nat != (self._cluster.internet is not None):
            raise UsageError(
                f"{scenario.name} is for a lab behind NAT: `broker lab up --nat` makes one"
                if scenario.nat
                else f"{scenario.name} is for a lab without routers, this one is --nat"
            )
        if scenario.needs and shutil.which(scenario.needs) is None:
            raise UsageError(f"{scenario.name} needs {scenario.needs}: as root, apt-get install {scenario.needs}")

    def there(self) -> tuple[int, int]:
        return len(self._cluster.of("hub", "spoke", "observer")), len(self._cluster.of("spoke", "observer"))

    def do(self, step: Step, watch: Watch) -> None:
        action = step.action
        what = getattr(step, action)
        if action in ("kill", "stop", "start", "pause", "resume"):
            for name in self._members(what):
                self._process(action, name)
        elif action == "fill":
            for name in self._members(what):
                self._fill(name, watch)
        elif action == "clock":
            for name in self._members(what):
                self._restart_at(name, step.by)
        elif action == "add":
            self._add(step)
        elif action == "bad":
            self._bad(what)
        else:
            self._links(step, action, what)

    def _process(self, action: str, name: str) -> None:
        if action == "start":
            self._cluster.start(name)
        elif action == "pause":
            self._cluster.send(name, signal.SIGSTOP)
        elif action == "resume":
            self._cluster.send(name, signal.SIGCONT)
        else:
            self._cluster.end(name, signal.SIGKILL if action == "kill" else signal.SIGTERM)

    def _links(self, step: Step, action: str, what: Any) -> None:
        network = self._cluster.network
        assert network is not None
        if action == "cut":
            some = self._members(what)
            others = [name for name in self._members(step.from_) if name not in some and name != "prometheus"]
            network.cut(some, others, one_way=step.one_way)
        elif action == "lose":
            network.lose([name for name in self._members(what) if name != "prometheus"], step.percent)
        elif action == "slow":
            network.slow(self._members(what), step.kbit)
        elif action == "rebind":
            assert self._cluster.internet is not None
            for router in self._cluster.internet.routers(self._members(what)):
                self._cluster.internet.lans[router].rebind()
        else:
            network.mend()

    def _add(self, step: Step) -> None:
        for number in range(step.add or 0):
            name = f"added{len(self._added)}-{number}"
            self._cluster.add_node(name, "hub1", rate=step.rate, size=step.size, calls=0)
            self._added.append(name)
        for name in self._added[-(step.add or 0) :]:
            self._cluster.start(name)

    def _bad(self, kind: str) -> None:
        name = f"bad-{kind}"
        self._cluster.add_misfit(name, "hub1", kind)
        self._added.append(name)
        self._cluster.start(name)

    def _fill(self, name: str, watch: Watch) -> None:
        """The hub's data directory gets a file system of its own that has no room left."""
        self._cluster.end(name, signal.SIGTERM)
        self._cluster.small_disk(name)
        began = time.time()
        self._cluster.start(name)
        # Not `up`, which may be from before: a hub that finds its disk full does not start.
        watch.see(f'process_start_time_seconds{{node="{name}"}} > {began:.3f} - 1', SETTLE)
        with (self._cluster.data(name) / FILL_NAME).open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 65_536):
                    pass
            except OSError as error:
                watch.note(f"the disk of {name} says: {error.strerror}")

    def _restart_at(self, name: str, by: str) -> None:
        """With the library for programs of many threads: the other one locks up in them."""
        self._cluster.end(name, signal.SIGTERM)
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            raise UsageError("libfaketime is not where Debian's package has it; apt-get install faketime")
        self._cluster.start(name, {"LD_PRELOAD": str(library), "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})

    def put_back(self) -> None:
        cluster = self._cluster
        if cluster.network is not None:
            cluster.network.mend()
        for name in self._added:
            cluster.remove(name)
        for member in list(cluster.members.values()):
            cluster.send(member.name, signal.SIGCONT)
            if cluster.data(member.name).is_mount():
                (cluster.data(member.name) / FILL_NAME).unlink(missing_ok=True)
                cluster.end(member.name)
                cluster.whole_disk(member.name)
            if member.environment:
                cluster.end(member.name)
                member.environment = {}
            if not cluster.running(member.name):
                cluster.start(member.name)

    def _members(self, selector: str) -> list[str]:
        cluster = self._cluster
        groups = {
            "hubs": [member.name for member in cluster.of("hub")],
            "spokes": [member.name for member in cluster.of("spoke")],
            "all": list(cluster.members),
            **self._drawn,
        }
        if selector not in groups and selector not in cluster.members:
            raise UsageError(f"the lab has no {selector}")
        return groups.get(selector, [selector])
