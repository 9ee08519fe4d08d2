"""Hosts as network namespaces on one bridge, and what can happen to their links: cut, lossy, slow.

The bridge has a namespace of its own; the machine itself is one more host on it, so that a person's browser reaches the
rest. Needs root, iproute2 and nftables. Nothing of it outlives :meth:`Network.down`. Not here: what runs on a host
(cluster.py), and routers with networks behind them (internet.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any, Final

from broker.errors import UsageError

__all__ = ["TABLE", "Network", "check_rights", "do"]

TOOLS: Final = {"ip": "iproute2", "nft": "nftables", "tc": "iproute2"}
"""Programs, and the Debian packages that have them."""
MACHINE: Final = 1
"""The last number of the address of whoever holds the bridge: this machine, or a router."""
COMMAND_TIMEOUT: Final = 20.0
TABLE: Final = "inet lab"


def check_rights(instead: str = "--plain runs the same on loopback, without broken links") -> None:
    """Raises UsageError when namespaces cannot be made here, and says what to do."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise UsageError(f"the lab needs {', '.join(missing)}; as root, type: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise UsageError(f"network namespaces need root; {instead}")


def do(*command: str, check: bool = True) -> str:
    """Runs one of TOOLS to its end and returns what it says. UsageError with its own words when it fails."""
    # In a process group of its own: an interrupt at the terminal does not end the tidying up.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False, process_group=0
    )
    if check and done.returncode:
        raise UsageError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Network:
    """``prefix`` begins the name of every namespace and device (8 characters at most); ``subnet`` is the first three
    numbers of the addresses; ``holder`` is the host that holds the bridge."""

    def __init__(
        self, prefix: str, subnet: str, hosts: Mapping[str, int] | None = None, *, holder: str = "net"
    ) -> None:
        self.prefix, self.subnet, self._bridge_space = prefix, subnet, f"{prefix}-{holder}"
        self.hosts: dict[str, int] = dict(hosts or {})

    def state(self) -> dict[str, Any]:
        """From which another process finds it again."""
        return {"prefix": self.prefix, "subnet": self.subnet, "hosts": self.hosts}

    def address(self, host: str) -> str:
        return f"{self.subnet}.{self.hosts[host]}"

    def command(self, host: str, *command: str) -> list[str]:
        """``command`` as it runs on a host; it takes the place of ``ip``, so its process id is the program's."""
        return ["ip", "netns", "exec", self._space(host), *command]

    def up(self) -> None:
        """The bridge, and this machine on it."""
        outside, inside = f"{self.prefix}0", f"{self.prefix}0b"
        do("ip", "netns", "add", self._bridge_space)
        self._add_bridge()
        do("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self._bridge_space)
        do("ip", "-n", self._bridge_space, "link", "set", inside, "master", "bridge", "up")
        do("ip", "address", "add", f"{self.subnet}.{MACHINE}/24", "dev", outside)
        do("ip", "link", "set", outside, "up")

    def _add_bridge(self) -> None:
        do("ip", "-n", self._bridge_space, "link", "add", "bridge", "type", "bridge")
        do("ip", "-n", self._bridge_space, "link", "set", "bridge", "up")

    def add(self, host: str) -> str:
        """A further host. Returns its address."""
        number = next(number for number in range(MACHINE + 1, 255) if number not in self.hosts.values())
        self.hosts[host] = number
        space, device = self._space(host), f"{self.prefix}{number}"
        do("ip", "netns", "add", space)
        do("ip", "-n", self._bridge_space, "link", "add", device, "type", "veth", "peer", "name", "eth0",
           "netns", space)  # fmt: skip
        do("ip", "-n", self._bridge_space, "link", "set", device, "master", "bridge", "up")
        do("ip", "-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        do("ip", "-n", space, "link", "set", "lo", "up")
        do("ip", "-n", space, "link", "set", "eth0", "up")
        self._nft(host, f"add table {TABLE}")
        self._nft(host, f"add chain {TABLE} arriving {{ type filter hook input priority 0; }}")
        return self.address(host)

    def remove(self, host: str) -> None:
        do("ip", "netns", "delete", self._space(host), check=False)
        del self.hosts[host]

    def down(self) -> None:
        """Leaves nothing, however far :meth:`up` and :meth:`add` came."""
        for host in list(self.hosts):
            self.remove(host)
        do("ip", "link", "delete", f"{self.prefix}0", check=False)
        do("ip", "netns", "delete", self._bridge_space, check=False)

    # What happens to links.

    def cut(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Nothing passes between the two sides any more; ``one_way``: what ``some`` send does not reach ``others``."""
        some, others = list(some), list(others)
        self._refuse(others, some)
        if not one_way:
            self._refuse(some, others)

    def _refuse(self, receivers: list[str], senders: list[str]) -> None:
        addresses = ", ".join(self.address(host) for host in senders)
        for host in receivers:
            if addresses and host not in senders:
                self._nft(host, f"add rule {TABLE} arriving ip saddr {{ {addresses} }} drop")

    def lose(self, hosts: Iterable[str], percent: int) -> None:
        """Of what arrives at a host, so many packets in a hundred do not."""
        for host in hosts:
            self._nft(host, f"add rule {TABLE} arriving iifname eth0 numgen random mod 100 < {percent} drop")

    def slow(self, hosts: Iterable[str], kbit: int) -> None:
        """What comes to a host comes at so many kbit a second, with a queue of 400 ms."""
        for host in hosts:
            device = f"{self.prefix}{self.hosts[host]}"
            do("tc", "-n", self._bridge_space, "qdisc", "replace", "dev", device, "root", "tbf",
                 "rate", f"{kbit}kbit", "burst", "32kb", "latency", "400ms")  # fmt: skip

    def mend(self) -> None:
        """All links are whole again."""
        for host, number in self.hosts.items():
            self._nft(host, f"flush chain {TABLE} arriving")
            do("tc", "-n", self._bridge_space, "qdisc", "delete", "dev", f"{self.prefix}{number}", "root",
                 check=False)  # fmt: skip

    def _nft(self, host: str, rule: str) -> None:
        do(*self.command(host, "nft", rule))

    def _space(self, host: str) -> str:
        return f"{self.prefix}-{host}"
