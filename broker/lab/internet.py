"""A public segment in network namespaces, and local networks behind routers that translate addresses.

Routers let in only what belongs to a flow that began inside: without that nobody could see a hole being punched. No
machine but the lab's own hosts is on the segment, so its addresses are documentation's, unless it has a subnet of its
own. Needs what network.py needs. Not here: what runs on a host, what is measured (nat.py), routers in containers
(router.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from broker.errors import UsageError
from broker.lab.network import MACHINE, TABLE, Network, do

__all__ = ["CHAINS", "NATS", "Internet", "Lan", "Nat", "sweep", "translation"]

Nat = Literal["port-keeping", "symmetric", "udp-blocked"]
"""How a router translates: a flow keeps its port where that is free; each flow to another address gets a port of its
own, by chance; as the first, and UDP does not pass."""
NATS: Final[tuple[Nat, ...]] = get_args(Nat)

PUBLIC: Final = "203.0.113"
PRIVATE: Final = "192.168"
NEW_PORTS: Final = "20000-29999"
"""From which a flow gets its port when its router has forgotten it. None that a host draws for itself (the kernel's
begin at 32768): a router keeps a port that is among them, and then nothing has changed."""
CHAINS: Final = {
    "leaving": "nat hook postrouting priority 100",
    "passing": "filter hook forward priority 0",
    "strange": "filter hook forward priority 1",
    "knocking": "filter hook input priority 1",
}
"""Of a router, and where each is."""
FLOWS: Final = "/proc/net/nf_conntrack"
SPACES: Final = Path("/run/netns")
NAME: Final = "bn"
LONG_ENOUGH: Final = 5.0
"""Seconds in which what is ended must be gone."""


def translation(nat: Nat, outside: str = "eth0") -> dict[str, tuple[str, ...]]:
    """The rules of a router, by chain. ``outside``: its device on the public segment."""
    unasked = f"iifname {outside} ct state != {{ established, related }} drop"
    return {
        "leaving": (f"oifname {outside} masquerade{' random' if nat == 'symmetric' else ''}",),
        "strange": (unasked, *(["meta l4proto udp drop"] if nat == "udp-blocked" else [])),
        # Dropped before it is a flow: one that the router has on its books would take the port from who is inside.
        "knocking": (unasked,),
    }


class Internet(Network):
    """The public segment. Its hosts are servers and the routers of :attr:`lans`. Without a ``subnet`` of its own it
    lives as long as this object, and :func:`sweep` takes it away afterwards; with one this machine is on it too, and it
    outlasts the process, as a :class:`Network` does."""

    def __init__(self, prefix: str | None = None, subnet: str | None = None) -> None:
        super().__init__(prefix or NAME + secrets.token_hex(3), subnet or PUBLIC)
        self.lans: dict[str, Lan] = {}
        self._alone = subnet is None
        self._claim = _claim(self.prefix) if self._alone else None

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """One that is up, from what :meth:`state` was."""
        internet = cls(state["prefix"], state["subnet"])
        internet.hosts.update(state["hosts"])
        for router, hosts in state["lans"].items():
            internet.lans[router] = lan = Lan(internet, router)
            lan.hosts.update(hosts)
        return internet

    def state(self) -> dict[str, Any]:
        return {**super().state(), "lans": {router: lan.hosts for router, lan in self.lans.items()}}

    def up(self) -> None:
        if not self._alone:
            return super().up()
        do("ip", "netns", "add", self._bridge_space)
        self._add_bridge()

    def add_lan(self, router: str, nat: Nat, *hosts: str) -> Lan:
        """A router on the segment, and hosts behind it."""
        self.add(router)
        self.lans[router] = lan = Lan(self, router)
        lan.up()
        lan.translate(nat)
        for host in hosts:
            lan.add(host)
        return lan

    def address(self, host: str) -> str:
        """A host's own, behind whatever router."""
        for lan in self.lans.values():
            if host in lan.hosts:
                return lan.address(host)
        return super().address(host)

    def remove(self, host: str) -> None:
        """Also what runs there; with a router, what is behind it."""
        if host not in self.hosts:
            next(lan for lan in self.lans.values() if host in lan.hosts).remove(host)
            return
        if (lan := self.lans.pop(host, None)) is not None:
            for one in list(lan.hosts):
                lan.remove(one)
        _end_all(self._space(host))
        super().remove(host)

    def down(self) -> None:
        """Leaves nothing, however far it came: neither a namespace nor a process in one."""
        for host in list(self.hosts):
            self.remove(host)
        super().down()
        if self._claim is not None:
            self._claim.close()

    def let_in(self, host: str, port: int) -> None:
        """The routers that are there let a host of the segment come to this port of whoever is behind them, by TCP."""
        for router, lan in self.lans.items():
            do("ip", "-n", self._space(host), "route", "add", f"{lan.subnet}.0/24", "via", self.address(router))
            allowed = f"ip saddr {self.address(host)} tcp dport {port} accept"
            self._nft(router, f"insert rule {TABLE} strange {allowed}")

    # What happens between local networks.

    def cut(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """No UDP passes between the routers that they are behind: nothing is left to them but relays."""
        if one_way:
            raise UsageError("between local networks both ways are cut, or none")
        for one, other in product(self.routers(some), self.routers(others)):
            if one != other:
                self.lans[one].refuse(self.address(other))

    def mend(self) -> None:
        super().mend()
        for lan in self.lans.values():
            lan.mend()

    def routers(self, hosts: Iterable[str]) -> list[str]:
        """That they are behind, each once."""
        hosts = set(hosts)
        return [router for router, lan in self.lans.items() if hosts & lan.hosts.keys()]


class Lan(Network):
    """A local network. The router's own address in it is the first."""

    def __init__(self, internet: Internet, router: str) -> None:
        super().__init__(internet.prefix, f"{PRIVATE}.{internet.hosts[router]}", holder=router)
        self.internet, self.router = internet, router

    def up(self) -> None:
        self._add_bridge()
        do("ip", "-n", self._bridge_space, "address", "add", f"{self.subnet}.{MACHINE}/24", "dev", "bridge")
        do(*self.command(self.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        for chain, hook in CHAINS.items():
            self._nft(self.router, f"add chain {TABLE} {chain} {{ type {hook}; }}")

    def add(self, host: str) -> str:
        address = super().add(host)
        self._route(host)
        return address

    def remove(self, host: str) -> None:
        _end_all(self._space(host))
        super().remove(host)

    def down(self) -> None:
        self.internet.remove(self.router)

    def _route(self, host: str) -> None:
        do("ip", "-n", self._space(host), "route", "add", "default", "via", f"{self.subnet}.{MACHINE}")

    # What routers do.

    def translate(self, nat: Nat) -> None:
        """From now on. It knows none of its flows any more."""
        for chain, rules in translation(nat).items():
            self._rules(chain, *rules)
        self._forget()

    def rebind(self) -> None:
        """It knows none of its flows any more: UDP goes on from other ports, TCP from the same."""
        to = f"oifname eth0 meta l4proto udp masquerade to :{NEW_PORTS}"
        self._rules("leaving", to, "oifname eth0 masquerade")
        self._forget()

    def _rules(self, chain: str, *rules: str) -> None:
        self._nft(self.router, f"flush chain {TABLE} {chain}")
        for rule in rules:
            self._nft(self.router, f"add rule {TABLE} {chain} {rule}")

    def _forget(self) -> None:
        address = self.internet.address(self.router)
        self._readdress(self.router, address, address)

    def redial(self) -> str:
        """The router gets another public address, as from a provider, and knows none of its flows. Returns it."""
        before = self.internet.address(self.router)
        number = 1 + max(self.internet.hosts.values())
        self.internet.hosts[self.router] = number
        self._readdress(self.router, before, self.internet.address(self.router))
        return self.internet.address(self.router)

    def move(self, host: str) -> str:
        """A host gets another address. Returns it."""
        before = self.address(host)
        self.hosts[host] = 1 + max(self.hosts.values())
        self._readdress(host, before, self.address(host))
        self._route(host)
        return self.address(host)

    def _readdress(self, host: str, before: str, after: str) -> None:
        do("ip", "-n", self._space(host), "address", "delete", f"{before}/24", "dev", "eth0")
        if host == self.router:
            self._wait_for_no_flows()
        do("ip", "-n", self._space(host), "address", "add", f"{after}/24", "dev", "eth0")

    def _wait_for_no_flows(self) -> None:
        """A router that loses an address forgets the flows that it has translated to it; the kernel does so soon."""
        deadline = time.monotonic() + LONG_ENOUGH
        while _translated(do(*self.command(self.router, "cat", FLOWS))) and time.monotonic() < deadline:
            time.sleep(0.01)

    def refuse(self, *addresses: str) -> None:
        """No UDP passes to or from these addresses any more."""
        for side in ("saddr", "daddr"):
            rule = f"meta l4proto udp ip {side} {{ {', '.join(addresses)} }} drop"
            self._nft(self.router, f"add rule {TABLE} passing {rule}")

    def mend(self) -> None:
        super().mend()
        self._nft(self.router, f"flush chain {TABLE} passing")


def _translated(flows: str) -> bool:
    """Whether one in a router's books (the kernel's) has answers that come to another address than it began at."""
    ends = (re.findall(r"(?:src|dst)=(\S+)", line) for line in flows.splitlines())
    return any(len(one) == 4 and one[0] != one[3] for one in ends)


def _claim(prefix: str) -> socket.socket | None:
    """Says that the owner of these namespaces lives, for as long as it does: the kernel frees the name with the
    process. None: another process says so."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0broker-lab-{prefix}")
    except OSError:
        claim.close()
        return None
    return claim


def sweep() -> list[str]:
    """Removes what labs have left that were killed: namespaces of :class:`Internet`, and what runs in them. Returns
    their names."""
    left = []
    for prefix in {path.name.partition("-")[0] for path in SPACES.glob(f"{NAME}??????-*")}:
        if (claim := _claim(prefix)) is None:
            continue
        with claim:
            for path in SPACES.glob(f"{prefix}-*"):
                _end_all(path.name)
                do("ip", "netns", "delete", path.name, check=False)
                left.append(path.name)
    return left


def _end_all(space: str) -> None:
    """Kills whatever runs in a namespace, and waits until it is gone."""
    deadline = time.monotonic() + LONG_ENOUGH
    while pids := do("ip", "netns", "pids", space, check=False).split():
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
