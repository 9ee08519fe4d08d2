"""Hosts in namespaces, and their links: what is cut does not pass, what is lossy loses, and nothing is left over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker.lab.network import Network, check_rights

pytestmark = pytest.mark.system

ECHO = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], 7007)); print("up", flush=True)
while True:
    data, who = s.recvfrom(2048); s.sendto(data, who)
"""
ASK = """
import socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(0.25); back = 0
for n in range(int(sys.argv[2])):
    s.sendto(b"%d" % n, (sys.argv[1], 7007))
    try:
        s.recv(64); back += 1
    except TimeoutError: pass
print(back)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    check_rights()
    network = Network(f"t{os.getpid() % 4096:03x}", "10.94.3")
    try:
        network.up()
        yield network
    finally:
        network.down()
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert network.prefix not in left


def _answers(network: Network, asker: str, asked: str, count: int = 4) -> int:
    command = network.command(asker, sys.executable, "-c", ASK, network.address(asked), str(count))
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_links_break_and_mend(network: Network) -> None:
    for host in ("a", "b"):
        network.add(host)
    echo = subprocess.Popen(
        network.command("b", sys.executable, "-c", ECHO, network.address("b")), stdout=subprocess.PIPE, text=True
    )
    try:
        assert echo.stdout is not None
        assert echo.stdout.readline() == "up\n"
        assert _answers(network, "a", "b") == 4
        network.cut(["a"], ["b"])
        assert _answers(network, "a", "b") == 0
        network.mend()
        network.cut(["b"], ["a"], one_way=True)
        assert _answers(network, "a", "b") == 0, "what b sends does not arrive at a"
        network.mend()
        network.lose(["b"], 50)
        assert 2 < _answers(network, "a", "b", 40) < 38
        network.mend()
        network.slow(["b"], 64)
        assert _answers(network, "a", "b") == 4
        network.mend()
        assert _answers(network, "a", "b") == 4
    finally:
        echo.kill()
        echo.wait()
        if echo.stdout is not None:
            echo.stdout.close()
