"""The testbed as processes of this machine: hubs, nodes, an observer and Prometheus, each on a host of its own.

Ports, data, tickets and logs are in one directory, and so is ``state.json``, from which another command finds the lab
again. Hosts are namespaces (network.py), some of them behind routers (internet.py), or all of them loopback
(``plain``), where links cannot be broken. Not here: what is broken, and what is expected then (chaos.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self
from zlib import crc32

from broker.errors import UsageError
from broker.lab.authority import Authority
from broker.lab.internet import Internet
from broker.lab.network import Network, check_rights
from broker.protocol.wire import REALM_SCOPE

__all__ = ["STATE", "Cluster", "Member", "Role", "build"]

Role = Literal["hub", "spoke", "observer", "misfit", "prometheus", "relay"]
STATE: Final = "state.json"
MARK: Final = "BROKER_LAB"
"""In the environment of every process of a lab: its directory. So that no other process is ever taken for one of it."""
END_WITHIN: Final = 15.0
"""Seconds that a process gets to drain; then it is killed."""
LOOKS: Final = 20
LOOK: Final = 0.005
INVITE_WITHIN: Final = 60.0
"""Seconds for the command that asks the first hub for an invite, on a machine that starts many processes."""
HTTP: Final = 9464
UDP: Final = 4433
PROMETHEUS: Final = 9090
RELAY: Final = 3340
HOME, AWAY = "home", "away"
"""Routers: of the hub, and of everybody else."""
SMALL_DISK: Final = "2m"


@dataclass(slots=True)
class Member:
    """A process of the lab: what it is, where it listens, how it is started, and its process id while it runs."""

    name: str
    role: Role
    http: str
    command: list[str]
    pid: int = 0
    environment: dict[str, str] = field(default_factory=dict)


def _free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Members are added first and then started; ``network`` None: all on loopback."""

    def __init__(self, directory: Path, *, network: Network | None) -> None:
        self.directory, self.network = directory, network
        self.members: dict[str, Member] = {}
        self.trusting: tuple[str, ...] = ()
        """Flags of whoever uses the relay."""

    @property
    def internet(self) -> Internet | None:
        """The network, if there are routers in it."""
        return self.network if isinstance(self.network, Internet) else None

    # State.

    @classmethod
    def load(cls, directory: Path) -> Self:
        """A lab that is up. UsageError when there is none."""
        try:
            state = json.loads((directory / STATE).read_bytes())
        except FileNotFoundError:
            raise UsageError(f"there is no lab in {directory}; `broker lab up` makes one") from None
        network = state["network"]
        found = Internet.load(network) if network and "lans" in network else network and Network(**network)
        cluster = cls(directory, network=found)
        cluster.trusting = tuple(state["trusting"])
        cluster.members = {row["name"]: Member(**row) for row in state["members"]}
        return cluster

    def save(self) -> None:
        members = [asdict(member) for member in self.members.values()]
        state = {"network": self.network and self.network.state(), "trusting": self.trusting, "members": members}
        partial = self.directory / f".{STATE}"
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(self.directory / STATE)

    def of(self, *roles: Role) -> list[Member]:
        return [member for member in self.members.values() if member.role in roles]

    # Building.

    def begin(self) -> None:
        for name in ("data", "logs", "tickets"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if self.network is not None:
            self.network.up()
        self.save()

    def add_relay(self, name: str, port: int = RELAY) -> tuple[str, ...]:
        """Admits everybody; who is added later trusts its certificate. Returns the flags of a hub that is to be reached
        through it."""
        host, http = self._place(name, HTTP)
        authority = Authority(self.data("certificates"))
        issued = authority.issue(name, [host])
        command = ["relay", "--bind", f"{host}:{port}", "--http", http, "--open", "--json"]
        command += ["--tls-cert", str(issued.cert), "--tls-key", str(issued.key)]
        self.trusting = ("--relay-ca", str(authority.file))
        self.add(Member(name, "relay", http, command))
        return "--relay", f"https://{host}:{port}"

    def add_hub(self, name: str, *options: str) -> Member:
        host, http = self._place(name, HTTP, HOME)
        udp = UDP if self.network else _free_port(socket.SOCK_DGRAM)
        command = ["hub", "--open", "--name", name, "--data", str(self.directory / "data" / name)]
        command += ["--bind", f"{host}:{udp}", "--http", http, "--ticket-file", str(self.ticket(name))]
        command += [*self.trusting, *options]
        return self.add(Member(name, "hub", http, command))

    def add_node(self, name: str, hub: str, *, rate: float, size: int, calls: float) -> Member:
        _, http = self._place(name, HTTP, AWAY)
        command = ["lab", "node", f"@{self.ticket(hub)}", "--name", name, "--http", http, *self.trusting]
        command += ["--rate", str(rate), "--size", str(size), "--calls", str(calls)]
        return self.add(Member(name, "spoke", http, command))

    def add_observer(self, name: str, hub: str) -> Member:
        _, http = self._place(name, HTTP, AWAY)
        command = ["lab", "observer", f"@{self.ticket(hub)}", "lab.>", "--name", name, "--http", http, *self.trusting]
        return self.add(Member(name, "observer", http, command))

    def add_misfit(self, name: str, hub: str, kind: str) -> Member:
        _, http = self._place(name, HTTP)
        return self.add(Member(name, "misfit", http, ["lab", "misfit", f"@{self.ticket(hub)}", kind]))

    def add_prometheus(self) -> Member | None:
        """None where it is not installed. It reads every member and itself; see `watch`."""
        program = shutil.which("prometheus")
        if program is None:
            return None
        _, http = self._place("prometheus", PROMETHEUS)
        folder = self.directory / "prometheus"
        folder.mkdir(exist_ok=True)
        self.watch()
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                  "scrape_configs": [{"job_name": "lab", "file_sd_configs": [
                      {"files": [str(folder / "targets.json")], "refresh_interval": "1s"}]}]}  # fmt: skip
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                   f"--web.listen-address={http}", "--storage.tsdb.retention.time=1d",
                   "--enable-feature=exemplar-storage"]  # fmt: skip
        return self.add(Member("prometheus", "prometheus", http, command))

    def watch(self) -> None:
        """Tells Prometheus whom to read."""
        folder = self.directory / "prometheus"
        if folder.exists():
            rows = [
                {"targets": [one.http], "labels": {"job": one.role, "node": one.name}}
                for one in self.of("hub", "spoke", "observer", "relay", "prometheus")
            ]
            (folder / "targets.new").write_text(json.dumps(rows))
            (folder / "targets.new").replace(folder / "targets.json")

    def ticket(self, hub: str) -> Path:
        return self.directory / "tickets" / hub

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def data(self, name: str) -> Path:
        return self.directory / "data" / name

    def small_disk(self, hub: str) -> None:
        """The hub's data directory moves to a file system of its own with little room. Needs root."""
        data = self.data(hub)
        kept = self.directory / "data" / f".{hub}"
        shutil.copytree(data, kept)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(data)], check=True)
        shutil.copytree(kept, data, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def whole_disk(self, hub: str) -> None:
        """It is as it was, with what the hub wrote meanwhile. The hub must not run."""
        data = self.data(hub)
        kept = self.directory / "data" / f".{hub}"
        shutil.copytree(data, kept)
        subprocess.run(["umount", str(data)], check=True)
        shutil.copytree(kept, data, dirs_exist_ok=True)
        shutil.rmtree(kept)

    def invite(self, hub: str) -> Path:
        """A file with a ticket that lets a further hub into the realm of the first."""
        _wait_for(self.ticket("hub1"))
        key, file = self.data("hub1") / "admin.key", self.directory / "tickets" / f"{hub}.invite"
        command = ["invite", f"@{self.ticket('hub1')}", "--key", str(key), "--scopes", REALM_SCOPE, "--json"]
        command += self.trusting
        asking = [sys.executable, "-m", "broker", *command]
        try:
            done = subprocess.run(asking, capture_output=True, text=True, timeout=INVITE_WITHIN, check=False)
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"hub1 gave no invite for {hub} within {INVITE_WITHIN:g} s; {self.log('hub1')} says why"
            ) from None
        if done.returncode:
            raise UsageError(f"hub1 gives no invite: {done.stderr.strip()}")
        file.write_text(json.loads(done.stdout)["ticket"])
        return file

    def _place(self, name: str, port: int, router: str | None = None) -> tuple[str, str]:
        """The host's address, and where it serves HTTP. ``router``: what it is behind, if there are routers."""
        if self.network is None:
            return "127.0.0.1", f"127.0.0.1:{_free_port()}"
        lan = self.internet.lans[router] if self.internet and router else self.network
        host = lan.add(name)
        return host, f"{host}:{port}"

    def add(self, member: Member) -> Member:
        """One whose host is there, or of loopback."""
        self.members[member.name] = member
        self.watch()
        self.save()
        return member

    def remove(self, name: str) -> None:
        """Ends a member and forgets it."""
        self.end(name, signal.SIGKILL)
        if self.network is not None:
            self.network.remove(name)
        del self.members[name]
        self.watch()
        self.save()

    # Processes.

    def start(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        member = self.members[name]
        if environment is not None:
            member.environment = dict(environment)
        own = member.role != "prometheus"
        command = [sys.executable, "-m", "broker", *member.command] if own else member.command
        if self.network is not None:
            command = self.network.command(name, *command)
        variables = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_")}
        variables |= {MARK: str(self.directory), "PYTHONUNBUFFERED": "1", **member.environment}
        # Not subprocess: that wants to see the end of what it starts, and these outlive the command that starts them.
        member.pid = os.posix_spawn(
            shutil.which(command[0]) or command[0],
            command,
            variables,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        self.save()

    def running(self, name: str) -> bool:
        """Whether the process is there, is one of this lab, and is no zombie."""
        pid = self.members[name].pid
        try:
            environment = _environment(pid)
            status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            return False
        return status != b"Z" and f"{MARK}={self.directory}".encode() in environment.split(b"\0")

    def send(self, name: str, number: signal.Signals) -> None:
        if self.running(name):
            os.kill(self.members[name].pid, number)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it is gone; one that does not go is killed."""
        self.send(name, signal.SIGCONT)
        self.send(name, number)
        self._gone(name, time.monotonic() + END_WITHIN)

    def _gone(self, name: str, deadline: float) -> None:
        while self.running(name):
            if time.monotonic() > deadline:
                self.send(name, signal.SIGKILL)
            _reap(self.members[name].pid)
            time.sleep(0.02)
        _reap(self.members[name].pid)

    def down(self) -> None:
        """Ends everything and leaves nothing but, in the directory, the logs."""
        order = [*self.of("prometheus", "misfit", "observer", "spoke"), *self.of("hub", "relay")]
        for member in order:
            self.send(member.name, signal.SIGCONT)
            self.send(member.name, signal.SIGTERM)
        deadline = time.monotonic() + END_WITHIN  # one for all: they drain at the same time
        for member in order:
            self._gone(member.name, deadline)
        if self.network is not None:
            self.network.down()
        for member in self.of("hub"):
            if self.data(member.name).is_mount():
                self.whole_disk(member.name)
        for name in ("data", "tickets", "prometheus"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        (self.directory / STATE).unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """For people and programs: who is there and where."""
        return [
            {
                "name": member.name,
                "role": member.role,
                "running": self.running(member.name),
                "pid": member.pid,
                "http": f"http://{member.http}",
                "log": str(self.log(member.name)),
            }
            for member in self.members.values()
        ]


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + INVITE_WITHIN
    while not file.exists():
        if time.monotonic() > deadline:
            raise UsageError(f"the first hub did not write {file} within {INVITE_WITHIN:g} s; its log says why")
        time.sleep(0.05)


def _environment(pid: int) -> bytes:
    """For a moment while a program takes the place of another one (`ip netns exec`) it has none."""
    for _ in range(LOOKS):
        if environment := Path(f"/proc/{pid}/environ").read_bytes():
            return environment
        time.sleep(LOOK)
    return b""


def _reap(pid: int) -> None:
    """Who started a process must look at its end, or it stays as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def build(
    directory: Path, *, hubs: int, spokes: int, rate: float, size: int, calls: float, plain: bool, nat: bool = False
) -> Cluster:
    """A lab that runs. ``nat``: with a relay, hub and all others behind a router each. UsageError when there is one
    already, or namespaces cannot be made; nothing is left then."""
    if (directory / STATE).exists():
        raise UsageError(f"there is a lab in {directory} already; `broker lab down` ends it, --dir makes another")
    if nat and hubs > 1:
        raise UsageError("behind NAT there is one hub: a realm's hubs reach each other directly")
    if not plain:
        check_rights()
    where = _names(directory)
    cluster = Cluster(directory, network=None if plain else Internet(*where) if nat else Network(*where))
    try:
        cluster.begin()
        relay = _between_routers(cluster) if cluster.internet else ()
        cluster.add_hub("hub1", *relay)
        cluster.start("hub1")
        for number in range(2, hubs + 1):
            cluster.add_hub(f"hub{number}", "--join", f"@{cluster.invite(f'hub{number}')}")
        for number in range(1, spokes + 1):
            cluster.add_node(f"spoke{number}", "hub1", rate=rate, size=size, calls=calls)
        cluster.add_observer("observer", "hub1")
        if cluster.add_prometheus() and cluster.internet:
            cluster.internet.let_in("prometheus", HTTP)
        for name in cluster.members:
            if not cluster.members[name].pid:
                cluster.start(name)
    except BaseException:
        cluster.down()
        raise
    return cluster


def _between_routers(cluster: Cluster) -> tuple[str, ...]:
    """Two routers that keep ports, and a running relay between them; the flags of a hub that is reached through it."""
    assert cluster.internet is not None
    for router in (HOME, AWAY):
        cluster.internet.add_lan(router, "port-keeping")
    flags = cluster.add_relay("relay")
    cluster.start("relay")
    return flags


def _names(directory: Path) -> tuple[str, str]:
    """A prefix and a subnet that follow from the directory: two labs on one machine do not meet."""
    number = crc32(str(directory.resolve()).encode())
    return f"bl{number % 4096:03x}", f"10.{77 + number % 16}.{number // 16 % 256}"
