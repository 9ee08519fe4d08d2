"""The core imports nothing that does IO, reads a clock, draws randomness or logs: see broker/protocol/__init__.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import broker.protocol

CORE = Path(broker.protocol.__path__[0])

# Everything that a core module may import. What is not here is refused, so that a new way out cannot be overlooked.
ALLOWED = frozenset(
    {
        *(
            "__future__",
            "abc",
            "array",
            "base64",
            "binascii",
            "bisect",
            "collections",
            "contextlib",
            "copy",
            "dataclasses",
        ),
        *("enum", "functools", "hashlib", "heapq", "hmac", "ipaddress", "itertools", "json", "math", "operator", "re"),
        *("string", "struct", "types", "typing", "typing_extensions", "urllib.parse", "zlib"),
        *("orjson", "pydantic", "broker.errors", "broker.protocol"),
    }
)
CALLS_OUT = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})


def violations(source: str) -> list[str]:
    """What a module's source does that the core must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if not allowed(alias.name)]
            case ast.ImportFrom(level=level) if level > 0:
                found.append("a relative import")
            case ast.ImportFrom(module=str(module), names=names):
                found += [full for alias in names if not allowed(full := f"{module}.{alias.name}")]
            case ast.Call(func=ast.Name(id=name)) if name in CALLS_OUT:
                found.append(f"{name}()")
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                found.append("async")
    return found


def allowed(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in ALLOWED)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: path.name)
def test_the_core_is_pure(path: Path) -> None:
    assert violations(path.read_text()) == []


def test_the_core_is_where_we_look() -> None:
    assert {"__init__.py", "codec.py", "calls.py", "caller.py", "answering.py"} <= {
        path.name for path in CORE.iterdir()
    }


@pytest.mark.parametrize(
    "snippet",
    [
        *(
            "import asyncio",
            "import socket",
            "import time",
            "import random",
            "import secrets",
            "import uuid",
            "import os",
        ),
        *("import os.path", "import logging", "import datetime", "import threading", "import prometheus_client"),
        *(
            "import broker",
            "import broker.hub.router",
            "import broker._gossip_ext as ext",
            "from broker import _gossip_ext",
        ),
        *(
            "from broker import hub",
            "from broker.spoke import link",
            "from time import monotonic",
            "from . import calls",
        ),
        *("from os import urandom", "import math, time", "import pathlib", "import importlib", "import broker.errorsx"),
        *("def f():\n    import time", "if True:\n    from random import random", "__import__('time')", "open('x')"),
        *("async def f(): pass", "try:\n    import ssl\nexcept ImportError:\n    pass"),
    ],
)
def test_the_check_can_fail(snippet: str) -> None:
    assert violations(snippet)


@pytest.mark.parametrize(
    "snippet",
    [
        *("import orjson", "from broker.errors import FrameError", "from broker.protocol import wire", "import heapq"),
        *(
            "from broker.protocol.codec import decode",
            "from collections.abc import Iterator",
            "from urllib.parse import quote",
        ),
    ],
)
def test_the_check_lets_through_what_is_pure(snippet: str) -> None:
    assert violations(snippet) == []
