"""The NAT lab: a relay on a public segment, a hub behind one NAT, spokes behind others, all of them our own programs;
and what became of their connections, for each pair of NATs.

Not here: routers (internet.py), what a caller sees (probe.py), the table (cli/lab_nat.py).
"""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from broker.errors import BrokerError, UsageError
from broker.lab.cluster import Cluster, Member
from broker.lab.internet import NATS, Internet, Nat, sweep
from broker.lab.network import check_rights

__all__ = ["LabFault", "NatLab", "Pair", "Run", "Stopped", "expected", "parse_nat", "parse_pair"]

RELAY: Final = 443
ROOT: Final = "there is no NAT lab without them"
BEHIND: Final = ("hub", "server", "caller")
"""Each behind a router of its own."""
START: Final = 30.0
"""Seconds that a program may take until it is ready: the machine may be busy."""
MORE: Final = 45.0
"""What the caller gets beyond its own times, before it is given up."""
POLL: Final = 0.01
LAST_LINES: Final = 3


class LabFault(BrokerError):
    """One of the lab's programs did not do what it should. Says which, and its last words."""


class Stopped(Exception):
    """Told to stop in the middle."""


def expected(hub_nat: Nat, spoke_nat: Nat) -> str:
    """The path that a connection must end on: holes are punched only where a port is the same for whoever asks."""
    return "direct" if hub_nat == spoke_nat == "port-keeping" else "relay"


@dataclass(frozen=True, slots=True)
class Run:
    """One connection, from its beginning. Times are milliseconds; None: it never was."""

    path: str
    first_byte_ms: float | None
    direct_ms: float | None
    calls: int
    failed: int
    calls_per_s: float
    p50_ms: float | None

    @staticmethod
    def of(said: Iterable[dict[str, Any]]) -> Run:
        """From what the caller said."""
        rows = {row["event"] + row.get("path", "") * (row["event"] == "path"): row for row in reversed(list(said))}
        end = rows["calls"]
        return Run(
            end["path"],
            rows["answer"]["ms"],
            rows.get("pathdirect", {}).get("ms"),
            end["calls"],
            sum(end["failed"].values()) + end["left_out"],
            end["calls_per_s"],
            end["p50_ms"],
        )


