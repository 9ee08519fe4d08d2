"""A promise that names its test: the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"\btests/[\w/]+\.py\b")
FUNCTION = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(path: Path) -> None:
    missing = [name for name in NAMED.findall(path.read_text(encoding="utf-8")) if not (ROOT / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_function_that_a_document_names_is_there(path: Path) -> None:
    named = FUNCTION.findall(path.read_text(encoding="utf-8"))
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    assert [(file, name) for file, name in named if f"def {name}(" not in sources[file]] == []


def test_each_bound_names_the_test_that_floods_it() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    section = text.partition("## Bounds\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.endswith("| flooded by |")]
    assert len(rows) > 30
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5, row
        assert all(cells), row
        assert FUNCTION.search(cells[4]), row


@pytest.mark.parametrize("name", ["guarantees.md", "threat-model.md"])
def test_the_documents_that_promise_do_name_tests(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert len(set(NAMED.findall(text))) > 3
