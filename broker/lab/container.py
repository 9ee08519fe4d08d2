"""Breaks a hub from inside its container, and mends it: sharing its network and its processes, without the engine's
socket.

What can be done from there: end and pause the hub, lose what comes to it, cut it off from others. It needs NET_ADMIN
(nft) and KILL, and the hub's container to begin the hub anew when it was killed (docker-compose.yml says how), so that
the container, its address and this process stay. Not here: what is broken when, and what must be seen (chaos.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import UsageError
from broker.lab.chaos import Watch, draw
from broker.lab.scenario import Scenario, Step

__all__ = ["ContainerHands", "Process", "hub_process"]

SERVICES: Final = {"hubs": ("hub1", "hub2"), "spokes": ("spoke",), "observer": ("observer",)}
"""The names that the testbed's DNS knows, by what scenarios call them."""
BACK_WITHIN: Final = 15.0
"""Seconds for a hub that was killed to be a process again."""
COMMAND_TIMEOUT: Final = 20.0
TABLE: Final = "inet chaos"


@dataclass(frozen=True, slots=True)
class Process:
    """The hub, and the process that begins it anew."""

    pid: int
    keeper: int


def hub_process(proc: Path = Path("/proc")) -> Process | None:
    """The hub of this PID namespace; None while there is none."""
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            except OSError:  # it has gone meanwhile
                continue
            if command[1:4] == [b"-m", b"broker", b"hub"] and state != b"Z":
                return Process(int(entry.name), int(parent))
    return None


class ContainerHands:
    """For one scenario. ``hub`` is the service whose network and processes are shared, ``prometheus`` HOST:PORT."""

    def __init__(self, hub: str, seed: int, prometheus: str) -> None:
        self.hub, self.seed, self.prometheus = hub, seed, prometheus
        self._keeper = 0

    def check(self, scenario: Scenario) -> None:
        if scenario.nat:
            raise UsageError(f"{scenario.name} cannot be done from the container of {self.hub}, which has no router")
        for step in scenario.steps:
            if not self._can(step):
                raise UsageError(f"{scenario.name} cannot be done from the container of {self.hub}: {step}")

    def _can(self, step: Step) -> bool:
        match step.action:
            case "see" | "wait" | "mend":
                return True
            case "kill" | "start" | "pause" | "resume" | "lose":
                return bool(getattr(step, step.action) == self.hub)
            case "cut":
                return (step.cut == self.hub) != (step.from_ == self.hub)
        return False

    def there(self) -> tuple[int, int]:
        hubs, others = (sum(len(_addresses(name)) for name in names) for names in (SERVICES["hubs"], _nodes()))
        return hubs + others, others

    def do(self, step: Step, watch: Watch) -> None:
        match step.action:
            case "kill":
                self._kill()
            case "start":
                self._start()
            case "pause":
                _signal(_the_hub().pid, signal.SIGSTOP)
            case "resume":
                _signal(_the_hub().pid, signal.SIGCONT)
            case "lose":
                _nft(f'add rule {TABLE} arriving iifname != "lo" numgen random mod 100 < {step.percent} drop')
            case "cut":
                self._cut(step)
            case _:
                self._mend()

    def _kill(self) -> None:
        """Who would begin it anew stands still meanwhile: it stays away until `start`."""
        hub = _the_hub()
        self._keeper = hub.keeper
        _signal(hub.keeper, signal.SIGSTOP)
        _signal(hub.pid, signal.SIGKILL)

    def _start(self) -> None:
        _signal(self._keeper, signal.SIGCONT)
        self._keeper = 0
        deadline = time.monotonic() + BACK_WITHIN
        while hub_process() is None:
            if time.monotonic() > deadline:
                raise UsageError(f"{self.hub} was killed and its container did not begin it anew; its log says why")
            time.sleep(0.05)

    def _cut(self, step: Step) -> None:
        """What one side sends does not reach the other; nor the other way, unless ``one_way``."""
        sends = step.cut == self.hub
        others = ", ".join(self._members(step.from_ if sends else str(step.cut)))
        if not others:
            raise UsageError(f"{step}: nobody there")
        if not (step.one_way and not sends):
            _nft(f"add rule {TABLE} leaving ip daddr {{ {others} }} drop")
        if not (step.one_way and sends):
            _nft(f"add rule {TABLE} arriving ip saddr {{ {others} }} drop")

    def _members(self, selector: str) -> list[str]:
        """Addresses, without this hub's own."""
        spokes = sorted(_addresses("spoke"))
        own = _addresses(self.hub)
        hubs = [address for name in SERVICES["hubs"] for address in _addresses(name) if address not in own]
        groups = {"hubs": hubs, "spokes": spokes, "observer": _addresses("observer"), **draw(spokes, self.seed)}
        groups["all"] = [*hubs, *spokes, *groups["observer"]]
        return groups[selector] if selector in groups else _addresses(selector)

    def put_back(self) -> None:
        """Also what one before this has left broken."""
        self._mend()
        if self._keeper:
            self._start()
        if (hub := hub_process()) is not None:
            for pid in (hub.keeper, hub.pid):
                _signal(pid, signal.SIGCONT)

    def _mend(self) -> None:
        """An empty table takes the place of the one that was there."""
        _nft(f"add table {TABLE}", f"delete table {TABLE}", f"add table {TABLE}")
        for chain, hook in (("arriving", "input"), ("leaving", "output")):
            _nft(f"add chain {TABLE} {chain} {{ type filter hook {hook} priority 0; }}")


def _nodes() -> tuple[str, ...]:
    return (*SERVICES["spokes"], *SERVICES["observer"])


def _the_hub() -> Process:
    if (hub := hub_process()) is None:
        raise UsageError(
            "there is no hub among the processes here; this needs the hub's PID namespace (pid: service:hub1)"
        )
    return hub


def _addresses(name: str) -> list[str]:
    """Of each container of a service; none when there is no such service now."""
    try:
        return socket.gethostbyname_ex(name)[2]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise UsageError(f"no right to signal process {pid}; this needs cap_add: [KILL]") from None


def _nft(*rules: str) -> None:
    program = shutil.which("nft")
    if program is None:
        raise UsageError("nft is not installed here; take the image's stage `tools`")
    done = subprocess.run(
        [program, "; ".join(rules)], capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()[:1]
        raise UsageError(f"nft: {why[0] if why else 'failed'}\nthis needs cap_add: [NET_ADMIN], as root")
