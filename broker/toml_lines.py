"""Where a TOML text has each key: tomllib tells values and not lines. Not here: what the keys mean (config.py)."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["key_lines"]

_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")' + r"|'''.*?'{3,5}(?!')" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'"
    r"|#[^\n]*|\n|[\[\]{}=.,]|[^\s\"'#\[\]{}=.,]+",
    re.DOTALL,
)


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each table header and assignment of a TOML text that tomllib has accepted."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    parts: list[str] = []
    line, depth, in_value, in_header = 1, 0, False, False
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            if not depth:
                parts, in_value, in_header = [], False, False
        elif in_value:
            depth += (token in ("[", "{")) - (token in ("]", "}"))
        elif token == "[":
            in_header = True
        elif token == "]" and in_header and parts:
            table, parts = tuple(parts), []
            lines.setdefault(table, line)
        elif token == "=":
            lines.setdefault((*table, *parts), line)
            in_value = True
        elif token not in (".", "]") and not token.startswith("#"):
            parts.append(token[1:-1] if token[0] in "\"'" else token)
        line += token.count("\n")
    return lines
