"""Rules and alerts as Prometheus's own tool sees them."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.cluster.testbed import ROOT

pytestmark = pytest.mark.system

FOLDER = ROOT / "grafana/prometheus"


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_well_formed() -> None:
    promtool("check", "rules", "rules.yml", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "alerts.test.yml")


def test_every_alert_is_tested() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", (FOLDER / "alerts.test.yml").read_text()))
    assert alerts == fired