@dataclass(slots=True)
class Pair:
    """All runs of a pair of NATs, and the faults that ended others."""

    hub_nat: Nat
    spoke_nat: Nat
    runs: list[Run] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Each run ended on the path that it should, and no call failed."""
        wanted = expected(self.hub_nat, self.spoke_nat)
        return (
            bool(self.runs)
            and not self.faults
            and all(r.path == wanted and r.calls and not r.failed for r in self.runs)
        )

    def row(self) -> dict[str, Any]:
        """Medians; ``path`` is the most frequent one, ``none`` when there was no connection."""
        paths = Counter(run.path for run in self.runs)
        direct = [run.direct_ms for run in self.runs if run.direct_ms is not None]
        return {
            "hub_nat": self.hub_nat,
            "spoke_nat": self.spoke_nat,
            "path": paths.most_common(1)[0][0] if paths else "none",
            "first_byte_ms": _median(run.first_byte_ms for run in self.runs),
            "direct_ms": _median(direct),
            "calls_per_s": _median(run.calls_per_s for run in self.runs),
            "p50_ms": _median(run.p50_ms for run in self.runs),
            "calls": sum(run.calls for run in self.runs),
            "failed": sum(run.failed for run in self.runs),
            "runs": len(self.runs),
            "paths": dict(paths),
            "direct_ms_max": max(direct, default=None),
            "passed": self.passed,
            "faults": self.faults,
        }


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(statistics.median(there), 1) if there else None


class NatLab:
    """Use as a context manager: it leaves nothing but, in ``directory``, the logs. ``watch``: seconds in which a path
    may become direct; ``seconds`` and ``inflight``: the calls after that."""

    def __init__(
        self,
        directory: Path,
        *,
        watch: float = 3.0,
        seconds: float = 2.0,
        inflight: int = 16,
        stop: threading.Event | None = None,
    ) -> None:
        self._watch, self._seconds, self._inflight = watch, seconds, inflight
        self._stop = stop or threading.Event()
        self._internet = Internet()
        self._cluster = Cluster(directory, network=self._internet)
        self._begun = False

    def open(self) -> None:
        """Builds it and starts the relay. What killed labs have left goes first. UsageError where it cannot be."""
        check_rights(ROOT)
        sweep()
        self._begun = True
        self._cluster.begin()
        self._build()
        self._start("relay")

    def close(self) -> None:
        """However far it came."""
        if self._begun:
            self._end(*BEHIND)  # nothing of theirs is worth draining
            self._cluster.down()

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        cluster, net = self._cluster, self._internet
        relay = cluster.add_relay("relay", RELAY)
        for name in BEHIND:
            net.add_lan(f"nat-{name}", "port-keeping", name)
        ticket = cluster.ticket("hub")
        caller = ["--watch", str(self._watch), "--seconds", str(self._seconds), "--inflight", str(self._inflight)]
        for name, command in {
            "hub": ["hub", "--open", "--name", "hub", "--bind", "0.0.0.0:0", "--http", "off", "--json",
                    "--ticket-file", str(ticket), *relay],
            "server": ["serve", f"@{ticket}", "broker.lab.probe:app", "--json"],
            "caller": ["lab", "probe", f"@{ticket}", *caller],
        }.items():  # fmt: skip
            cluster.add(Member(name, "hub" if name == "hub" else "spoke", "", [*command, *cluster.trusting]))

    def run(self, pair: Pair) -> None:
        """Once more, all of it anew. Raises Stopped."""
        try:
            pair.runs.append(self._run(pair.hub_nat, pair.spoke_nat))
        except LabFault as fault:
            pair.faults.append(str(fault))
        finally:
            self._end(*BEHIND)
            self._keep_logs(f"{pair.hub_nat}+{pair.spoke_nat}-{len(pair.runs) + len(pair.faults)}")

    def _run(self, hub_nat: Nat, spoke_nat: Nat) -> Run:
        for name in BEHIND:
            self._internet.lans[f"nat-{name}"].translate(hub_nat if name == "hub" else spoke_nat)
        for name in ("hub", "server"):
            self._start(name)
        self._cluster.start("caller")
        within = self._watch + self._seconds + MORE
        self._wait_for(lambda: any(row["event"] == "calls" for row in self._said("caller")), within, "caller")
        return Run.of(self._said("caller"))

    def _start(self, name: str) -> None:
        """Returns when it says that it is ready."""
        self._cluster.start(name)
        self._wait_for(lambda: any(row["event"] == "ready" for row in self._said(name)), START, name)

    def _wait_for(self, true: Callable[[], bool], within: float, name: str) -> None:
        deadline = time.monotonic() + within
        while not true():
            if self._stop.is_set():
                raise Stopped
            if not self._cluster.running(name) and not true():
                raise LabFault(f"{name} ended: {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise LabFault(f"{name} was not done after {within:g} s: {self._last_words(name)}")
            time.sleep(POLL)

    def _said(self, name: str) -> list[dict[str, Any]]:
        """Its lines of JSON so far."""
        text = self._text(name)
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith('{"event"')]

    def _last_words(self, name: str) -> str:
        return " / ".join(self._text(name).splitlines()[-LAST_LINES:]) or "it said nothing"

    def _text(self, name: str) -> str:
        try:
            return self._cluster.log(name).read_text()
        except FileNotFoundError:
            return ""

    def _end(self, *names: str) -> None:
        for name in names:
            if name in self._cluster.members:
                self._cluster.end(name, signal.SIGKILL)

    def _keep_logs(self, run: str) -> None:
        for name in BEHIND:
            log = self._cluster.log(name)
            if log.exists():
                log.replace(log.with_name(f"{run}-{name}.log"))
        self._cluster.ticket("hub").unlink(missing_ok=True)


def parse_pair(text: str) -> tuple[Nat, Nat]:
    """``HUB_NAT/SPOKE_NAT``."""
    hub, slash, spoke = text.partition("/")
    if slash and {hub, spoke} <= set(NATS):
        return parse_nat(hub), parse_nat(spoke)
    raise UsageError(f"{text!r} is not HUB_NAT/SPOKE_NAT; a NAT is one of {', '.join(NATS)}")


def parse_nat(text: str) -> Nat:
    for nat in NATS:
        if nat == text:
            return nat
    raise UsageError(f"{text!r} is no NAT; a NAT is one of {', '.join(NATS)}")
