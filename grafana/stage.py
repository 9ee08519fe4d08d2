"""What the pictures are taken of: a testbed of processes on this machine, read by a real Prometheus with the testbed's
own rules. Something happens to it.

Not here: the drawing (pictures.py), and the testbed that people start (docker-compose.yml, ``broker lab``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from broker.lab.cluster import Cluster

__all__ = ["Prometheus", "stage"]

RULES: Final = Path(__file__).with_name("prometheus")
SPOKES: Final = 10
EVENTS, CALLS = 20.0, 5.0
"""A second and spoke."""
PATIENCE: Final = 60.0
SCRAPES: Final = "1s"
WARM: Final = 35.0
"""Seconds of traffic before the pictures begin: a rate looks back 30 s."""


class Prometheus:
    """A running one."""

    def __init__(self, address: str) -> None:
        self._api = f"http://{address}/api/v1"

    def _get(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        url = f"{self._api}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def now(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series."""
        return [(row["metric"], float(row["value"][1])) for row in self._get("query", query=expression)]

    def range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """(labels, [(time, value), ...]) of each series."""
        rows = self._get("query_range", query=expression, start=start, end=end, step=step)
        return [(row["metric"], [(float(at), float(value)) for at, value in row["values"]]) for row in rows]

    def until(self, expression: str, least: float) -> None:
        """Returns when the sum over the expression's series is that much."""
        _until(lambda: sum(value for _, value in self.now(expression)) >= least, f"{expression} >= {least:g}")


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if true():
                return
        except OSError:
            pass  # it does not answer yet
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}; the logs are in the lab's directory")
        time.sleep(0.2)


@contextmanager
def stage(directory: Path, seconds: float) -> Iterator[tuple[Prometheus, float, float]]:
    """A testbed that has lived for some time: its Prometheus, and from when to when. It is killed and started again a
    hub, a third of the time before the end, and one spoke stands still for a while."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is needed for the pictures: `make system-packages` as root, or Debian's package")
    cluster = _cluster(directory)
    try:
        for name in cluster.members:
            if not cluster.running(name):
                cluster.start(name)
        with _prometheus(program, directory) as prometheus:
            prometheus.until("sum(broker_spokes_connected)", SPOKES + 1)
            time.sleep(WARM)
            began = time.time()
            time.sleep(seconds / 3)
            cluster.send("spoke2", signal.SIGSTOP)
            time.sleep(seconds / 3)
            cluster.send("spoke2", signal.SIGCONT)
            cluster.end("hub1", signal.SIGKILL)
            prometheus.until("sum(1 - up)", 1)
            cluster.start("hub1")
            time.sleep(seconds / 3)
            yield prometheus, began, time.time()
    finally:
        cluster.down()


def _cluster(directory: Path) -> Cluster:
    cluster = Cluster(directory, network=None)
    cluster.begin()
    relay = cluster.add_relay("relay")
    cluster.start("relay")
    cluster.add_hub("hub1", *relay)
    cluster.start("hub1")
    cluster.add_hub("hub2", "--join", f"@{cluster.invite('hub2')}", *relay)
    for number in range(1, SPOKES + 1):
        cluster.add_node(f"spoke{number}", "hub1", rate=EVENTS, size=0, calls=CALLS)
    cluster.add_observer("observer", "hub1")
    return cluster


@contextmanager
def _prometheus(program: str, directory: Path) -> Iterator[Prometheus]:
    """Reads every member of the lab, under its name, with the testbed's rules and alerts."""
    folder = directory / "pictures"
    folder.mkdir()
    targets = folder / "targets.json"
    cluster = Cluster.load(directory)
    rows = [
        {"targets": [one.http], "labels": {"job": one.role, "instance": one.name}}
        for one in cluster.of("hub", "spoke", "observer", "relay")
    ]
    targets.write_text(json.dumps(rows))
    every = {"scrape_interval": SCRAPES, "scrape_timeout": SCRAPES, "evaluation_interval": SCRAPES}
    config = {
        "global": every,
        "rule_files": [str(RULES / "rules.yml"), str(RULES / "alerts.yml")],
        "scrape_configs": [{"job_name": "lab", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=error"]
    process = subprocess.Popen(command, env={**os.environ}, start_new_session=True)
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait()
