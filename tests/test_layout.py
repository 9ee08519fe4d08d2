"""What the tree may look like: sizes, places, names. A rule of CONTRIBUTING.md that can be checked is checked here."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 450
MAX_INIT_LINES = 60

MUST_EXIST = {
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "Makefile", "README.md",
    "broker", "docs", "gossip_ext", "pyproject.toml", "tests",
}  # fmt: skip
MAY_EXIST = {
    ".ci", ".dockerignore", ".editorconfig", ".gitattributes", ".gitignore", "Dockerfile", "benchmarks",
    "docker-compose.yml", "examples", "grafana", "scripts",
}  # fmt: skip

# In pieces, so that this file does not hold what it forbids. Cargo writes the index's address into its lock file.
REGISTRIES = re.compile("|".join(rf"\b{a}\.{b}\b" for a, b in [
    ("pypi", "org"), ("pythonhosted", "org"), ("crates", "io"), ("debian", "org"), ("npmjs", "(org|com)"),
    ("docker", "io"), ("ghcr", "io"), ("quay", "io"),
]))  # fmt: skip
MACHINE_PATHS = re.compile(r"(?<![\w.~$}*-])/(home/\w|Users/\w|root/|work/)")
GENERATED = {"benchmarks/bare_gossip/Cargo.lock", "gossip_ext/Cargo.lock", "gossip_ext/fuzz/Cargo.lock"}


def project_files() -> list[str]:
    """Tracked files and new ones that are not ignored; without git (a source archive) every file that can be ours."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        names = [name for name in out.split("\0") if name]
    else:
        names = list(_walk())
    return [name for name in names if (ROOT / name).is_file()]


def _walk() -> Iterator[str]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not re.fullmatch(r"\.(?!ci$).*|__pycache__|target|dist|build", name)]
        yield from (
            str((Path(folder) / name).relative_to(ROOT)) for name in files if not name.endswith((".so", ".pyc"))
        )


FILES = project_files()
PYTHON = [name for name in FILES if name.endswith((".py", ".pyi"))]


def lines(name: str) -> int:
    return len((ROOT / name).read_text().splitlines())


def test_python_files_stay_small() -> None:
    assert "broker/errors.py" in PYTHON
    too_long = {name: count for name in PYTHON if (count := lines(name)) > MAX_FILE_LINES}
    assert not too_long, f"over {MAX_FILE_LINES} lines: split by idea, not by size"


def test_the_package_file_holds_names_only() -> None:
    assert lines("broker/__init__.py") <= MAX_INIT_LINES
    tree = ast.parse((ROOT / "broker/__init__.py").read_text())
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    assert [ast.unparse(node) for node in tree.body if not isinstance(node, allowed)] == []


def test_top_level_is_as_designed() -> None:
    top = {name.partition("/")[0] for name in FILES}
    assert sorted(MUST_EXIST - top) == []
    assert sorted(top - MUST_EXIST - MAY_EXIST) == [], "new at the top level: does it belong in docs/ or tests/?"


def test_the_extension_is_imported_from_the_package_only() -> None:
    """`import gossip_ext` from the root would give an empty namespace package and no error."""
    assert "gossip_ext/__init__.py" not in FILES
    pattern = re.compile(r"^\s*(import|from) gossip_ext\b", re.MULTILINE)
    assert [name for name in PYTHON if pattern.search((ROOT / name).read_text())] == []


@pytest.mark.parametrize("pattern", [REGISTRIES, MACHINE_PATHS], ids=["registry hosts", "machine paths"])
def test_files_name_no_place(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {match.group()}"
        for name in FILES
        if name not in GENERATED
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert found == []


def test_the_patterns_bite() -> None:
    registries = [
        "https://" + host for host in ("py" + "pi.org/simple", "static.crates" + ".io", "deb.debian" + ".org")
    ]
    paths = ["cd " + os.sep + "root/x", '"' + os.sep + 'home/alice"', "file://" + os.sep + "work/main"]
    assert all(REGISTRIES.search(text) for text in registries)
    assert all(MACHINE_PATHS.search(text) for text in paths)
    assert not any(
        MACHINE_PATHS.search(text) for text in ("docs/work/x", "$HOME/root/", "~/work/", "example.com/home/a")
    )


def test_package_and_crate_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    crate = tomllib.loads((ROOT / "gossip_ext/Cargo.toml").read_text())
    assert project["project"]["version"] == crate["package"]["version"]


def declared_dependencies() -> set[str]:
    """By name, from every place that makes a machine fetch something."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    crate = tomllib.loads((ROOT / "gossip_ext/Cargo.toml").read_text())
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    listed += chain.from_iterable(project["project"]["optional-dependencies"].values())
    listed += chain.from_iterable(project["dependency-groups"].values())
    packages = re.search(r"^SYSTEM_PACKAGES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert packages
    crates = {name for table in crate if table.endswith("dependencies") for name in crate[table]}
    return {re.split(r"[^\w.-]", line)[0] for line in listed} | crates | set(packages[1].split())


def test_every_dependency_is_argued_for() -> None:
    argued = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE))
    declared = declared_dependencies()
    assert sorted(declared - argued) == [], "docs/dependencies.md does not say why it, and why not another"
    assert sorted(argued - declared) == [], "docs/dependencies.md argues for what is not used any more"


def bound_names(tree: ast.Module, *, imports: bool) -> set[str]:
    """Public names that a module binds at its top level, also under ``if``; imported ones if asked for."""
    names: set[str] = set()
    blocks = [tree.body]
    while blocks:
        for node in blocks.pop():
            match node:
                case ast.If():
                    blocks += [node.body, node.orelse]
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Assign(targets=targets):
                    names |= {target.id for target in targets if isinstance(target, ast.Name)}
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
                case ast.ImportFrom(module=module, names=aliases) if imports and module not in ("__future__", "typing"):
                    names |= {alias.asname or alias.name for alias in aliases}
                case ast.Import(names=aliases) if imports:
                    names |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(("module", "path"), [("broker", "broker/__init__.py"), ("broker.errors", "broker/errors.py")])
def test_all_is_what_is_public(module: str, path: str) -> None:
    loaded = importlib.import_module(module)
    names = bound_names(ast.parse((ROOT / path).read_text()), imports=module == "broker")
    exported = [name for name in loaded.__all__ if name != "__version__"]
    assert sorted(exported) == sorted(names)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
