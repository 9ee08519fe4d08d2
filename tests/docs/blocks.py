"""The fenced blocks of a Markdown document, and what each one's tag asks for.

The convention, for README.md and docs/*.md:

    ```python       run; all blocks of a document share one namespace and one event loop; top-level await works
    ```bash         run, command by command; variables and the directory last for the document
    ```console      the same, but lines that start with "$ " are the commands ("> " goes on with one), the others are
                    the output, which must match; "..." stands for anything
    ```bash make    lines of `make TARGET`: not run, but the targets must exist in the Makefile
    ```text         not run: a sketch, a format. Likewise the data tags in NOT_RUN

Any other tag, or none, is an error: nothing that looks like code goes unchecked by accident.

A command that ends in ``&`` is started in the background. The next one waits until it has printed its first line or,
with ``# until: TEXT`` after the ``&``, a line with that text. It must still be there, or have ended well, at the end.
A command that names ``@FILE`` waits until that file is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

NOT_RUN = frozenset({"text", "json", "toml", "yaml", "ini", "html", "mermaid", "promql", "diff", "rust"})
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")


class Kind(Enum):
    PYTHON = "python"
    BASH = "bash"
    CONSOLE = "console"
    MAKE = "bash make"
    NOT_RUN = "text"


class DocumentError(AssertionError):
    """A document that breaks the convention, or whose code does not do what it says. Names the place."""

    def __init__(self, block: Block, message: str) -> None:
        super().__init__(f"{block.document}:{block.line}: {message}")


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    tag: str
    text: str

    @property
    def kind(self) -> Kind:
        if self.tag in NOT_RUN:
            return Kind.NOT_RUN
        try:
            return Kind(self.tag)
        except ValueError:
            raise DocumentError(self, f"unknown tag {self.tag!r}: see tests/docs/blocks.py") from None


def parse(document: str, markdown: str) -> list[Block]:
    """Blocks in their order. A block's line is the one of its first line of code."""
    blocks: list[Block] = []
    fence: re.Match[str] | None = None
    start, inside = 0, list[str]()
    for number, line in enumerate(markdown.splitlines(), 1):
        match = FENCE.match(line)
        if fence is None:
            if match:
                fence, start, inside = match, number + 1, []
        elif match and not match["info"].strip() and len(match["ticks"]) >= len(fence["ticks"]):
            blocks.append(Block(document, start, fence["info"].strip(), "\n".join(inside)))
            fence = None
        else:
            inside.append(line.removeprefix(fence["indent"]))
    if fence is not None:
        raise DocumentError(Block(document, start, "", ""), "the block is never closed")
    return blocks
