"""A hub behind one NAT, spokes behind two others, relays between them, under 100 calls and 100 events a second while
something breaks; and what must be true of that load whatever broke. Not here: what breaks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.lab.authority import Authority
from broker.lab.internet import Internet, Lan, Nat, sweep
from broker.lab.network import check_rights
from tests.faults.gossiping import START, Place, Program, published, until

__all__ = ["Traffic", "Wan", "a_wan"]

RATE = 100
"""Calls, and events, a second."""
RELAY = 3340


class Wan(Place):
    """Programs on an internet. ``hub`` is behind its NAT; ``near`` (caller and author) and ``far`` (who answers and
    reads) are behind one each."""

    def __init__(self, folder: Path, internet: Internet, hub_nat: Nat, spoke_nat: Nat, relays: int) -> None:
        super().__init__(folder, internet)
        self.internet = internet
        self.lans: dict[str, Lan] = {}
        self.relays: dict[str, Program] = {}
        self.hub_program: Program
        authority = Authority(folder)
        self._ca = {"BROKER_RELAY_CA": str(authority.file)}
        for number in range(1, relays + 1):
            name = f"relay{number}"
            internet.add(name)
            authority.issue(name, [internet.address(name)])
            self.start_relay(name)
        for name, nat in (("hub", hub_nat), ("near", spoke_nat), ("far", spoke_nat)):
            self.lans[name] = internet.add_lan(f"nat-{name}", nat, name)

    def url(self, relay: str) -> str:
        return f"https://{self.internet.address(relay)}:{RELAY}"

    def start_relay(self, name: str) -> None:
        bind = f"{self.internet.address(name)}:{RELAY}"
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        relay = self.start(name, "relay", "--bind", bind, "--tls-cert", cert, "--tls-key", key, "--http", "off",
                           "--open", "--json")  # fmt: skip
        _ready(relay)
        self.relays[name] = relay

    def start_hub(self) -> None:
        """The same again after it has ended: its key and port are in the data directory."""
        ticket = self.folder / "hub.ticket"
        ticket.unlink(missing_ok=True)
        relays = [word for name in self.relays for word in ("--relay", self.url(name))]
        hub = self.start(
            "hub", "hub", "--open", "--data", self.folder / "hub-data", "--bind", "0.0.0.0:0", "--http", "off",
            "--json", "--ticket-file", ticket, *relays, **self._ca,
        )  # fmt: skip
        _ready(hub)
        self.hub_program = hub

    def spoke(self, host: str, command: str, *args: object, input: str = "") -> Program:
        ticket = f"@{self.folder / 'hub.ticket'}"
        return self.start(host, *command.split(), ticket, *args, input=input, **self._ca)

    def traffic(self) -> Traffic:
        """It flows when this returns, until `Traffic.ends`."""
        number = next(self._numbers)
        return Traffic(self, f"nat.events{number}", Feed(self.folder / f"{number}.fifo"))


class Feed(threading.Thread):
    """Lines for an author, RATE a second, through a named pipe: 1, 2, 3 and so on until it is stopped."""

    def __init__(self, fifo: Path) -> None:
        super().__init__(daemon=True)
        os.mkfifo(fifo)
        self.fifo, self.count = fifo, 0
        self._stop_it = threading.Event()

    def run(self) -> None:
        # A broken pipe: the author has ended, which is told elsewhere.
        with contextlib.suppress(BrokenPipeError), self.fifo.open("w", buffering=1) as pipe:
            while not self._stop_it.wait(1 / RATE):
                self.count += 1
                pipe.write(f"{self.count}\n")

    def stop(self) -> int:
        """How many there were."""
        self._stop_it.set()
        self.join(START)
        return self.count


class Traffic:
    """Calls from ``near`` to ``far`` and events the same way, through the hub."""

    def __init__(self, wan: Wan, topic: str, feed: Feed) -> None:
        self._feed = feed
        server = wan.spoke("far", "serve", "broker.lab.probe:app", "--json")
        self._reader = wan.spoke("far", "sub", topic, "--check", "--json", "--since", "start", "--log-level", "info")
        _ready(server)
        self._reader.says("subscribed to")
        self.caller = wan.spoke("near", "lab probe", "--watch", 0, "--rate", RATE)
        self._author = wan.spoke("near", "pub", topic, "--file", feed.fifo, "--json", "--timeout", 60)
        feed.start()
        until(lambda: self._answered() and self._reader.lines(), START, self._words)

    def _answered(self) -> bool:
        return any(row["event"] == "answer" for row in self.caller.rows())

    def _words(self) -> object:
        return self.caller.rows(), self.caller.errors, self._reader.errors, self._author.errors

    @property
    def path(self) -> str:
        """What the caller is on now."""
        paths = [row["path"] for row in self.caller.rows() if row["event"] == "path"]
        return paths[-1] if paths else "none"

    def wait_path(self, path: str, within: float) -> float:
        """Seconds that it took until the caller is on it."""
        began = time.monotonic()
        until(lambda: self.path == path, within, lambda: [*self.caller.rows(), self.caller.errors])
        return time.monotonic() - began

    def received(self) -> int:
        """Events that have come to the reader."""
        return self._reader.lines()

    def flows(self, within: float, events: int = RATE // 2) -> None:
        """Events come again, so many."""
        before = self.received()
        until(lambda: self.received() >= before + events, within, self._words)

    def ends(self, within: float = 60.0) -> dict[str, Any]:
        """All events are acknowledged, and none is lost: the verdict is complete or repaired. What the caller says of
        its calls."""
        count = self._feed.stop()
        author, epoch = published(self._author, count, within)[0]
        until(lambda: self.received() >= count, within, self._words)
        self._reader.send(signal.SIGINT)
        self._reader.status(within)
        rows = self._reader.rows()
        got = [row["detail"] for row in rows if "meta" in row]
        assert got == list(range(1, count + 1)), "each once, in order"
        (verdict,) = [row for row in rows if row.get("event") == "verdict"]
        assert (verdict["author"], verdict["epoch"]) == (author, epoch)
        assert verdict["verdict"].partition("(")[0] in ("complete", "repaired"), verdict
        self.caller.send(signal.SIGTERM)
        assert self.caller.status(within) == 0, self.caller.errors
        (calls,) = [row for row in self.caller.rows() if row["event"] == "calls"]
        assert calls["left_out"] == 0
        return {**calls, "said": [row for row in self.caller.rows() if row["event"] != "calls"]}


def _ready(program: Program) -> None:
    until(lambda: program.lines() or not program.running, START, lambda: program.errors)
    assert program.lines(), program.errors


@contextmanager
def a_wan(folder: Path, *, hub: Nat = "port-keeping", spokes: Nat = "port-keeping", relays: int = 1) -> Iterator[Wan]:
    """With relays and hub running; nothing is left of it."""
    check_rights()
    sweep()
    internet = Internet()
    try:
        internet.up()
        with Wan(folder, internet, hub, spokes, relays) as wan:
            wan.start_hub()
            yield wan
    finally:
        internet.down()
