"""The ten lines of docs/operations.md that put a hub behind NAT and a relay on a server are run as they stand, each
where it says, in namespaces."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.lab.internet import Internet
from broker.lab.network import check_rights
from tests.cli.processes import ROOT, environment
from tests.faults.gossiping import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TITLE = "## At home behind NAT, in ten lines"
LINE = re.compile(r"^(server|home|away)\$ +(.+?)( &)?$", re.MULTILINE)
WITHIN = 30.0


def _lines() -> list[tuple[str, str, bool]]:
    """Where, what, and whether it goes on."""
    section = (ROOT / "docs/operations.md").read_text().partition(f"{TITLE}\n")[2].partition("\n## ")[0]
    return [(where, command, bool(goes_on)) for where, command, goes_on in LINE.findall(section)]


class Hosts:
    """A relay's server, a hub's home and a spoke, each with a directory: files that a reader copies are copied."""

    def __init__(self, internet: Internet, folder: Path) -> None:
        self.internet, self.folder = internet, folder
        self.going: list[subprocess.Popen[bytes]] = []
        internet.add("server")
        internet.add_lan("router1", "port-keeping", "home")
        internet.add_lan("router2", "port-keeping", "away")
        for host in ("server", "home", "away"):
            (folder / host).mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/broker").write_text(f'#!/bin/sh\nexec {sys.executable} -m broker "$@"\n')
        (folder / "bin/broker").chmod(0o755)

    def file(self, host: str, name: str) -> Path:
        return self.folder / host / name

    def copy(self, name: str, start: str, *ends: str) -> None:
        for end in ends:
            self.file(end, name).write_bytes(self.file(start, name).read_bytes())

    def run(self, host: str, command: str) -> str:
        done = subprocess.run(
            self._in(host, command), capture_output=True, text=True, cwd=self.folder / host, env=self._variables(),
            timeout=WITHIN, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self, host: str, command: str) -> None:
        with (self.folder / f"{len(self.going)}.log").open("wb") as log:
            process = subprocess.Popen(
                self._in(host, f"exec {command}"), cwd=self.folder / host, env=self._variables(), stdout=log, stderr=log
            )
        self.going.append(process)

    def log(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text()

    def end(self) -> None:
        for process in self.going:
            process.kill()
            process.wait()

    def _in(self, host: str, command: str) -> list[str]:
        return self.internet.command(host, "bash", "-c", command)

    def _variables(self) -> dict[str, str]:
        variables = environment()
        return variables | {"PATH": f"{self.folder / 'bin'}:{variables['PATH']}"}


def test_ten_lines_of_the_documentation_do_what_they_say(tmp_path: Path) -> None:
    check_rights()
    internet = Internet()
    hosts = None
    try:
        internet.up()
        hosts = Hosts(internet, tmp_path)
        _follow(hosts, *_lines())
    finally:
        if hosts is not None:
            hosts.end()
        internet.down()


def _follow(hosts: Hosts, *lines: tuple[str, str, bool]) -> None:
    hub_key, spoke_key, admit, certificate, relay, hub, invite, serve, call, ls = lines

    def run(line: tuple[str, str, bool], **names: str) -> str:
        where, command, goes_on = line
        for name, value in names.items():
            command = command.replace(name, value)
        assert not goes_on
        return hosts.run(where, command)

    def start(line: tuple[str, str, bool], ready: Callable[[], bool]) -> None:
        where, command, goes_on = line
        assert goes_on
        hosts.start(where, command)
        until(ready, WITHIN, lambda: hosts.log(len(hosts.going) - 1))

    run(admit, HUB_NODE_ID=_node_id(run(hub_key)), SPOKE_NODE_ID=_node_id(run(spoke_key)))
    run(certificate)
    hosts.copy("relay.pem", "server", "home", "away")
    start(relay, lambda: "https://203.0.113.2:3340" in hosts.log(0))
    start(hub, lambda: hosts.file("home", "hub.ticket").exists())
    run(invite)
    hosts.copy("spoke.invite", "home", "away")
    start(serve, lambda: "connected to hub" in hosts.log(2))
    assert run(call).strip() == "18", "as JSON: with its quotes"
    until(lambda: '"path":"direct"' in run((ls[0], f"{ls[1]} --json", False)), WITHIN)


def _node_id(text: str) -> str:
    found = re.search(r"[0-9a-f]{64}", text)
    assert found, text
    return found[0]
