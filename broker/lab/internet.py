"""A public segment in network namespaces, and local networks behind routers that translate addresses.

Routers let in only what belongs to a flow that began inside: without that nobody could see a hole being punched. No
machine but the lab's own hosts is on the segment, so its addresses are documentation's. Needs what network.py needs.
Not here: what runs on a host, and what is measured (nat.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Final, Literal, get_args

from broker.lab.network import MACHINE, TABLE, Network, do

__all__ = ["NATS", "Internet", "Lan", "Nat", "sweep"]

Nat = Literal["port-keeping", "symmetric", "udp-blocked"]
"""How a router translates: a flow keeps its port where that is free; each flow to another address gets a port of its
own, by chance; as the first, and UDP does not pass."""
NATS: Final[tuple[Nat, ...]] = get_args(Nat)

PUBLIC: Final = "203.0.113"
PRIVATE: Final = "192.168"
NEW_PORTS: Final = "50000-59999"
"""From which a flow gets its port when its router has forgotten it."""
UNASKED: Final = "iifname eth0 ct state != { established, related } drop"
FLOWS: Final = "/proc/net/nf_conntrack"
SPACES: Final = Path("/run/netns")
NAME: Final = "bn"
LONG_ENOUGH: Final = 5.0
"""Seconds in which what is ended must be gone."""


class Internet(Network):
    """The public segment. Its hosts are servers and the routers of :attr:`lans`."""

    def __init__(self) -> None:
        super().__init__(NAME + secrets.token_hex(3), PUBLIC)
        self.lans: dict[str, Lan] = {}
        self._claim = _claim(self.prefix)

    def up(self) -> None:
        do("ip", "netns", "add", self._bridge_space)
        self._add_bridge()

    def add_lan(self, router: str, nat: Nat, *hosts: str) -> Lan:
        """A router on the segment, and hosts behind it."""
        self.add(router)
        self.lans[router] = lan = Lan(self, router, f"{PRIVATE}.{self.hosts[router]}")
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
        do("ip", "netns", "delete", self._bridge_space, check=False)
        if self._claim is not None:
            self._claim.close()


class Lan(Network):
    """A local network. The router's own address in it is the first."""

    def __init__(self, internet: Internet, router: str, subnet: str) -> None:
        super().__init__(internet.prefix, subnet, holder=router)
        self.internet, self.router = internet, router

    def up(self) -> None:
        self._add_bridge()
        do("ip", "-n", self._bridge_space, "address", "add", f"{self.subnet}.{MACHINE}/24", "dev", "bridge")
        do(*self.command(self.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        for chain, hook in (
            ("leaving", "nat hook postrouting priority 100"),
            ("passing", "filter hook forward priority 0"),
            ("strange", "filter hook forward priority 1"),
            ("knocking", "filter hook input priority 1"),
        ):
            self._nft(self.router, f"add chain {TABLE} {chain} {{ type {hook}; }}")
        # Dropped before it is a flow: one that the router has on its books would take the port from who is inside.
        self._nft(self.router, f"add rule {TABLE} knocking {UNASKED}")

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
        self._rules("leaving", f"oifname eth0 masquerade{' random' if nat == 'symmetric' else ''}")
        self._rules("strange", UNASKED, *(["meta l4proto udp drop"] if nat == "udp-blocked" else []))
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
        while "dport=" in do(*self.command(self.router, "cat", FLOWS)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def refuse(self, *addresses: str) -> None:
        """No UDP passes to or from these addresses any more."""
        for side in ("saddr", "daddr"):
            rule = f"meta l4proto udp ip {side} {{ {', '.join(addresses)} }} drop"
            self._nft(self.router, f"add rule {TABLE} passing {rule}")

    def mend(self) -> None:
        super().mend()
        self._nft(self.router, f"flush chain {TABLE} passing")


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
