"""What is shipped: an sdist that builds without the checkout, and one small wheel with the package and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL_BYTES = 10 * 1024 * 1024
TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    subprocess.run(["maturin", "sdist", "--out", out], cwd=ROOT, env=TOOLS, check=True)
    [archive] = out.glob("*.tar.gz")
    return archive


def test_sdist_holds_what_a_build_needs_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "gossip_ext/Cargo.lock", "gossip_ext/src/lib.rs", "broker/py.typed"}
    assert sorted(needed - names) == []
    assert sorted(name for name in names if name.startswith("tests/") or name.endswith((".so", ".pyc"))) == []


@pytest.mark.system
@pytest.mark.timeout(1200)  # compiles the crate: minutes where the shared target directory is cold
def test_the_wheel_builds_from_the_sdist_and_is_small(sdist: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, sdist], cwd=tmp_path, env=TOOLS, check=True)
    [wheel] = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"broker", "iroh_broker-0.1.0.dist-info"}
    assert {"broker/_gossip_ext.abi3.so", "broker/_gossip_ext.pyi", "broker/py.typed"} <= set(names)
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, target, wheel], cwd=tmp_path, env=TOOLS, check=True)
    code = "import broker, broker._gossip_ext as ext; print(broker.__file__); print(ext.__file__)"
    env = {**TOOLS, "PYTHONPATH": str(target)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert all(line.startswith(str(target)) for line in run.stdout.split())
