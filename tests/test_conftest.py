"""The rule of conftest.py itself: in CI a test that does not run, or is expected to fail, fails."""

from __future__ import annotations

from pathlib import Path

import pytest

RULES = Path(__file__).with_name("conftest.py").read_text()

SKIPS = """
import pytest

@pytest.mark.skip(reason="no time")
def test_marked(): ...

def test_skips_itself(): pytest.skip("no server")

@pytest.fixture
def server(): pytest.skip("no server")

def test_with_a_fixture_that_skips(server): ...

@pytest.mark.xfail(reason="known")
def test_expected_to_fail(): assert False

def test_passes(): ...
"""


def run(pytester: pytest.Pytester, tests: str, *, ci: bool, monkeypatch: pytest.MonkeyPatch) -> pytest.RunResult:
    pytester.makeconftest(RULES)
    pytester.makepyfile(tests)
    monkeypatch.setenv("CI", "true" if ci else "")
    # A process of its own: the profiles and the plugins of this run stay untouched.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "addopts=")


def test_skips_and_expected_failures_fail_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, SKIPS, ci=True, monkeypatch=monkeypatch)
    assert result.parseoutcomes() == {"failed": 2, "errors": 2, "passed": 1}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*may not be skipped or expected to fail: *no server*"])


def test_a_module_that_skips_itself_fails_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import pytest\npytest.importorskip('no_such_module')\ndef test_never(): ..."
    result = run(pytester, module, ci=True, monkeypatch=monkeypatch)
    assert result.parseoutcomes() == {"errors": 1}
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_elsewhere_they_stay_what_they_are(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(pytester, SKIPS, ci=False, monkeypatch=monkeypatch)
    assert result.parseoutcomes() == {"skipped": 3, "xfailed": 1, "passed": 1}
    assert result.ret == pytest.ExitCode.OK
