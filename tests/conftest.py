"""Rules for every test: Hypothesis profiles, and no test may skip itself in CI.

A skip is a promise that somewhere else the test does run. CI is that somewhere, so there a skipped or expected-to-fail
test is a failed one. On a person's machine it stays what it is.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

IN_CI = bool(os.environ.get("CI"))

# No deadline anywhere: one slow example says that the machine was busy. What must be fast is measured in benchmarks/.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if IN_CI else "dev")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped:
        _fail(report, getattr(report, "wasxfail", ""))
        vars(report).pop("wasxfail", None)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        _fail(report, "")
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport, reason: str) -> None:
    if isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
    report.outcome = "failed"
    report.longrepr = f"CI is set, so this may not be skipped or expected to fail: {reason}"
