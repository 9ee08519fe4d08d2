"""The testbed of docker-compose.yml on a real engine, under a project name and ports of its own.

Everything that it starts is labelled with the project and removed by :meth:`Testbed.down`. Not here: what is expected
of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
IMAGES: Final = Path(__file__).with_name("images.sh")
SERVICES: Final = ("hub1", "invite", "hub2", "spoke", "observer", "prometheus")
"""Without grafana, of which there is no image where nothing can be pulled."""
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


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What ``condition`` gives as soon as it is true."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.25)
    return found


class Testbed:
    __test__ = False

    def __init__(self, project: str) -> None:
        self.project = project
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
            "SPOKES": "3",
            "CHAOS_REST": "0",
            "CHAOS_SCENARIOS": "kill-hub pause-hub",
        }

    def compose(self, *arguments: str) -> str:
        return run("docker-compose", *arguments, env=self.env)

    def build(self) -> None:
        """The image, from a wheel made here: inside the image the Rust dependencies would build from nothing."""
        for wheel in (ROOT / "dist").glob("*.whl"):
            wheel.unlink()
        run(str(ROOT / ".venv/bin/maturin"), "build", "--release", "--out", "dist")
        self.compose("--profile", "chaos", "build", "--quiet", "hub1", "chaos1")

    def up(self, *, spokes: int) -> None:
        self.compose("up", "-d", "--no-build", "--scale", f"spoke={spokes}", *SERVICES)

    def down(self) -> None:
        self.compose("--profile", "chaos", "down", "--volumes", "--remove-orphans", "--timeout", "5")
        images = self.env["BROKER_IMAGE"], self.env["TOOLS_IMAGE"]
        subprocess.run(["docker", "image", "rm", *images], capture_output=True, check=False)

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: (labels, value) of each series; empty while Prometheus does not answer."""
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)
        except OSError:
            return []
        assert found["status"] == "success", found
        return [(row["metric"], float(row["value"][1])) for row in found["data"]["result"]]

    def value(self, expression: str) -> float:
        """Of an expression with one series; 0 when there is none."""
        return sum(value for _, value in self.query(expression))

    def left(self) -> list[str]:
        """What of this project the engine still has: containers, volumes, networks."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = (("container", "ls", "-a"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in run("docker", *kind, "-q", "--filter", label).split()]
