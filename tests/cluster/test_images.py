"""What is said when the testbed cannot be: no engine, no Compose, a port that somebody has."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cluster.testbed import BUILD_TIMEOUT, IMAGES, Testbed, aside

pytestmark = pytest.mark.system


def test_without_an_engine_it_is_said_which(tmp_path: Path) -> None:
    nowhere = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    done = subprocess.run([IMAGES], env=nowhere, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no Docker engine here, or no permission to use it" in done.stderr


def test_without_compose_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match=r"docker-compose is not installed\. As root, type: apt-get install"):
        Testbed("nothing")


@pytest.mark.timeout(BUILD_TIMEOUT)  # the first on a machine makes the images
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """By Compose itself: the message has the port, and operations.md says which variable changes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        bed = Testbed(f"brokerport{os.getpid()}")
        bed.env["PROMETHEUS_PORT"] = str(port)
        try:
            with pytest.raises(AssertionError, match=rf"127\.0\.0\.1:{port}.* address already in use"):
                bed.compose("up", "-d", "--no-build", "--no-deps", "prometheus")
        finally:
            bed.down()
    assert bed.left() == []


def test_wheels_of_others_step_aside_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "theirs.whl").write_text("theirs")
    with aside(tmp_path):
        assert not list(tmp_path.glob("*.whl"))
        (tmp_path / "ours.whl").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.whl"]
