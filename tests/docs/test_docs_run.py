"""Every block of code in the documentation runs, and prints what it says. The convention: blocks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import parse
from tests.docs.runner import Document

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_document(name: str, tmp_path: Path) -> None:
    blocks = parse(name, (ROOT / name).read_text())
    with Document(tmp_path, makefile=(ROOT / "Makefile").read_text()) as document:
        for block in blocks:
            document.run(block)
