"""Hubs, authors and subscribers of topics over gossip, each a process of its own, on loopback or on a host of a network
that can be broken; and what is true of a verdict whatever happened. Not here: what breaks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from broker.lab.network import Network, check_rights
from tests.cli.processes import COMMAND, environment

__all__ = ["TOPIC", "Place", "Program", "Subscriber", "a_network", "metric", "published", "until"]

TOPIC = "flood.one"
START = 60.0
"""Seconds that a process may take until it says that it is there: the machine may be busy."""


def until(true: Callable[[], Any], within: float, why: Callable[[], object] = lambda: "it did not come true") -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"after {within:g} s: {why()}"
        time.sleep(0.02)


@contextmanager
def a_network(letter: str, *hosts: str) -> Iterator[Network]:
    """Hosts that see each other; nothing is left of them."""
    check_rights()
    network = Network(f"{letter}{os.getpid() % 4096:03x}", f"10.93.{ord(letter)}")
    try:
        network.up()
        for host in hosts:
            network.add(host)
        yield network
    finally:
        network.down()


class Program:
    """A process of the command. What it writes goes to files, so that it never waits for its reader."""

    def __init__(self, command: list[str], folder: Path, name: str, input: str, env: Mapping[str, str]) -> None:
        self.out, self._err, told = folder / f"{name}.out", folder / f"{name}.err", folder / f"{name}.in"
        told.write_text(input)
        with told.open("rb") as stdin, self.out.open("wb") as stdout, self._err.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment(**env), start_new_session=True
            )

    @property
    def errors(self) -> str:
        return self._err.read_text()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def rows(self) -> list[Any]:
        """Whole lines so far."""
        text = self.out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def lines(self) -> int:
        return self.out.read_bytes().count(b"\n")

    def says(self, words: str) -> None:
        until(lambda: words in self.errors or not self.running, START, lambda: self.errors)
        assert words in self.errors, self.errors

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def status(self, within: float) -> int:
        """Its exit status, when it ends by itself."""
        until(lambda: not self.running, within, lambda: (self.lines(), self.errors))
        return self.process.wait()


class Subscriber:
    """``broker sub --check``, until as many have come, or are lost, as are published."""

    def __init__(self, program: Program, count: int) -> None:
        self.program, self.count = program, count

    def verdict(self, authors: Mapping[tuple[str, str], int], within: float) -> list[int]:
        """All is true that it says: (author, epoch) has published 1, 2, 3 and so on, up to that number. Returns how
        many are lost of each."""
        status = self.program.status(within)
        rows = self.program.rows()
        verdicts = {(row["author"], row["epoch"]): row for row in rows if row.get("event") == "verdict"}
        got: dict[tuple[str, str], list[int]] = {key: [] for key in authors}
        for row in rows:
            if "meta" in row:
                assert row["detail"] == row["meta"]["seq"]
                got[row["meta"]["author"], row["meta"]["epoch"]].append(row["detail"])
        assert set(verdicts) == set(authors), self.program.errors
        lost_of = [_agrees(verdicts[key], got[key], count) for key, count in authors.items()]
        assert status == (1 if any(lost_of) else 0), self.program.errors
        return lost_of


def _agrees(verdict: Mapping[str, Any], got: list[int], count: int) -> int:
    lost = [n for first, last in verdict["lost"] for n in range(first, last + 1)]
    assert got == sorted(set(got)), "in order, nothing twice"
    assert sorted(got + lost) == list(range(1, count + 1)), f"each came or is named: {verdict}"
    assert (verdict["received"], verdict["missing"]) == (len(got), [])
    word = verdict["verdict"].partition("(")[0]
    assert word == "lost" if lost else word in ("complete", "repaired"), verdict
    return len(lost)


class Place:
    """Where the processes of one test run, and how they are started. They are ended with it."""

    def __init__(self, folder: Path, network: Network | None = None) -> None:
        self.folder, self.network = folder, network
        self._numbers = itertools.count()
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for program in self._programs:
            if program.running:
                program.kill()

    def start(
        self, host: str, *args: object, input: str = "", script: Iterable[str] | None = None, **env: str
    ) -> Program:
        """A command on a host (a name alone, on loopback). ``script``: in place of the command, Python that runs it."""
        command = [*(COMMAND if script is None else (sys.executable, *script)), *map(str, args)]
        if self.network is not None:
            command = self.network.command(host, *command)
        program = Program(command, self.folder, f"{next(self._numbers)}-{host}", input, env)
        self._programs.append(program)
        return program

    def hub(
        self, host: str, *options: object, script: Iterable[str] | None = None, **env: str
    ) -> tuple[Program, dict[str, Any]]:
        """A hub whose topics go by gossip, and its ready line. The same host again: the same data and address."""
        config = self.folder / "hub.toml"
        config.write_text('[topics]\ncarrier = "gossip"\n')
        where: list[object] = ["--http", "127.0.0.1:0"]
        if self.network is not None:
            address = self.network.address(host)
            where = ["--bind", f"{address}:4433", "--http", f"{address}:9464"]
        data = self.folder / f"data-{host}"
        hub = self.start(
            host, "hub", "--config", config, "--data", data, "--open", "--json", *where, *options, script=script, **env
        )
        until(lambda: hub.lines() or not hub.running, START, lambda: hub.errors)
        assert hub.lines(), hub.errors
        return hub, hub.rows()[0]

    def sub(self, host: str, ticket: str, count: int, *options: object, topics: Iterable[str] = (TOPIC,)) -> Subscriber:
        """A subscriber that has told the hub so."""
        program = self.start(
            host, "sub", ticket, *topics, "--carrier", "gossip", "--check", "--json", "--count", count,
            "--log-level", "info", *options,
        )  # fmt: skip
        program.says("subscribed to")
        return Subscriber(program, count)

    def pub(self, host: str, ticket: str, count: int, *options: object, topic: str = TOPIC, **env: str) -> Program:
        """An author of the events 1 to count."""
        lines = "".join(f"{number}\n" for number in range(1, count + 1))
        return self.start(
            host, "pub", ticket, topic, "--file", "-", "--carrier", "gossip", "--json", "--timeout", 150,
            "--log-level", "info", *options, input=lines, **env,
        )  # fmt: skip


def published(author: Program, count: int, within: float) -> tuple[tuple[str, str], int]:
    """What an author says when the hub has acknowledged all of it: whose, which epoch, how many."""
    assert author.status(within) == 0, author.errors
    (row,) = author.rows()
    assert (row["count"], row["first_seq"], row["last_seq"]) == (count, 1, count)
    return (row["author"], row["epoch"]), count


def metric(ready: Mapping[str, Any], name: str) -> float:
    """The sum over a hub's samples of that name."""
    with urllib.request.urlopen(f"http://{ready['http']}/metrics", timeout=START) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
