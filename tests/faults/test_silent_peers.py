"""Peers that fall silent early end nobody but themselves."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.processes import ROOT, environment


def test_a_hub_outlives_peers_that_fall_silent_in_the_middle_of_their_first_words() -> None:
    """QUIC asks whoever is silent with packets of a few bytes, and says in them again what was not acknowledged. With
    ACK_FREQUENCY among that, noq-proto 1.4.0 writes past their end, and the process aborts (docs/decisions/0005)."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.silent_peers"],
        capture_output=True, text=True, timeout=55, check=False, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[:4_000]
    assert "panicked" not in ended.stderr, ended.stderr[:4_000]
