"""The testbed of docker-compose.yml on a real engine, under a project name and ports of its own.

Everything that it starts is labelled with the project and removed by :meth:`Testbed.down`. Not here: what is expected
of it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
IMAGES: Final = Path(__file__).with_name("images.sh")
SERVICES: Final = ("hub1", "invite", "hub2", "spoke", "observer", "prometheus")
"""Without grafana, of which there is no image where nothing can be pulled."""
BEHIND_NAT: Final = ("relay", "home-router", "away-router", "home-hub", "away-spoke", "away-observer")
"""Of the profile nat."""
BUILD_TIMEOUT: Final = 900.0
PATIENCE: Final = 120.0
"""Seconds for a condition of the whole testbed to come true."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*command: str, env: Mapping[str, str] | None = None, timeout: float = BUILD_TIMEOUT) -> str:
    """Its stdout; AssertionError with what it said when it fails."""
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def until(condition: Callable[[], Any], what: object, patience: float = PATIENCE) -> Any:
    """What ``condition`` gives as soon as it is true. ``what`` is told as it is at the end."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.25)
    return found


def volumes() -> set[str]:
    return set(run("docker", "volume", "ls", "-q").split())


@contextmanager
def aside(dist: Path) -> Iterator[None]:
    """A directory without wheels while the block runs, and as it was afterwards."""
    hidden = [wheel.rename(wheel.with_name(f"{wheel.name}.aside")) for wheel in dist.glob("*.whl")]
    try:
        yield
    finally:
        for wheel in dist.glob("*.whl"):
            wheel.unlink()
        for wheel in hidden:
            wheel.rename(wheel.with_name(wheel.name.removesuffix(".aside")))


class Testbed:
    __test__ = False

    def __init__(self, project: str) -> None:
        self.project = project
        assert shutil.which("docker-compose"), (
            "docker-compose is not installed. As root, type: apt-get install --no-install-recommends docker-compose"
        )
        self._before = volumes()
        self.prometheus = f"http://127.0.0.1:{(port := free_port())}"
        images = dict(line.split("=", 1) for line in run(str(IMAGES)).splitlines())
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")},
            **images,
            "COMPOSE_PROJECT_NAME": project,
            "BROKER_IMAGE": f"{project}:test",
            "TOOLS_IMAGE": f"{project}:tools",
            "PROMETHEUS_PORT": str(port),
            "HUB_PORT": str(free_port()),
            "GRAFANA_PORT": str(free_port()),
            "SPOKES": "3",
            "AWAY_SPOKES": "2",
            "CHAOS_REST": "0",
            "CHAOS_SCENARIOS": "kill-hub pause-hub",
        }

    def compose(self, *arguments: str) -> str:
        return run("docker-compose", *arguments, env=self.env)

    def build(self) -> None:
        """The image, from a wheel made here: inside the image the Rust dependencies would build from nothing. Wheels
        that are in dist/ already step aside meanwhile, and ours does not stay."""
        with aside(ROOT / "dist"):
            run(str(ROOT / ".venv/bin/maturin"), "build", "--release", "--out", "dist")
            self.compose("--profile", "chaos", "build", "--quiet", "hub1", "chaos1")

    def up(self, *, spokes: int) -> None:
        self.compose("up", "-d", "--no-build", "--scale", f"spoke={spokes}", *SERVICES)

    def up_nat(self, **variables: str) -> None:
        """The profile `nat` beside what is up. Who is behind a router finds the way to it at its own start."""
        self.env |= variables
        self.compose("--profile", "nat", "up", "-d", "--no-build", "--force-recreate", *BEHIND_NAT)

    def down_nat(self) -> None:
        self.compose("--profile", "nat", "rm", "--stop", "--force", "-v", *BEHIND_NAT)

    def down(self) -> None:
        self.compose(
            "--profile", "chaos", "--profile", "nat", "down", "--volumes", "--remove-orphans", "--timeout", "5"
        )
        images = self.env["BROKER_IMAGE"], self.env["TOOLS_IMAGE"]
        subprocess.run(["docker", "image", "rm", *images], capture_output=True, check=False)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: (labels, value) of each series, without NaN; empty while Prometheus does not answer."""
        found = self.api("query", query=expression)
        rows = [(row["metric"], float(row["value"][1])) for row in (found or {}).get("result", ())]
        return [(labels, value) for labels, value in rows if not math.isnan(value)]

    def api(self, what: str, **arguments: str) -> Any:
        """What Prometheus's HTTP API answers; None while it does not."""
        url = f"{self.prometheus}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)
        except OSError:
            return None
        assert found["status"] == "success", found
        return found["data"]

    def value(self, expression: str) -> float:
        """Of an expression with one series. NaN, of which nothing is true, when there is none."""
        found = self.query(expression)
        return found[0][1] if len(found) == 1 else math.nan

    def known(self, expression: str) -> float:
        """The same, as soon as there is one."""
        until(lambda: not math.isnan(self.value(expression)), f"a value of {expression}")
        return self.value(expression)

    def left(self) -> list[str]:
        """What of this project the engine still has: containers, volumes, networks; and volumes without a name, which
        have no label either, that were not there before."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("container", "ls", "-a"), ("volume", "ls"), ("network", "ls"))
        labelled = [line for kind in kinds for line in run("docker", *kind, "-q", "--filter", label).split()]
        return labelled + sorted(volumes() - self._before - set(labelled))
