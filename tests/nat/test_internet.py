"""Routers that translate, proven with plain UDP: holes are punched between those that keep ports and not otherwise, who
was not asked for does not get in, what a router forgets goes on from a new port, and nothing is left over."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.lab.internet import NEW_PORTS, Internet, Nat, sweep
from broker.lab.network import check_rights

pytestmark = pytest.mark.system

SERVER = """
import json, socket
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("0.0.0.0", 9000)); print(json.dumps("up"), flush=True)
while True:
    _, who = s.recvfrom(100); s.sendto(json.dumps(who).encode(), who)
"""
PEER = """
import json, select, socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("0.0.0.0", 4433)); s.settimeout(0.5)
for line in sys.stdin:
    host, port, patience = json.loads(line)
    said, until = None, time.monotonic() + patience
    while select.select([s], [], [], 0)[0]: s.recv(100)  # what has come since is not the answer to this
    while said is None and time.monotonic() < until:
        s.sendto(b"here", (host, port))
        try: data, who = s.recvfrom(100)
        except TimeoutError: continue
        if who == (host, port): said = data.decode()
    if said: s.sendto(b"here", (host, port))  # what was sent before the other side sent has not passed its router
    print(json.dumps(said), flush=True)
"""


class Peer:
    """A UDP socket on a host, that tells what comes from where it is told to send to."""

    def __init__(self, internet: Internet, host: str, code: str = PEER) -> None:
        self.internet = internet
        command = internet.command(host, sys.executable, "-c", code)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, host: str, port: int, patience: float = 1.0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps((host, port, patience)) + "\n")
        self.process.stdin.flush()

    def hears(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def seen(self) -> Any:
        """Its address as the server on the public segment sees it; None when nothing comes back."""
        self.tell(self.internet.address("server"), 9000)
        said = self.hears()
        return said and tuple(json.loads(said))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def internet() -> Iterator[Internet]:
    check_rights()
    internet = Internet()
    try:
        internet.up()
        internet.add("server")
        yield internet
    finally:
        internet.down()
        assert internet.prefix not in _namespaces()


@pytest.fixture
def peers(internet: Internet) -> Iterator[Any]:
    """``peers(host, ...)`` starts them, after the server."""
    with contextlib.ExitStack() as stack:

        def start(*hosts: str) -> list[Peer]:
            started = [Peer(internet, "server", SERVER), *(Peer(internet, host) for host in hosts)]
            for one in started:
                stack.callback(one.end)
            assert started[0].hears() == "up"
            return started[1:]

        yield start


def _namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("nats", "punched"),
    [
        (("port-keeping", "port-keeping"), True),
        (("port-keeping", "symmetric"), False),
        (("symmetric", "symmetric"), False),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_a_hole_is_punched_where_routers_keep_ports(
    internet: Internet, peers: Any, nats: tuple[Nat, Nat], punched: bool
) -> None:
    internet.add_lan("r1", nats[0], "a")
    internet.add_lan("r2", nats[1], "b")
    a, b = peers("a", "b")
    (seen_a, seen_b) = a.seen(), b.seen()
    assert (seen_a[0], seen_b[0]) == (internet.address("r1"), internet.address("r2"))
    a.tell(*seen_b, patience=2.0)
    b.tell(*seen_a, patience=2.0)
    assert [a.hears(), b.hears()] == (["here", "here"] if punched else [None, None])


def test_who_was_not_asked_for_does_not_get_in(internet: Internet, peers: Any) -> None:
    internet.add_lan("r1", "port-keeping", "a")
    internet.add("stranger")
    a, stranger = peers("a", "stranger")
    stranger.tell(*a.seen())
    assert stranger.hears() is None


def test_udp_is_blocked_and_other_things_are_not(internet: Internet, peers: Any) -> None:
    internet.add_lan("r1", "udp-blocked", "a")
    (a,) = peers("a")
    assert a.seen() is None
    code = f"import socket; socket.create_connection(({internet.address('server')!r}, 9000), 2)"
    refused = subprocess.run(
        internet.command("a", sys.executable, "-c", code), capture_output=True, text=True, check=False, timeout=30
    )
    assert "ConnectionRefusedError" in refused.stderr, "it came as far as the server"


def test_what_a_router_forgets_goes_on_from_a_new_port(internet: Internet, peers: Any) -> None:
    lan = internet.add_lan("r1", "port-keeping", "a")
    (a,) = peers("a")
    first = a.seen()
    assert first == (internet.address("r1"), 4433)
    assert a.seen() == first
    lan.rebind()
    second = a.seen()
    assert (second[0], second[1] != 4433) == (first[0], True)
    assert lan.redial() != first[0]
    assert a.seen()[0] == internet.address("r1") != first[0]
    before = internet.address("a")
    assert lan.move("a") == internet.address("a") != before
    assert a.seen() is not None
    lan.refuse(internet.address("server"))
    assert a.seen() is None
    lan.mend()
    assert a.seen() is not None


def test_the_new_ports_are_none_that_a_host_has_drawn(internet: Internet) -> None:
    """Of those that a host drew a third used to be among them, and went on from the same port."""
    internet.add_lan("r1", "port-keeping", "a")
    drawn = subprocess.run(
        internet.command("a", "cat", "/proc/sys/net/ipv4/ip_local_port_range"),
        capture_output=True,
        text=True,
        check=True,
    )
    first, last = (int(port) for port in drawn.stdout.split())
    new = range(*(int(port) for port in NEW_PORTS.split("-")))
    assert new[-1] < first or last < new[0]


def test_what_a_killed_lab_has_left_is_removed_and_the_living_are_left_alone(internet: Internet) -> None:
    code = (
        "import subprocess, time; from broker.lab.internet import Internet;"
        "net = Internet(); net.up(); net.add('server');"
        "sleeper = subprocess.Popen(net.command('server', 'sleep', '600'), stdout=-3);"
        "print(net.prefix, sleeper.pid, flush=True); time.sleep(600)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    prefix, sleeper = killed.stdout.readline().split()
    try:
        assert not any(prefix in name for name in sweep()), "its owner lives"
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert f"{prefix}-server" in _namespaces()
    assert {name for name in sweep() if prefix in name} == {f"{prefix}-server", f"{prefix}-net"}
    assert prefix not in _namespaces()
    command = Path(f"/proc/{sleeper}/cmdline")
    assert not command.exists() or not command.read_bytes(), "nor a process"
    assert internet.prefix in _namespaces()
    with socket.socket(socket.AF_UNIX) as claim:
        claim.bind(f"\0broker-lab-{prefix}")
