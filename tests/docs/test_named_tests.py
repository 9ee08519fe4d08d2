"""A promise that names its test: the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"\btests/[\w/]+\.py\b")
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(path: Path) -> None:
    missing = [name for name in NAMED.findall(path.read_text(encoding="utf-8")) if not (ROOT / name).is_file()]
    assert missing == []


@pytest.mark.parametrize("name", ["guarantees.md", "threat-model.md"])
def test_the_documents_that_promise_do_name_tests(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert len(set(NAMED.findall(text))) > 3
